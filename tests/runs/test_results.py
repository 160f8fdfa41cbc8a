"""Finished runs in a notebook: what is shown while and after they train, data frames, figures."""

import csv
import dataclasses
import sys
import types

import jax
import matplotlib.figure
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

from jaxmarket import FitResult, fit
from jaxmarket.runs import run_folder
from jaxmarket.view import plotting

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module", params=["fitted", "read"])
def run(bandit_run, request):
    return bandit_run[0] if request.param == "fitted" else run_folder.read(bandit_run[1])


def test_a_data_frame_is_the_file_of_metrics(run, bandit_run):
    frame = run.to_dataframe()
    pd.testing.assert_frame_equal(frame, pd.read_csv(bandit_run[1] / "metrics.csv"))
    assert list(frame.columns[:3]) == ["chunk", "env_steps", "seed"] and "wins[0]" in frame
    assert len(frame) == frame["chunk"].max() * 2


def test_every_digit_and_nan_is_that_of_the_file(bandit_run, tmp_path):
    result = bandit_run[0]
    metrics = {name: values.copy() for name, values in result.metrics.items()}
    metrics["welfare"][3:, 1] = metrics["wins"][3:, 1] = np.nan  # as of a seed that diverged
    result = dataclasses.replace(result, metrics=metrics)
    run_folder.write(tmp_path / "run", result)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        names, *rows = csv.reader(file)
    for run in (result, run_folder.read(tmp_path / "run")):
        frame = run.to_dataframe()
        assert list(frame.columns) == names
        np.testing.assert_array_equal(frame.to_numpy(float), np.array(rows, float))
        assert frame["wins[1]"].isna().sum() == len(metrics["wins"]) - 3


def test_pandas_is_named_if_it_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxmarket\[notebook\]'"):
        run.to_dataframe()


def test_the_figure_has_the_learning_curve_and_bids_where_they_are_known(run):
    fig = run.plot()
    assert isinstance(fig, matplotlib.figure.Figure) and fig._repr_png_().startswith(b"\x89PNG")
    assert [ax.get_ylabel() for ax in fig.axes] == ["undiscounted return", "greedy bid"]
    assert plt.get_fignums() == []  # Jupyter shows those of pyplot after a cell
    unknown = FitResult(run.summary, None, run.metrics, run.config)
    assert [ax.get_ylabel() for ax in unknown.plot().axes] == ["undiscounted return"]


def test_a_notebook_shows_the_table_and_the_learning_curve(run):
    shown = run._repr_html_()
    assert "Bandit-v0 · ccv auction" in shown and "return: with greedy bids" in shown
    assert shown.count("<img ") == 1 and "data:image/png;base64," in shown


def test_names_in_a_notebook_are_data(bandit_run):
    result = bandit_run[0]
    shown = FitResult(result.summary | {"env": HOSTILE}, None, result.metrics, result.config)._repr_html_()
    assert "&lt;script&gt;" in shown and "<script" not in shown


def test_a_run_without_a_row_has_a_table_and_no_figure(bandit_run):
    result = bandit_run[0]
    stopped = FitResult(result.summary | {"interrupted": True}, None, {}, result.config)
    assert "<img" not in stopped._repr_html_() and "Bandit-v0" in stopped._repr_html_()
    assert list(stopped.to_dataframe().columns) == ["chunk", "env_steps", "seed"]
    with pytest.raises(ValueError, match=r"^metrics: "):
        stopped.plot()


def test_a_run_goes_on_if_its_curve_cannot_be_drawn(monkeypatch, bandit_run):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: types.SimpleNamespace(update=lambda *_, **__: None))

    def broken(*_, **__):
        raise RuntimeError("no canvas")

    monkeypatch.setattr(plotting, "image_element", broken)
    config = bandit_run[0].config
    with pytest.warns(UserWarning, match="no canvas") as warned:
        result = fit(config, jax.random.key(0))
    assert len([each for each in warned if "progress: " in str(each.message)]) == 1
    np.testing.assert_array_equal(result.metrics["return_mean"], bandit_run[0].metrics["return_mean"])


CELLS = """
import jax, jaxmarket
config = jaxmarket.TrainConfig("Bandit-v0", seeds=2, steps=40_000)
result = jaxmarket.fit(config, jax.random.key(0))
---
jaxmarket.fit(config, jax.random.key(0), progress=False); None
---
result
---
result.plot()
"""


@pytest.mark.slow
def test_an_executed_notebook_has_one_output_for_each_cell():
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    training, silent, table, figure = (cell.outputs for cell in notebook.cells)
    assert silent == []
    (output,) = training
    assert output.output_type == "display_data"
    assert "100%" in output.data["text/plain"] and "return 0." in output.data["text/plain"]
    assert output.data["text/html"].count("data:image/png;base64,") == 1
    (output,) = table
    assert "data:image/png;base64," in output.data["text/html"]
    (output,) = figure
    assert set(output.data) == {"text/plain", "image/png"}
