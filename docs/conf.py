"""The documentation site: ``pip install -e '.[all,docs]'``, then ``python -m sphinx -W -c docs . site``.

It has the pages of docs/, the notebooks, which the build executes (those that did not change since the last build are
read from ``.jupyter_cache``), and an API reference from docstrings. The source folder is the root of the repository, so
that the links in pages work here and in the repository.
"""

import ast
import functools
import inspect
import os
import pkgutil
import re
import textwrap
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

jax.Array.__name__ = jax.Array.__qualname__ = "Array"  # annotations copy it when jaxmarket is imported

import jaxmarket  # noqa: E402

ROOT = Path(__file__).parents[1]
API = ROOT / "docs" / "api"

project, author, copyright = "jaxmarket", "The jaxmarket authors", "The jaxmarket authors"
version = release = jaxmarket.__version__
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinxcontrib.mermaid"]
include_patterns = ["docs/*.md", "docs/**/*.md", "notebooks/*.ipynb", "README.md", "benchmarks/NOTES.md", "[A-Z]*.md"]
exclude_patterns = ["**/.ipynb_checkpoints"]

html_theme = "sphinx_book_theme"
html_title = "jaxmarket"
html_static_path = html_css_files = ["site.css"]
html_theme_options = {"repository_url": "https://github.com/jaxmarket/jaxmarket", "use_repository_button": True}

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "exclude-members": "replace"}
napoleon_use_ivar = True  # attributes in docstrings and attributes of classes are one entry
default_role = "py:obj"
suppress_warnings = ["ref.python", "config.cache"]  # a field may have the name of another class's field


def modules() -> list[str]:
    """The names of all public modules."""
    found = (module.name for module in pkgutil.walk_packages(jaxmarket.__path__, "jaxmarket."))
    return ["jaxmarket", *(name for name in found if not any(part.startswith("_") for part in name.split(".")))]


@functools.cache
def comments(kind: type) -> dict[str, str]:
    """The comments beside the fields of a class, which state their meaning, by field."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = re.match(r"\s*#\s+(?!type:|noqa)(.+)", lines[node.end_lineno - 1][node.end_col_offset :])  # type: ignore[operator]
            if comment:
                found[node.target.id] = comment[1]
    return found


def _write_api() -> None:
    """One page for each package and each module of the core, with all its modules."""
    API.mkdir(exist_ok=True)
    pages: dict[str, list[str]] = {}
    for name in modules()[1:]:
        pages.setdefault(name.split(".")[1], []).append(name)
    for page, names in pages.items():
        text = f"# `{page}`\n"
        for name in names:
            text += (f"\n## `{name}`\n" if len(names) > 1 else "") + f"\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
        path = API / f"{page}.md"
        if not path.exists() or path.read_text() != text:  # what has not changed is not read again
            path.write_text(text)


_EXECUTED: dict[str, tuple[Any, Future[Any]]] = {}  # notebooks and their results, by the name of the page


def _cache(app: Any) -> Any:
    from jupyter_cache import get_cache  # noqa: PLC0415

    return get_cache(Path(app.outdir).parent / ".jupyter_cache")  # the default of MyST-NB


def _execute(app: Any) -> None:
    """Begin to execute the notebooks that changed, as many at a time as there are processors.

    Other pages are read meanwhile. MyST-NB itself executes one notebook after the other.
    """
    import nbformat  # noqa: PLC0415
    from jupyter_cache.executors.utils import single_nb_execution  # noqa: PLC0415

    if app.config.nb_execution_mode != "cache":
        return
    pool, timeout = ThreadPoolExecutor(os.cpu_count()), app.config.nb_execution_timeout
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"), reverse=True):  # the shortest last
        notebook = nbformat.read(path, as_version=4)
        try:
            _cache(app).match_cache_notebook(notebook)
        except KeyError:
            result = pool.submit(
                single_nb_execution, notebook, cwd=str(path.parent), timeout=timeout, allow_errors=False
            )
            _EXECUTED[f"notebooks/{path.stem}"] = notebook, result
    pool.shutdown(wait=False)


def _notebooks_last(app: Any, env: Any, names: list[str]) -> None:
    names.sort(key=lambda name: name.startswith("notebooks/"))


def _put_into_cache(app: Any, name: str, source: list[str]) -> None:
    """Wait for a notebook before its page is read, and put it into the cache from which MyST-NB reads it.

    MyST-NB executes one that failed again, and reports the error.
    """
    from jupyter_cache.base import CacheBundleIn  # noqa: PLC0415

    if name in _EXECUTED:
        notebook, executed = _EXECUTED.pop(name)
        result = executed.result()
        if result.err is None:
            bundle = CacheBundleIn(notebook, str(ROOT / f"{name}.ipynb"), data={"execution_seconds": result.time})
            _cache(app).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def _skip(app: Any, what: str, name: str, found: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a package only imports from its modules."""
    module = app.env.current_document.autodoc_module if hasattr(app.env, "current_document") else ""
    origin = getattr(found, "__module__", None)
    if what == "module" and module and isinstance(origin, str) and origin != module:
        return True
    return None


def _tables(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Replace Markdown tables, which are legible in the source, by those of reStructuredText."""
    text: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            text.append(line)
        elif set(line) <= set("|-"):
            continue
        else:
            if not (text and text[-1].startswith("     ")):
                text += [".. list-table::", "   :header-rows: 1", ""]
            first, *others = line.strip("| ").split(" | ")
            text += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    lines[:] = text
    _ORIGINALS[name] = text


def _restore(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Undo Napoleon's reading of a constant's first sentence, in which words before a colon are a type."""
    if what in ("attribute", "data"):
        lines[:] = _ORIGINALS.get(name, lines)


_ORIGINALS: dict[str, list[str]] = {}


def _add_fields(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Add the comments beside the fields of a class to its docstring, as its attributes."""
    if what == "class" and inspect.isclass(found) and not any(line.startswith("Attributes:") for line in lines):
        fields = comments(found) if (found.__module__ or "").startswith("jaxmarket") else {}
        lines += ["", "Attributes:", *(f"    {field}: {text}" for field, text in fields.items()), ""] if fields else []


def setup(app: Any) -> None:
    """Called by Sphinx."""
    _write_api()
    app.connect("builder-inited", _execute)
    app.connect("env-before-read-docs", _notebooks_last)
    app.connect("source-read", _put_into_cache)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _tables, priority=300)  # before Napoleon
    app.connect("autodoc-process-docstring", _add_fields, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
