"""Backups of tabular markets: what agents that own one action each learn on a finite process, in expectation.

Beside the market stand the temporal-difference rules with which `jaxmarket.experiments.identities` compares it:
programs in NumPy that contain no auction.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import auctions
from jaxmarket.auctions import BUCKET_BRIGADE, Mechanism
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.types import Array

__all__ = [
    "expected_backup",
    "expected_holland",
    "expected_payout",
    "expected_sarsa",
    "fixed_point",
    "holland",
    "leaky_values",
    "market_values",
    "q_learning",
    "td_zero",
]

# --- the market


def expected_payout(mechanism: Mechanism, bids: Array, exploration: Array | float) -> Array:
    """The expected payout to the owner of a state, over the random winner: f [].

    Args:
        mechanism: the auction.
        bids: f [A].
        exploration: ε, probability that a uniformly random bidder wins.
    """
    eligible = jnp.ones(bids.shape, bool)
    payout = jax.vmap(lambda w: mechanism.payout(auctions.award(bids, w, eligible)))(jnp.arange(bids.shape[0]))
    return (1 - exploration) * payout[auctions.choose(bids, None, eligible)] + exploration * payout.mean()


def expected_backup(mechanism: Mechanism, clones: int, mdp: FiniteMDP, exploration: float, values: Array) -> Array:
    """The expected revenue of each winner if all agents bid ``values``: f [S, P] to f [S, P]."""
    bids = jnp.repeat(values, clones, axis=1)
    payout = jax.vmap(expected_payout, (None, 0, None))(mechanism, bids, exploration)
    onward = jnp.asarray(mdp.transitions * ~mdp.terminal)
    return jnp.asarray(mdp.rewards) + mdp.gamma * onward @ payout


def fixed_point(
    backup: Callable[[Array], Array], values: Array, tolerance: float = 1e-13, most: int = 100_000
) -> Array:
    """Iterate a contraction until it moves by less than ``tolerance`` (relative beyond 1), or ``most`` times."""

    def unsettled(carry: tuple[Array, Array, Array]) -> Array:
        old, new, count = carry
        return (jnp.abs(new - old).max() > tolerance * jnp.maximum(1, jnp.abs(new).max())) & (count < most)

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, new, count = carry
        return new, backup(new), count + 1

    return jax.lax.while_loop(unsettled, advance, (values, backup(values), jnp.zeros((), int)))[1]


def market_values(mechanism: Mechanism, clones: int, mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """The fixed point of `expected_backup`, the final bids of tabular agents: f64 [S, P]."""
    with jax.enable_x64(True):
        backup = functools.partial(expected_backup, mechanism, clones, mdp, exploration)
        return np.asarray(jax.jit(lambda v: fixed_point(backup, v))(jnp.zeros(mdp.rewards.shape)))


def holland(strength: Array, states: Array, rewards: Array, share: float, tax: float) -> Array:
    """Run the bucket brigade along a trajectory, one rule per state: strengths after each sale, f [T, S].

    A rule bids ``share`` of its strength for its state, pays that bid to the previous rule, loses ``tax`` of its
    strength, and earns the reward. Its strength changes when the next state is sold.

    Args:
        strength: f [S], initial.
        states: i32 [T + 1], states visited.
        rewards: f [T], earned in ``states[:-1]``.
        share: b, the fraction of its strength that a rule bids.
        tax: x, the fraction of its strength that a rule loses when it acts.
    """
    rules = jnp.arange(strength.shape[0])

    def sale(strength: Array, visit: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        state, onward, reward = visit
        here, there = (auctions.clear(share * strength, eligible=rules == s) for s in (state, onward))
        utility = reward + BUCKET_BRIGADE.payout(there) - BUCKET_BRIGADE.price(here)
        strength = strength + jnp.where(rules == here.winner, utility - tax * strength, 0)
        return strength, strength

    return jax.lax.scan(sale, strength, (states[:-1], states[1:], rewards))[1]


def expected_holland(strength: Array, onward: Array, reward: Array, share: float, tax: float) -> Array:
    """The expected strength of every rule after one sale from ``strength``: f [S] to f [S].

    Args:
        strength: f [S].
        onward: f [S, S], probability of each next state.
        reward: f [S], earned in each state.
        share: as in `holland`.
        tax: as in `holland`.
    """
    every = jnp.arange(strength.shape[0])

    def after(state: Array, following: Array) -> Array:
        return holland(strength, jnp.stack([state, following]), reward[state][None], share, tax)[0, state]

    return (onward * jax.vmap(lambda s: jax.vmap(functools.partial(after, s))(every))(every)).sum(1)


# --- rules without a market


def q_learning(mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """Q*, the fixed point of Q-learning under any exploration: f64 [S, P]."""
    del exploration
    return mdp.optimal_q()


def expected_sarsa(mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """Fixed point of expected SARSA for its own ε-greedy policy: f64 [S, P], by policy iteration."""
    states, actions = mdp.rewards.shape
    onward = mdp.gamma * (mdp.transitions * ~mdp.terminal).reshape(states * actions, states)
    greedy = mdp.rewards.argmax(1)
    while True:
        policy = (1 - exploration) * np.eye(actions)[greedy] + exploration / actions
        # Q = R + γ P Π Q, Π spreading a state over its actions.
        spread = np.zeros((states, states * actions))
        for s in range(states):
            spread[s, s * actions : (s + 1) * actions] = policy[s]
        q = np.linalg.solve(np.eye(states * actions) - onward @ spread, mdp.rewards.reshape(-1))
        q = q.reshape(states, actions)
        if (q.max(1) <= q[np.arange(states), greedy] + 1e-12).all():
            return q
        greedy = q.argmax(1)


def leaky_values(mdp: FiniteMDP, exploration: float) -> np.ndarray:
    """Fixed point of r + γ [p v₍₂₎ + (1-p) v₍₁₎], p = 1 - ε + ε/P: f64 [S, P], by value iteration."""
    actions = mdp.rewards.shape[1]
    p = 1 - exploration + exploration / actions
    values = np.zeros_like(mdp.rewards)
    while True:
        ranked = np.sort(values, axis=1)
        expected = p * ranked[:, -2] + (1 - p) * ranked[:, -1]
        new = mdp.rewards + mdp.gamma * (mdp.transitions * ~mdp.terminal) @ expected
        if np.abs(new - values).max() < 1e-13:
            return new
        values = new


def td_zero(values: np.ndarray, states: np.ndarray, rewards: np.ndarray, step_size: float, gamma: float) -> np.ndarray:
    """TD(0) along the same trajectory (Sutton 1988), in plain Python: f64 [T, S]."""
    values, history = values.copy(), []
    for state, onward, reward in zip(states[:-1], states[1:], rewards, strict=True):
        values[state] += step_size * (reward + gamma * values[onward] - values[state])
        history.append(values.copy())
    return np.array(history)
