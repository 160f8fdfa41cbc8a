"""Finite Markov decision processes: a general class, random instances, and three tasks of Chang et al. (2020)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, real
from jaxmarket.validation import as_bool_array, check_float, check_int, short_repr

__all__ = ["Bandit", "Chain", "Duality", "FiniteMDP", "MDPParams", "MDPState", "garnet"]


class MDPState(struct.PyTreeNode):
    """State of a `FiniteMDP`."""

    index: Int32[Array, ""]  # number of the state, from 0
    time: Int32[Array, ""]  # steps since the reset


class MDPParams(struct.PyTreeNode):
    """Parameters of a `FiniteMDP`. The arrays are traced, so that other values need no new compilation.

    If all transitions (or the initial state) are deterministic, indices replace the distributions, and a step draws no
    random number.
    """

    transitions: Float[Array, "S A S"] | Int32[Array, "S A"]  # P(s' | s, a), or successors
    rewards: Float[Array, "S A"]  # expected reward
    start: Float[Array, " S"] | Int32[Array, ""]  # distribution of the initial state, or that state
    terminal: Bool[Array, " S"]  # whether entering the state terminates the episode
    max_steps_in_episode: int = 100


class FiniteMDP(environment.Environment[Any, Any]):
    """A finite Markov decision process as a gymnax environment with one-hot observations.

    In this Python module ``A`` are the actions; a society's primitives are these actions.

    Args:
        P: transition probabilities, f [S, A, S].
        R: expected reward of taking an action in a state, f [S, A].
        gamma: discount, in [0, 1).
        start: distribution of the initial state, f [S].
        horizon: steps after which an episode is truncated.
        terminal: bool [S], the states that terminate the episode when they are entered; none by default.
        name: shown in tables.

    Instances compare and hash by value.

    Raises:
        ValueError: an array has the wrong shape, is not finite, or is not a distribution within 1e-5.
    """

    def __init__(
        self,
        P: Any,
        R: Any,
        gamma: float,
        start: Any,
        horizon: int = 100,
        *,
        terminal: Any = None,
        name: str = "FiniteMDP",
    ) -> None:
        super().__init__()
        transitions = _array("P", P, 3)
        states, actions = transitions.shape[:2]
        if transitions.shape != (states, actions, states) or states == 0 or actions == 0:
            raise ValueError(
                f"P: expected shape [S, A, S] with S, A >= 1, got {transitions.shape}; P[s, a, t] is the probability "
                "of state t after action a in state s"
            )
        rewards = _array("R", R, 2, (states, actions))
        first = _array("start", start, 1, (states,))
        terminal = np.zeros(states, bool) if terminal is None else terminal
        ends = np.asarray(as_bool_array("terminal", terminal, (states,)))
        _distribution("P", transitions)
        _distribution("start", first)
        gamma = check_float("gamma", gamma, 0, 1)
        if gamma == 1:
            raise ValueError(f"gamma: expected the discount of a finite MDP in [0, 1), got {gamma!r}; use less than 1")
        self.gamma = gamma
        self.transitions, self.rewards, self.start, self.terminal = transitions, rewards, first, ends
        self.horizon = check_int("horizon", horizon)
        self._name = name
        self._solutions: dict[float, np.ndarray] = {}  # cache of Q* by discount
        self._identity = (
            type(self),
            name,
            self.gamma,
            self.horizon,
            *(array.tobytes() for array in (transitions, rewards, first, ends)),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FiniteMDP) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def name(self) -> str:
        """The ``name`` given at construction."""
        return self._name

    @property
    def num_states(self) -> int:
        """S, the number of states."""
        return self.rewards.shape[0]

    @property
    def num_actions(self) -> int:
        """A, the number of actions."""
        return self.rewards.shape[1]

    @property
    def default_params(self) -> MDPParams:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The arrays given at construction."""
        return MDPParams(
            transitions=_compact(self.transitions),
            rewards=jax.device_put(self.rewards.astype(real())),
            start=_compact(self.start),
            terminal=jax.device_put(self.terminal),
            max_steps_in_episode=self.horizon,
        )

    def reset_env(self, key: Array, params: MDPParams) -> tuple[Array, MDPState]:
        """Draw an initial state from ``start``."""
        index = _draw(key, params.start)
        state = MDPState(index=index, time=jnp.zeros((), jnp.int32))
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: MDPState, action: Any, params: MDPParams
    ) -> tuple[Array, MDPState, Array, Array, dict[Any, Any]]:
        """Take one transition; `is_truncated` applies the time limit."""
        reward = params.rewards[state.index, action]
        index = _draw(key, params.transitions[state.index, action])
        state = MDPState(index=index, time=state.time + 1)
        terminated = self.is_terminated(state, params)
        return self.get_obs(state), state, reward, terminated, {"discount": self.discount(state, params)}

    def get_obs(self, state: MDPState, params: Any = None, key: Any = None) -> Array:
        """One-hot state: f [S]."""
        return jax.nn.one_hot(state.index, self.num_states, dtype=real())

    def is_terminated(self, state: MDPState, params: MDPParams) -> Array:
        """Whether the state is terminal."""
        return params.terminal[state.index]

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The A actions."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """One-hot vectors, f [S]."""
        return spaces.Box(0, 1, (self.num_states,), real())

    def optimal_q(self, gamma: float | None = None) -> np.ndarray:
        """Q* of the process without its horizon, f64 [S, A], by policy iteration with exact linear solves.

        Args:
            gamma: discount; that of the process by default.

        Raises:
            ValueError: ``gamma`` is not in [0, 1).
        """
        gamma = self.gamma if gamma is None else float(gamma)
        if not 0 <= gamma < 1:
            raise ValueError(
                f"gamma: expected a discount in [0, 1), got {gamma}; use less than 1, because Q* ignores the horizon"
            )
        if gamma not in self._solutions:
            self._solutions[gamma] = self._solve(gamma)
        return self._solutions[gamma].copy()

    def _solve(self, gamma: float) -> np.ndarray:
        rewards = self.rewards
        # Entering a terminal state earns the reward of the step; no reward follows.
        onward = gamma * self.transitions * ~self.terminal
        states = np.arange(self.num_states)
        policy, tried = rewards.argmax(1), set()
        while True:
            tried.add(policy.tobytes())
            value = np.linalg.solve(np.eye(self.num_states) - onward[states, policy], rewards[states, policy])
            q = rewards + onward @ value
            # Ignore improvements within the rounding error, relative to the amounts of each state. For discounts close
            # to 1 the error can be larger, and equal actions would alternate forever: stop when a policy repeats.
            amounts = (np.abs(rewards) + onward @ np.abs(value)).max(1)
            better = q.max(1) > q[states, policy] + 1e-12 * amounts
            policy = np.where(better, q.argmax(1), policy)
            if policy.tobytes() in tried:
                return q

    def episode_return(self, policy: Any, gamma: float = 1.0) -> float:
        """The exact expected return of an episode, from the start distribution to termination or the horizon.

        Args:
            policy: int [S], an action per state, or f [S, A], action probabilities.
            gamma: discount; by default 1, as for reported returns.
        """
        policy = np.asarray(policy)
        if policy.ndim == 1:
            policy = np.eye(self.num_actions)[policy]
        reward = (policy * self.rewards).sum(1)
        onward = np.einsum("sa,sat->st", policy, self.transitions * ~self.terminal)
        value = np.zeros(self.num_states)
        for _ in range(self.horizon):
            value = reward + gamma * onward @ value
        return float(self.start @ value)

    def optimal_return(self, gamma: float | None = None) -> float:
        """Undiscounted `episode_return` of the policy that is greedy in `optimal_q` (lowest action on ties)."""
        return self.episode_return(self.optimal_q(gamma).argmax(1))


def garnet(seed: int, states: int, actions: int, gamma: float, branching: int | None = None) -> FiniteMDP:
    """A random finite MDP without terminal states (Archibald, McKinnon and Thomas 1995), as a test problem.

    Args:
        seed: equal seeds give equal processes.
        states, actions: S, A.
        gamma: discount.
        branching: successors with positive probability per state and action; all states by default.

    Probabilities are uniform on the simplex (a flat Dirichlet distribution), rewards uniform on [0, 1), and every state
    is an equally likely start. The horizon is that of `FiniteMDP`.

    Raises:
        ValueError: a number is out of range.
    """
    states, actions = check_int("states", states), check_int("actions", actions)
    rng = np.random.default_rng(check_int("seed", seed, 0))
    branching = states if branching is None else check_int("branching", branching, 1, states)
    transitions = np.zeros((states, actions, states))
    for row in transitions.reshape(-1, states):
        row[rng.choice(states, branching, replace=False)] = rng.dirichlet(np.ones(branching))
    return FiniteMDP(
        P=transitions,
        R=rng.random((states, actions)),
        gamma=gamma,
        start=np.full(states, 1 / states),
        name=f"Garnet-{seed}",
    )


def _compact(distributions: np.ndarray) -> Array:
    """Distributions along the last axis, or indices i32 if all distributions are deterministic."""
    if ((distributions == 0) | (distributions == 1)).all():
        return jax.device_put(distributions.argmax(-1).astype(np.int32))
    return jax.device_put(distributions.astype(real()))


def _draw(key: Array, probabilities: Array) -> Array:
    """A random index, i32 [], by inversion of the cumulative distribution; a given index is returned unchanged."""
    if jnp.issubdtype(probabilities.dtype, jnp.integer):
        return probabilities
    u = jax.random.uniform(key, (), probabilities.dtype)
    # The sum counts the states before the drawn one. By rounding the total may be below u: clip to the last state.
    index = jnp.sum(u >= jnp.cumsum(probabilities))
    last = probabilities.shape[0] - 1 - jnp.argmax(probabilities[::-1] > 0)
    return jnp.minimum(index, last).astype(jnp.int32)


def _array(field: str, value: Any, ndim: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{field}: expected an array of numbers, got {short_repr(value)}") from error
    if array.ndim != ndim or (shape is not None and array.shape != shape):
        wanted = f"shape {shape}" if shape is not None else f"{ndim} axes"
        raise ValueError(f"{field}: expected {wanted}, got shape {array.shape}")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{field}: expected finite numbers, {_entry(field, where)} is {array[where]}")
    return array


def _distribution(field: str, array: np.ndarray) -> None:
    if (array < 0).any():
        where = tuple(int(i) for i in np.argwhere(array < 0)[0])
        raise ValueError(f"{field}: expected probabilities >= 0, {_entry(field, where)} is {array[where]}")
    wrong = np.argwhere(np.abs(array.sum(-1) - 1) > 1e-5)
    if len(wrong):
        where = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{_entry(field, where)}: expected probabilities with sum 1 within 1e-5, got the sum {array[where].sum()}"
        )


def _entry(field: str, where: tuple[int, ...]) -> str:
    return f"{field}[{', '.join(map(str, where))}]" if where else field


def _deterministic(successors: Any, states: int) -> np.ndarray:
    return np.eye(states)[np.asarray(successors)]


@functools.cache
def Bandit() -> FiniteMDP:
    """Market Bandit (Chang et al. 2020): one state, one step, rewards .2 .4 .6 .8.

    The agent dropout of the paper is a setting of training, ``TrainConfig(dropout=...)``.
    """
    return FiniteMDP(
        P=_deterministic([[0] * 4], 1),
        R=[[0.2, 0.4, 0.6, 0.8]],
        gamma=0.99,
        start=[1],
        horizon=1,
        terminal=np.array([True]),
        name="Bandit-v0",
    )


@functools.cache
def Chain() -> FiniteMDP:
    """Chain (Chang et al. 2020): states 0 to 5, actions left and right, reward .8 on entering state 5, limit 20."""
    return FiniteMDP(
        P=_deterministic([[max(s - 1, 0), s + 1] for s in range(5)] + [[5, 5]], 6),
        R=[[0, 0], [0, 0], [0, 0], [0, 0], [0, 0.8], [0, 0]],
        gamma=0.99,
        start=[1, 0, 0, 0, 0, 0],
        horizon=20,
        terminal=np.arange(6) == 5,
        name="Chain-v0",
    )


@functools.cache
def Duality() -> FiniteMDP:
    """Duality (Chang et al. 2020): short-sighted actions lead to the absorbing state 2; not episodic, limit 10."""
    return FiniteMDP(
        P=_deterministic([[2, 1], [0, 1], [2, 2]], 3),
        R=[[0, 0.5], [0.5, 0.3], [-1, -1]],
        gamma=0.99,
        start=[1, 0, 0],
        horizon=10,
        name="Duality-v0",
    )
