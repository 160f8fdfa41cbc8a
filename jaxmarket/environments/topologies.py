"""Decisions that depend on each other in three ways: the tabular tasks of Chang et al. (2021, §7).

Six actions, A to F. In each decision's state one action is right and leads on, every other leaves the state as it
is. Only the last right decision pays (.8), and only it terminates the episode, so termination is success. A task is
named by the right actions of states 0, 1 and 2; state 3 is the end:

    linear chain       0 → 1 → 2 → 3
    common ancestor    0 → 1 or 2, with probability 1/2 each; 1 → 3, 2 → 3
    common descendant  0 → 2, 1 → 2 → 3; the first state is 0 or 1, with probability 1/2 each

In the paper a common ancestor is shared by two tasks, AB and AC, and a common descendant by AC and BC. Our reading:
which of the two an episode is, is a matter of the state, else the process would not be Markov. The limit of an episode
is ours, too: two steps more than its decisions. Random actions seldom succeed within it (one time in 28 on the chain);
within 20 steps they would two times in three, and success would say little.

M. Chang, S. Kaushik, S. Levine, T. Griffiths, *Modularity in Reinforcement Learning via Algorithmic Independence in
Credit Assignment*, ICML 2021.
"""

import functools

import numpy as np

from jaxmarket.environments.tabular import FiniteMDP

__all__ = ["ACTIONS", "TOPOLOGIES", "common_ancestor", "common_descendant", "linear_chain", "right_actions"]

ACTIONS = "ABCDEF"
_END = 3


def right_actions(task: str) -> np.ndarray:
    """The right action of each decision's state, as a number: i [3].

    Raises:
        ValueError: the task is not three of the six actions.
    """
    if len(task) != _END or not set(task) <= set(ACTIONS):
        raise ValueError(
            f"task: expected a right action for each of {_END} states, as ABC, out of {ACTIONS}; got {task!r}"
        )
    return np.array([ACTIONS.index(action) for action in task])


def _decisions(name: str, task: str, onward: list[dict[int, float]], start: list[float], limit: int) -> FiniteMDP:
    """The process in which the right action of state s leads to ``onward[s]``: probabilities by state."""
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
    """Three decisions in a row."""
    return _decisions("linear chain", task, [{1: 1}, {2: 1}, {_END: 1}], [1, 0, 0, 0], limit=5)


@functools.cache
def common_ancestor(task: str = "ABC") -> FiniteMDP:
    """A decision (state 0) after which one of two others is due (1 or 2): the paper's tasks AB and AC."""
    return _decisions("common ancestor", task, [{1: 0.5, 2: 0.5}, {_END: 1}, {_END: 1}], [1, 0, 0, 0], limit=4)


@functools.cache
def common_descendant(task: str = "ABC") -> FiniteMDP:
    """One of two decisions (state 0 or 1), and then a third that both lead to (2): the paper's tasks AC and BC."""
    return _decisions("common descendant", task, [{2: 1}, {2: 1}, {_END: 1}], [0.5, 0.5, 0, 0], limit=4)


TOPOLOGIES = {"linear chain": linear_chain, "common ancestor": common_ancestor, "common descendant": common_descendant}
"""The three by name."""
