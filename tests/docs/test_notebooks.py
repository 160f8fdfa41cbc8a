"""Every notebook runs from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


QUICK = "08"  # the others take most of a minute or more, even when they are shortened


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.full] * (not p.stem.startswith(QUICK))) for p in NOTEBOOKS],
    ids=[p.stem for p in NOTEBOOKS],
)
def test_notebook_runs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMARKET_SMOKE", "1")  # notebooks that can be shorter are
    monkeypatch.setenv("JAXMARKET_CACHE", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # shortened, they compile most of the time
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.cell_type == "code" for cell in notebook.cells)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
