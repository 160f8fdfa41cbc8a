"""A notebook runs from top to bottom; what notebooks and pages import exists.

The site's build executes all notebooks.
"""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest
from documentation import PAGES, python
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
(QUICK,) = (path for path in NOTEBOOKS if path.stem.startswith("02"))


@pytest.fixture
def smoke(monkeypatch):
    """The notebook is shorter."""
    monkeypatch.setenv("JAXMARKET_SMOKE", "1")


def test_the_cells_of_a_notebook_run(smoke):
    """In this process, and without Jupyter."""
    namespace = {}
    for number, cell in enumerate(blocks(QUICK)):
        exec(compile(cell, f"{QUICK.name}, cell {number}", "exec"), namespace)


@pytest.mark.slow
def test_a_notebook_runs_in_jupyter(smoke, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # shortened, it compiles most of the time
    notebook = nbformat.read(QUICK, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": QUICK.parent}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_stores_code_and_text_only(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)  # the site's build makes outputs


def blocks(path):
    """The Python of a notebook's cells, without magic commands, or of a page's code blocks."""
    if path.suffix == ".md":
        return python(path)
    cells = nbformat.read(path, as_version=4).cells
    return [re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE) for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: path.stem)
def test_what_is_imported_from_the_package_exists(path):
    for node in (node for block in blocks(path) for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "jaxmarket":
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")
