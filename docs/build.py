"""The API reference, from docstrings, by pdoc: ``pip install -e '.[docs]'``, then ``python docs/build.py site``.

It adds to pdoc's output the modules that the package's ``__all__`` does not contain, names that are imported lazily,
and the comments of fields, which state their meaning.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
import warnings
from pathlib import Path
from types import ModuleType

import jax

jax.Array.__name__ = jax.Array.__qualname__ = "Array"  # annotations copy it when jaxmarket is imported

import jaxmarket  # noqa: E402

__all__ = ["build", "fields", "modules"]


def modules() -> list[str]:
    """The names of all public modules."""
    found = (module.name for module in pkgutil.walk_packages(jaxmarket.__path__, "jaxmarket."))
    return ["jaxmarket", *(name for name in found if not any(part.startswith("_") for part in name.split(".")))]


def fields(kind: type) -> dict[str, str]:
    """The comments of the fields of a class, by field."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines, comments = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = re.match(r"\s*#\s+(?!type:|noqa)(.+)", lines[node.end_lineno - 1][node.end_col_offset :])  # type: ignore[operator]
            if comment:
                comments[node.target.id] = comment[1]
    return comments


def _prepare(module: ModuleType) -> None:
    """Import lazily imported names, and omit classes of other libraries."""
    public = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    for name, value in public.items():
        setattr(module, name, value)
    foreign = [n for n, v in public.items() if inspect.isclass(v) and not v.__module__.startswith("jaxmarket")]
    if foreign:
        vars(module)["__all__"] = [name for name in public if name not in foreign]


def build(out: Path, names: list[str] | None = None) -> None:
    """Write the reference; warnings of pdoc are errors.

    Args:
        out: the output folder.
        names: names of modules, by default all.
    """
    try:
        import pdoc  # noqa: PLC0415
        from pdoc import doc_ast, render  # noqa: PLC0415
    except ImportError as error:
        raise SystemExit("docs/build.py: pdoc is not installed; pip install -e '.[docs]'") from error

    names, walk = names or modules(), doc_ast.walk_tree

    def walk_with_comments(obj: type | ModuleType) -> doc_ast.AstInfo:
        found = walk(obj)
        if inspect.isclass(obj) and obj.__module__.startswith("jaxmarket"):
            found.var_docstrings.update(fields(obj) | found.var_docstrings)
        return found

    doc_ast.walk_tree = walk_with_comments
    render.configure(docformat="google", math=True, footer_text=f"jaxmarket {jaxmarket.__version__}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", module="pdoc")
            for name in names:
                _prepare(importlib.import_module(name))
            pdoc.pdoc(*names, output_directory=out)
    finally:
        doc_ast.walk_tree = walk


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    build(target)
    print(f"written to {target / 'index.html'}")
