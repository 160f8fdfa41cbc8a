"""docs/architecture.md is true: imports keep its rule, its Python runs; the API reference can be built."""

import ast
import functools
import graphlib
import importlib.util
import re
from pathlib import Path

import pytest
from documentation import python

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGE = ROOT / "jaxmarket"
MODULES = re.findall(r"^\| `(\w+)/?` \|", PAGE, flags=re.MULTILINE)
SNIPPETS = python(ROOT / "docs" / "architecture.md")


def imported(path):
    """Modules of this package that a file imports, now or later, except those that only type checkers import."""
    tree = ast.parse(path.read_text())
    typing = {
        n
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for n in ast.walk(block)
    }
    for node in set(ast.walk(tree)) - typing:
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            name = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            if name.startswith("jaxmarket."):
                yield name


def breaches(imports):
    """Imports that break the boundary rule: families import each other, or the core imports a package."""
    families = {"deep_market", "wide_market", "networks", "host", "interop"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    outer = packages | {"cli", "testing"}
    for module, name in imports:
        one, other = module.split(".")[1], name.split(".")[1]
        crossed = {one, other} <= families and one != other
        if crossed or (
            one not in outer and other in packages and not name.startswith("jaxmarket.environments.adapter")
        ):
            yield f"{module} imports {name}"


@functools.cache
def package_imports():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module not in ("jaxmarket.__init__", "jaxmarket.__main__"):
            found += [(module.removesuffix(".__init__"), name) for name in imported(path)]
    return found


def test_every_module_is_on_the_page_once():
    there = {path.stem for path in PACKAGE.glob("[!_]*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert sorted(MODULES) == sorted(there), "the table in docs/architecture.md and the modules differ"
    assert len(there) <= 27


def test_imports_keep_the_boundaries():
    assert list(breaches(package_imports())) == []


def test_the_package_does_not_need_the_benchmarks():
    """The wheel has no benchmarks."""
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*(from|import) benchmarks\b", path.read_text(), re.MULTILINE), path


def test_no_import_is_circular():
    graph = {}
    for module, name in package_imports():
        one, other = module.split(".")[1], name.split(".")[1]
        graph.setdefault(one, set()).update({other} - {one})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_public_class_names_are_unique():
    places = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        ("jaxmarket.deep_market.market", "jaxmarket.wide_market.market", True),
        ("jaxmarket.auctions", "jaxmarket.runs.files", True),
        ("jaxmarket.society", "jaxmarket.environments.make", True),
        ("jaxmarket.society", "jaxmarket.environments.adapter.Adapter", False),
        ("jaxmarket.society", "jaxmarket.auctions.clear", False),
        ("jaxmarket.host.market", "jaxmarket.auctions.clear", False),
        ("jaxmarket.cli", "jaxmarket.runs.fit", False),
    ],
)
def test_a_breach_is_noticed(module, name, wrong):
    assert bool(list(breaches([(module, name)]))) == wrong


CHEAP = (0,)  # the others compile for some seconds


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, marks=[pytest.mark.slow] * (i not in CHEAP), id=str(i)) for i, s in enumerate(SNIPPETS)],
)
def test_snippet_runs(snippet):
    exec(compile(snippet, "architecture.md", "exec"), {})


def test_there_are_snippets():
    assert SNIPPETS


# --- the site


@pytest.fixture
def conf(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_is_in_the_reference(conf):
    names = conf.modules()
    assert {"jaxmarket", "jaxmarket.cli", "jaxmarket.environments.rooms", "jaxmarket.learners.ppo"} < set(names)
    assert not any("_" in (part[0] for part in name.split(".")) for name in names)


def test_comments_beside_fields_are_their_documentation(conf):
    from jaxmarket.settlement import Settlement  # noqa: PLC0415

    assert conf.comments(Settlement)["estimated"].startswith("the proceeds")


def test_tables_of_docstrings_become_tables(conf):
    lines = ["before", "", "| a | b |", "|---|---|", "| ``x`` | y |", "", "after"]
    conf._tables(None, "module", "m", None, None, lines)
    table = [".. list-table::", "   :header-rows: 1", "", "   * - a", "     - b", "   * - ``x``", "     - y"]
    assert lines == ["before", "", *table, "", "after"]


@pytest.mark.full
def test_the_site_is_built_without_a_warning(tmp_path):
    """Without the notebooks' results; `.ci/full` executes them."""
    pytest.importorskip("sphinx")
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    options = ["-W", "--keep-going", "-q", "-D", "nb_execution_mode=off", "-d", str(tmp_path / "doctrees")]
    subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "-c", "docs", ".", str(tmp_path / "site")],
        cwd=ROOT, check=True, timeout=500,
    )  # fmt: skip
    page = (tmp_path / "site" / "docs" / "api" / "settlement.html").read_text()
    assert "the proceeds are a bootstrap value" in page
    assert "jaxlib._jax" not in page
