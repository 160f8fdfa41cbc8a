"""Sequences of decisions in three dependency structures: the tabular tasks of Chang et al. (2021, §7).

There are six actions, A to F. In each state one action is correct and leads to the next state; every other action
leaves the state unchanged. Only the last correct decision pays (.8) and terminates the episode. A task is named by the
correct actions of states 0, 1 and 2; state 3 is terminal:

    linear chain       0 → 1 → 2 → 3
    common ancestor    0 → 1 or 2, with probability 1/2 each; 1 → 3, 2 → 3
    common descendant  0 → 2, 1 → 2 → 3; the first state is 0 or 1, with probability 1/2 each

In the paper two tasks, AB and AC, share a common ancestor, and AC and BC share a common descendant. We represent the
task of an episode in its state, because the process would not be Markov otherwise. The paper gives no limit of an
episode; we use two steps more than its decisions. Random actions seldom succeed within that limit (once in 28 episodes
on the chain); within 20 steps they would succeed in two of three episodes.

M. Chang, S. Kaushik, S. Levine, T. Griffiths, *Modularity in Reinforcement Learning via Algorithmic Independence in
Credit Assignment*, ICML 2021.
"""

import functools
from typing import NamedTuple

import numpy as np

from jaxmarket.environments.tabular import FiniteMDP

__all__ = [
    "ACTIONS",
    "CHANGES",
    "FIRST",
    "TOPOLOGIES",
    "Change",
    "common_ancestor",
    "common_descendant",
    "linear_chain",
    "right_actions",
]

ACTIONS = "ABCDEF"
_END = 3


def right_actions(task: str) -> np.ndarray:
    """The correct action of each decision, as an index of `ACTIONS`: i [3].

    Raises:
        ValueError: the task is not a string of three of the six actions.
    """
    if len(task) != _END or not set(task) <= set(ACTIONS):
        raise ValueError(
            f"task: expected the correct actions of {_END} states out of {ACTIONS}, such as 'ABC', got {task!r}"
        )
    return np.array([ACTIONS.index(action) for action in task])


def _decisions(name: str, task: str, onward: list[dict[int, float]], start: list[float], limit: int) -> FiniteMDP:
    """The MDP in which the correct action of state s leads to the distribution ``onward[s]`` over next states."""
    right = right_actions(task)
    states, actions = _END + 1, len(ACTIONS)
    moves, rewards = np.zeros((states, actions, states)), np.zeros((states, actions))
    for s in range(states):
        moves[s, :, s] = 1
    for s, a in enumerate(right):
        moves[s, a] = [onward[s].get(t, 0) for t in range(states)]
        rewards[s, a] = 0.8 * moves[s, a, _END]
    ends = np.arange(states) == _END
    return FiniteMDP(moves, rewards, gamma=0.99, start=start, horizon=limit, terminal=ends, name=f"{name} {task}")


@functools.cache
def linear_chain(task: str = "ABC") -> FiniteMDP:
    """Three consecutive decisions."""
    return _decisions("linear chain", task, [{1: 1}, {2: 1}, {_END: 1}], [1, 0, 0, 0], limit=5)


@functools.cache
def common_ancestor(task: str = "ABC") -> FiniteMDP:
    """A decision (state 0) that is followed by one of two others (state 1 or 2): the paper's tasks AB and AC."""
    return _decisions("common ancestor", task, [{1: 0.5, 2: 0.5}, {_END: 1}, {_END: 1}], [1, 0, 0, 0], limit=4)


@functools.cache
def common_descendant(task: str = "ABC") -> FiniteMDP:
    """One of two decisions (state 0 or 1) that is followed by a third (state 2): the paper's tasks AC and BC."""
    return _decisions("common descendant", task, [{2: 1}, {2: 1}, {_END: 1}], [0.5, 0.5, 0, 0], limit=4)


TOPOLOGIES = {"linear chain": linear_chain, "common ancestor": common_ancestor, "common descendant": common_descendant}
"""The three constructors by name."""

FIRST = "ABC"
"""The task that agents learn first in every topology."""


class Change(NamedTuple):
    """A task that differs from `FIRST` in the correct action of one decision."""

    topology: str  # its name in `TOPOLOGIES`
    decision: str  # the decision that changes
    task: str

    def __str__(self) -> str:
        return f"{self.topology}, {self.decision}"

    @property
    def unchanged(self) -> np.ndarray:
        """The decisions that stay the same: bool [3]."""
        return right_actions(FIRST) == right_actions(self.task)


CHANGES = (
    Change("linear chain", "last", "ABD"),
    Change("linear chain", "middle", "AEC"),
    Change("linear chain", "first", "FBC"),
    Change("common ancestor", "ancestor", "DBC"),
    Change("common ancestor", "descendant", "ABE"),
    Change("common descendant", "descendant", "ABD"),
    Change("common descendant", "ancestor", "EBC"),
)
"""The transfers of Chang et al. (2021, §7)."""
