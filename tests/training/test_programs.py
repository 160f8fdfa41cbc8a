"""Programs for many examples: the best fixed one and the oracle against brute force, choices and bids by hand."""

import itertools

import numpy as np
import pytest

from jaxmarket.environments import Functions
from jaxmarket.training import programs

FUNCTIONS = (lambda x: x + 1, lambda x: 2 * x)
TRAINING = np.array([1, 2, 3]), np.array([3, 5, 8])  # + 1 then × 2 reaches the last target; × 2 then + 1 two of them
HELD_OUT = np.array([1, 2, 5]), np.array([4, 2, 7])


def arithmetic(*, steps=2, stop=False):
    return Functions(FUNCTIONS, TRAINING, lambda value, target: value == target, steps=steps, stop=stop)


def reached(program, examples):
    """Which examples reach their target, in plain Python."""
    values, targets = examples
    for function in program:
        values = [FUNCTIONS[function](value) for value in values]
    return [float(value == target) for value, target in zip(values, targets, strict=True)]


@pytest.mark.parametrize("stop", [False, True])
def test_bounds_are_those_of_brute_force(stop):
    found = programs.bounds(arithmetic(stop=stop), TRAINING, HELD_OUT)
    every = [program for length in range(3) for program in itertools.product((0, 1), repeat=length)]
    assert {program: rewards.tolist() for program, rewards in found.rewards.items()} == {
        program: reached(program, HELD_OUT) for program in every
    }
    assert found.program == (1, 0)
    assert found.fixed.tolist() == [0, 0, 0]
    assert found.oracle.tolist() == [1, stop, 1]  # 2 is its own target, if the computation may end at once


def test_a_shallow_search_finds_shorter_programs():
    found = programs.bounds(arithmetic(steps=4, stop=True), TRAINING, HELD_OUT, depth=1)
    assert set(found.rewards) == {(), (0,), (1,)}
    assert found.oracle.tolist() == [0, 1, 0]


def test_choices_of_a_program():
    env = arithmetic(steps=3, stop=True)
    assert programs.choices_of(env, (1, 0, 0)).tolist() == [1, 0, 0]
    assert programs.choices_of(env, (1,)).tolist() == [1, 2, -1]
    assert programs.choices_of(env, ()).tolist() == [2, -1, -1]
    with pytest.raises(ValueError, match="program: expected at most 3 functions, got 4"):
        programs.choices_of(env, (0,) * 4)
    with pytest.raises(ValueError, match="program: expected 2 functions, got 1"):
        programs.choices_of(arithmetic(), (0,))


def test_bids_along_a_program_are_of_those_that_came_so_far():
    choices = np.array([[[1, 2, -1], [0, 2, -1]], [[1, 1, 0], [1, 2, -1]]])  # [seeds, examples, steps]
    bids = np.arange(24.0).reshape(2, 2, 3, 2)
    found = programs.bids_along(choices, bids, np.array([1, 1, 2]))
    np.testing.assert_array_equal(found[0], bids[:, :, 0].mean((0, 1)))
    np.testing.assert_array_equal(found[1], (bids[0, 0, 1] + bids[1, 0, 1] + bids[1, 1, 1]) / 3)
    np.testing.assert_array_equal(found[2], bids[1, 0, 2])
    assert programs.bids_along(choices, bids, np.array([1, 2, -1])).shape == (2, 2)
    assert np.isnan(programs.bids_along(choices, bids, np.array([0, 0, 2]))[2]).all()
