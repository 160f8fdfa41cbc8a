"""Measurements of frozen populations, exact where every input, every place or every first state is sold to them.

And classifier rules as text, and which of them are optimal for a multiplexer.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmarket.deep_market.demographics import Population, Terms
from jaxmarket.deep_market.market import DeepMarket, forward
from jaxmarket.deep_market.representations import WILDCARD
from jaxmarket.deep_market.teams import success_rate
from jaxmarket.environments.adapter import Adapter
from jaxmarket.environments.mazes import Maze, MazeState
from jaxmarket.environments.memory import Memory
from jaxmarket.environments.multiplexer import Multiplexer, MultiplexerState
from jaxmarket.environments.tmaze import TMaze
from jaxmarket.types import Array, PyTree, real

__all__ = [
    "Trace",
    "accuracy",
    "actor",
    "episode_limit",
    "episodes",
    "every_episode",
    "first_states",
    "is_optimal",
    "mean_steps",
    "optimal_rules",
    "place_prices",
    "policy",
    "reliable_size",
    "richest_rules",
    "rule_string",
    "success_by_size",
    "walk",
]

_LISTED = 11  # bits of which `accuracy` asks all inputs


def accuracy(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Share of inputs that the frozen population answers correctly, and share that it answers: f [] each.

    Of up to `_LISTED` bits all 2^n inputs are asked, of more bits 2^`_LISTED` random ones.
    """
    env: Multiplexer = market.env.env
    if env.bits <= _LISTED:
        bits = jnp.asarray(list(itertools.product((0, 1), repeat=env.bits)), jnp.int32)
    else:
        key, key_bits = jax.random.split(key)
        bits = jax.random.bernoulli(key_bits, shape=(2**_LISTED, env.bits)).astype(jnp.int32)
    states = MultiplexerState(bits=bits, time=jnp.zeros(len(bits), jnp.int32))
    params = market.env.default_params
    outcome, _, action = forward(market, key, population, bits.astype(real()), states, params, terms)
    sold = outcome.winner >= 0
    return {"right": (sold & (action == env.answer(bits))).mean(), "answered": sold.mean()}


def policy(market: DeepMarket, key: Array, population: Population, terms: Terms) -> tuple[Array, Array, Array]:
    """The auction of every place of a `Maze` in the frozen population, in the order of `Maze.places`.

    Returns:
        Whether any agent bids, bool [S], the price f [S], and the winner's move i32 [S].
    """
    maze: Maze = market.env.env
    params, places = maze.default_params, len(maze.places)
    states = MazeState(index=jnp.arange(places, dtype=jnp.int32), time=jnp.zeros(places, jnp.int32))
    outcome, price, action = forward(market, key, population, params.views, states, params, terms)
    return outcome.winner >= 0, price, action


