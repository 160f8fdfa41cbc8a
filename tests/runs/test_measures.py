"""Measures of training runs, by hand."""

import types

import numpy as np

from jaxmarket.runs.curves import last_part, ratio
from jaxmarket.runs.measures import while_learning


def run(**metrics):
    """A run of forty chunks and two seeds, whose last tenth has these metrics [4, 2]."""
    return types.SimpleNamespace(metrics={name: np.vstack([np.full((36, 2), 9), x]) for name, x in metrics.items()})


def test_returns_while_learning_are_means_over_episodes_and_not_over_chunks():
    nan = np.nan
    episodes = np.array([[3, 0], [0, 0], [1, 0], [0, 0]])
    returns = np.array([[2, nan], [nan, nan], [6, nan], [nan, nan]])
    found = while_learning()(run(return_mean=returns, episodes=episodes))
    np.testing.assert_array_equal(found, [3, nan])  # (3 · 2 + 1 · 6) / 4; no episode ended for the other seed


def test_a_return_that_is_not_finite_is_not_hidden():
    found = while_learning()(run(return_mean=np.array([[np.nan, 1.0]] * 4), episodes=np.ones((4, 2))))
    np.testing.assert_array_equal(found, [np.nan, 1])


def test_other_metrics_and_runs_without_episodes_are_means_over_chunks():
    values = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [6.0, 5.0]])
    np.testing.assert_array_equal(while_learning("gini")(run(gini=values, episodes=values)), [3, 5])
    np.testing.assert_array_equal(while_learning()(run(return_mean=values)), [3, 5])


def test_the_last_tenth_is_rounded_and_never_empty():
    assert [len(last_part(np.zeros(length))) for length in (1, 14, 15, 20, 26)] == [1, 1, 2, 2, 3]
    values = np.arange(40).reshape(2, 20)
    np.testing.assert_array_equal(last_part(values, axis=1), values[:, 18:])
    np.testing.assert_array_equal(ratio([6, 5], [4, 0]), [1.5, np.nan])
