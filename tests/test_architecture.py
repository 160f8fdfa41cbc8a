"""docs/architecture.md is true: imports point the way it says, its Python runs; the API reference can be built."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def room_of(module):
    """``auctions`` of ``jaxmarket.auctions``, ``environments`` of ``jaxmarket.environments.rooms``."""
    return module.split(".")[1]


def imported(source, package):
    """Modules of this library that a file imports, at once or later; not those that only type checkers import."""
    found = []

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found.extend([f"{module}.{alias.name}" for alias in node.names] if module == "jaxmarket" else [module])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return [name for name in found if name.startswith("jaxmarket.")]


def breaches(files, rooms):
    """``file: room uses room`` wherever an import points down the table."""
    rank = {room: i for i, room in enumerate(rooms)}
    found = []
    for module, source, package in files:
        for other in imported(source, package):
            if room_of(other) in rank and rank[room_of(other)] > rank[room_of(module)]:
                found.append(f"{module}: {room_of(module)} uses {room_of(other)}")
    return found


def package_files():
    for path in sorted((ROOT / "jaxmarket").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ".".join(parts[:-1])
        if parts[1] not in ("__init__", "__main__"):  # the doors: they may use every room
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield module, path.read_text(), package


def test_every_room_is_on_the_page_once():
    there = {room_of(module) for module, _, _ in package_files()}
    assert sorted(ROOMS) == sorted(there), "the table of rooms in docs/architecture.md and the modules differ"


def test_imports_point_up_the_table():
    assert breaches(package_files(), ROOMS) == []


def test_an_import_that_points_down_would_be_seen():
    rooms = ["types", "auctions", "society", "cli"]
    sources = {
        "import jaxmarket.society": True,
        "from jaxmarket.society import step": True,
        "from jaxmarket import society": True,
        "def late():\n    from jaxmarket import cli": True,
        "from .society import step": True,
        "from . import types": False,
        "from jaxmarket.types import real": False,
        "from jaxmarket import Society": False,
        "if TYPE_CHECKING:\n    from jaxmarket import cli": False,
    }
    for source, wrong in sources.items():
        assert bool(breaches([("jaxmarket.auctions", source, "jaxmarket")], rooms)) == wrong, source


def test_the_picture_shows_rooms_and_points_the_same_way():
    picture = re.findall(r"```mermaid\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    rank = {room: i for i, room in enumerate(ROOMS)}
    nodes = {name: rooms.split(" · ") for name, rooms in re.findall(r'(\w+)\["([^"]+)"\]', picture)}
    first = {name: min(rank[room] for room in rooms) for name, rooms in nodes.items()}  # KeyError: no such room
    arrows = re.findall(r"^ *(\w+)(?:\[.*?\])? --> (\w+)", picture, flags=re.MULTILINE)
    assert len(arrows) >= 8
    assert [(a, b) for a, b in arrows if first[a] >= first[b]] == []


CHEAP = (0,)  # the others compile for some seconds


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, marks=[pytest.mark.slow] * (i not in CHEAP), id=str(i)) for i, s in enumerate(SNIPPETS)],
)
def test_snippet_runs(snippet):
    exec(compile(snippet, "architecture.md", "exec"), {})


def test_there_are_snippets():
    assert len(SNIPPETS) == 5


# --- the API reference


@pytest.fixture
def builder():
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_is_in_the_reference(builder):
    names = builder.modules()
    assert {"jaxmarket", "jaxmarket.cli", "jaxmarket.environments.rooms", "jaxmarket.learners.ppo"} < set(names)
    assert not any("_" in (part[0] for part in name.split(".")) for name in names)


def test_comments_beside_fields_are_their_documentation(builder):
    from jaxmarket.settlement import Settlement  # noqa: PLC0415

    assert builder.fields(Settlement)["estimated"].startswith("bool [T] the resale ahead")


@pytest.mark.slow
def test_the_reference_is_built_without_a_warning(tmp_path):
    """In a process of its own: pdoc leaves traces in what it documents."""
    pytest.importorskip("pdoc")
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    subprocess.run([sys.executable, str(ROOT / "docs" / "build.py"), str(tmp_path)], check=True, timeout=500)
    page = (tmp_path / "jaxmarket" / "settlement.html").read_text()
    assert "the resale ahead is a shadow estimate" in page
    assert "jaxlib._jax" not in page