def place_prices(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """`policy` as measurements by name, bool, f and i32 [S], and the ``steps`` to food of `mean_steps`, f []."""
    sold, price, moves = policy(market, key, population, terms)
    return {"sold": sold, "price": price, "moves": moves, "steps": _steps_to_food(market, sold, moves).mean()}


def walk(successors: Array, food: Array, starts: Array, moves: Array, limit: int) -> Array:
    """Steps to food from every start, ``limit`` if it is not reached within them: f [n].

    Args:
        successors: i32 [S, moves], the place that each move leads to.
        food: bool [S].
        starts: i32 [n].
        moves: i32 [S], the move made in each place.
        limit: maximum number of steps.
    """
    after = jnp.take_along_axis(successors, moves[:, None], 1)[:, 0]

    def step(at: Array, _: None) -> tuple[Array, Array]:
        at = jnp.where(food[at], at, after[at])
        return at, ~food[at]

    _, walking = jax.lax.scan(step, starts, None, limit)
    return jnp.minimum(1 + walking.sum(0), limit).astype(real())


def mean_steps(market: DeepMarket, key: Array, population: Population, terms: Terms) -> dict[str, Array]:
    """Mean steps to food over all starts of a `Maze`, and the share of starts that reach it within the time limit.

    A start that does not reach food counts as the limit. A place without bids leads to itself.
    """
    sold, _, moves = policy(market, key, population, terms)
    steps = _steps_to_food(market, sold, moves)
    return {"steps": steps.mean(), "fed": (steps < market.env.env.limit).mean()}


def _steps_to_food(market: DeepMarket, sold: Array, moves: Array) -> Array:
    """Steps to food from every start: f [starts]; a place without bids leads to itself."""
    maze: Maze = market.env.env
    params = maze.default_params
    stay = jnp.arange(len(maze.places), dtype=jnp.int32)[:, None]
    successors = jnp.where(sold[:, None], params.successors, stay)
    return walk(successors, params.food, params.starts, moves, maze.limit)


def actor(market: DeepMarket, population: Population, terms: Terms) -> Callable[[Array, Array], Array]:
    """The actions of the highest bidders: ``(key, obs f [B, ...]) -> i32 [B]``.

    The bids of the representation must depend on observations only, and not on the state of the environment.
    """
    return lambda key, obs: forward(market, key, population, obs, None, None, terms)[2]


def success_by_size(
    act: Callable[[Array, Array], Array], key: Array, env: Adapter, sizes: Sequence[int], instances: int
) -> Array:
    """Share of new instances of `BlocksWorld` that are solved within its limit, for each number of blocks: f [sizes].

    Args:
        act: ``(key, obs) -> i32 [instances]``, such as `actor`.
        key: a PRNG key; consumed.
        env: a `BlocksWorld` whose capacity is at least the largest size.
        sizes: numbers of blocks.
        instances: of each size; static.
    """

    def success(each: tuple[Array, Array]) -> Array:
        key, size = each
        return success_rate(act, key, env, env.default_params.replace(sizes=size[None]), instances)[0]

    return jax.lax.map(success, (jax.random.split(key, len(sizes)), jnp.asarray(sizes)))


def reliable_size(success: np.ndarray, sizes: Sequence[int], rate: float) -> np.ndarray:
    """The largest size up to which all sizes are solved at a rate: i [...], 0 if not even the first one is.

    Args:
        success: f [..., sizes], as from `success_by_size`.
        sizes: increasing.
        rate: the share of instances, in [0, 1].
    """
    return np.array([0, *sizes])[np.cumprod(success >= rate, axis=-1).sum(-1)]


class Trace(struct.PyTreeNode):
    """Episodes of a frozen population, leaves [steps, n, ...]."""

    obs: Array  # f observation of the state for sale
    winner: Array  # i32 slot of the buyer, or NOBODY
    price: Array  # f of the state
    action: Array  # i32
    reward: Array  # f 0 after the end of the episode
    over: Array  # bool whether the episode had ended before

    def rows(self, names: Sequence[str]) -> list[tuple[str, "Trace"]]:
        """The steps of one episode after another, each with the name of its episode; leaves [...].

        Args:
            names: of the n episodes.
        """
        return [
            (name, jax.tree.map(lambda leaf, at=(step, episode): leaf[at], self))
            for episode, name in enumerate(names)
            for step in range(len(self.over))
            if not self.over[step, episode]
        ]


def episodes(
    market: DeepMarket, key: Array, population: Population, terms: Terms, states: PyTree, obs: Array, steps: int
) -> Trace:
    """One episode of the frozen population from each of n states, with the same random draws at the same step.

    Ties, and states without bids, are therefore decided in the same way in all episodes: a population is a function of
    observation and time.

    Args:
        market, population, terms: as in `deep_market.forward`.
        key: a PRNG key; consumed.
        states: of the environment with its default parameters, leaves [n, ...].
        obs: their observations f [n, ...].
        steps: length of the episodes; static.
    """
    env, params = market.env, market.env.default_params

    def step(carry: tuple[PyTree, Array, Array], key: Array) -> tuple[tuple[PyTree, Array, Array], Trace]:
        states, obs, over = carry

        def sell(obs: Array, state: PyTree) -> PyTree:
            alone = jax.tree.map(lambda leaf: leaf[None], state)
            sold = forward(market, key, population, obs[None], alone, params, terms)
            return jax.tree.map(lambda leaf: leaf[0], sold)

        outcome, price, action = jax.vmap(sell)(obs, states)
        after = jax.vmap(env.step, (None, 0, 0, None))(key, states, action, params)
        trace = Trace(obs, outcome.winner, price, action, jnp.where(over, 0, after.reward), over)
        return (after.env_state, after.obs, over | after.terminated | after.truncated), trace

    _, trace = jax.lax.scan(step, (states, obs, jnp.zeros(len(obs), bool)), jax.random.split(key, steps))
    return trace


def first_states(env: Adapter) -> tuple[PyTree, Array, tuple[str, ...]]:
    """All states in which episodes begin, of a `Maze`, a `TMaze` or gymnax's ``MemoryChain`` with one bit of context.

    Args:
        env: one of these environments, or one in `Memory`.

    Returns:
        States, leaves [n, ...]; observations f [n, ...]; their names.
    """
    world: Any = env.env
    if isinstance(world, Memory):
        states, obs, names = first_states(world.adapter)
        obs, states = jax.vmap(world.cleared)(obs, states)
        return states, obs, names
    if isinstance(world, Maze):
        states, names = world.first_states(), tuple(f"from {cell}" for cell in world.starts)
    elif isinstance(world, TMaze):
        states, names = world.first_states(), world.starts
    else:
        _, state = world.reset_env(jax.random.key(0), world.default_params)
        contexts, names = jnp.asarray([[0], [1]], jnp.int32), ("context -1", "context 1")
        states = jax.vmap(lambda context: state.replace(context=context))(contexts)
    obs = jax.vmap(lambda state: world.get_obs(state, world.default_params))(states)
    return states, obs.astype(real()), names


def episode_limit(env: Adapter) -> int:
    """The length of the longest episode of an environment that `first_states` accepts."""
    world: Any = env.env.adapter.env if isinstance(env.env, Memory) else env.env
    return world.limit if isinstance(world, Maze | TMaze) else int(world.default_params.memory_length) + 1


def every_episode(market: DeepMarket, key: Array, population: Population, terms: Terms) -> Trace:
    """`episodes` of the frozen population from all `first_states`, until their time limit."""
    states, obs, _ = first_states(market.env)
    return episodes(market, key, population, terms, states, obs, episode_limit(market.env))


def rule_string(condition: Any, action: Any, groups: tuple[int, ...]) -> str:
    """A rule in the usual notation, ``01 #1## : 1``; ``groups`` are lengths of the parts of the condition."""
    symbols = "".join("#" if c == WILDCARD else str(int(c)) for c in condition)
    ends = list(itertools.accumulate(groups))
    return " ".join(symbols[end - size : end] for size, end in zip(groups, ends, strict=True)) + f" : {int(action)}"


def is_optimal(condition: Any, action: Any, address: int) -> bool:
    """Whether a rule of the multiplexer is one of the 2 · 2^address correct rules that are maximally general.

    Such a rule specifies the address and the data bit at this address, ignores all other bits, and answers that bit.
    """
    head, data = [int(c) for c in condition[:address]], [int(c) for c in condition[address:]]
    if WILDCARD in head:
        return False
    where = functools.reduce(lambda number, bit: 2 * number + bit, head, 0)
    others = data[:where] + data[where + 1 :]
    return data[where] == int(action) and all(c == WILDCARD for c in others)


def richest_rules(population: Population, most: int | None = None) -> list[tuple[tuple[int, ...], int, float, int]]:
    """The distinct classifier rules of living agents, the richest first; wealth is that of all copies.

    Args:
        population: of one seed, with NumPy leaves.
        most: number of rules; all by default.

    Returns:
        Condition, action, wealth and number of copies of each.
    """
    wealth: dict[tuple[tuple[int, ...], int], float] = {}
    copies: dict[tuple[tuple[int, ...], int], int] = {}
    agents = population.agents
    for slot in np.flatnonzero(population.alive):
        rule = tuple(int(symbol) for symbol in agents.condition[slot]), int(agents.action[slot])
        wealth[rule] = wealth.get(rule, 0.0) + float(population.wealth[slot])
        copies[rule] = copies.get(rule, 0) + 1
    return [(*rule, wealth[rule], copies[rule]) for rule in sorted(wealth, key=lambda rule: -wealth[rule])[:most]]


def optimal_rules(population: Population, address: int) -> set[str]:
    """The optimal rules of the multiplexer that living agents have."""
    return {
        rule_string(condition, action, (address, 2**address))
        for condition, action, *_ in richest_rules(population)
        if is_optimal(condition, action, address)
    }
