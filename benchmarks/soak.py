"""Markets that run for very long: memory that stays what it was, and books that go on adding up.

    python benchmarks/soak.py --minutes 15 --out benchmarks/results/cpu/soak.json

A society on Chain under each mechanism, a deep market with births and deaths, and a wide market, each for its share of
the time. At ten points: the process's memory after garbage collection, the arrays alive, and the money. ``drift`` is
money in the accounts that no named flow explains, with flows added up in float64 outside; in float32 accounts some is
rounding, and it grows with the accounts. ``lost`` is the same over all money that was moved.
"""

import argparse
import functools
import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import MECHANISMS, BidPolicy, Society, deep_market, environments, goods, reset, rollout
from jaxmarket.auctions import CREDIT_CONSERVING_VICKREY
from jaxmarket.equilibria import SealedBids
from jaxmarket.languages import Tables
from jaxmarket.policies import KumaraswamyHead, linear
from jaxmarket.population import Terms
from jaxmarket.settlement import transfer
from jaxmarket.types import Array, PyTree, Transition, real
from jaxmarket.valuations import Additive

INSTANCES = 8
POINTS = 10


class Soak(NamedTuple):
    """A market that can go on for ever."""

    state: PyTree
    advance: Callable[[Array, PyTree], tuple[PyTree, dict[str, Array]]]  # compiled: money, its change, what moved
    steps: int  # auctions (a wide market's: rounds) of a call


def society(mechanism: str) -> Soak:
    """Untrained bidders on Chain; nobody is ever reset."""
    env = environments.make("Chain-v0")[0]
    who = Society(env, BidPolicy(linear(16), KumaraswamyHead()), MECHANISMS[mechanism])
    params, length = who.init(jax.random.key(0)), 1024

    def roll(key: Array, state: PyTree) -> tuple[PyTree, Transition]:
        return rollout(who, key, params, state, env.default_params, length, shadow=False)

    @jax.jit
    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, rows = jax.vmap(roll)(jax.random.split(key, INSTANCES), state)
        return state, {
            "money": state.wealth.sum() + state.house.sum(),
            "richest": state.wealth.max(),
            "change": (rows.reward + rows.resale - rows.price).sum(),
            "moved": (jnp.abs(rows.reward) + rows.resale + rows.price).sum(),
        }

    start = jax.jit(jax.vmap(lambda key: reset(who, key, env.default_params)[0]))
    return Soak(start(jax.random.split(jax.random.key(1), INSTANCES)), advance, length * INSTANCES)


def deep() -> Soak:
    """Tables on Chain that pay rent, die poor, and are born."""
    env = environments.make("Chain-v0")[0]
    market = deep_market.DeepMarket(env, Tables(states=6, actions=2), capacity=16, instances=INSTANCES)
    terms, rounds, period = Terms(rent=0.01, allowance=0.5, bankruptcy=1e-3, patience=200.0), 8, 64
    state = deep_market.open_market(market, jax.random.key(0), env.default_params)

    @jax.jit
    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, history = deep_market.run(
            market, key, state, env.default_params, terms, rounds=rounds, period=period, cradles=2
        )
        return state, {
            "money": deep_market.money(state),
            "richest": state.population.wealth.max(),
            "change": history.books.net.sum(),
            "moved": history.books.moved.sum(),
            "born": state.population.count,
        }

    return Soak(state, advance, rounds * period * INSTANCES)


def wide() -> Soak:
    """Agents that bid for four indivisible goods, and get others for them; rent and incomes keep money in bounds."""
    number, kinds, rounds = 8, 4, 512

    def produce(key: Array, agents: PyTree, world: PyTree, bundles: Array) -> goods.Produced:
        turned = jnp.roll(bundles, 1, axis=1)
        return goods.Produced(holdings=turned, reward=(agents * bundles).sum(1) / 10, world=world)

    market = goods.WideMarket(lambda taste, world: Additive(taste), produce, SealedBids(CREDIT_CONSERVING_VICKREY))
    tastes = jax.random.uniform(jax.random.key(0), (number, kinds))
    state = goods.open_market(tastes, jnp.ones((number, kinds)), 10.0)

    @jax.jit
    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, history = goods.run(market, key, state, rounds=rounds, income=0.01, rent=0.05)
        b = history.books
        return state, {
            "money": state.wealth.sum(),
            "richest": state.wealth.max(),
            "change": b.reward.sum() + b.income.sum() - b.rent.sum() + b.subsidy.sum(),
            "moved": b.reward.sum() + b.income.sum() + b.rent.sum() + b.sale.sum(),
            "goods": jnp.abs(state.holdings.sum() - number * kinds),
        }

    return Soak(state, advance, rounds)


SOAKS: dict[str, Callable[[], Soak]] = {
    **{f"society {name}": functools.partial(society, name) for name in MECHANISMS},
    "deep market": deep,
    "wide market": wide,
}


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(some: Soak, seconds: float, points: int = POINTS, least: int = 2) -> Iterator[dict[str, float]]:
    """Go on for so long, and say at so many points how things stand."""
    state, steps, began = some.state, 0, time.perf_counter()
    money = booked = moved = 0.0
    opening, key = None, jax.random.key(2)
    found: dict[str, float] = {}
    for point in range(points):
        calls = 0
        while calls < least or time.perf_counter() - began < seconds * (point + 1) / points:
            key, now = jax.random.split(key)
            state, told = some.advance(now, state)
            found = {name: float(value) for name, value in jax.device_get(told).items()}
            if opening is None:  # the first call is the opening balance: whatever was there before is not known
                opening = found["money"]
            else:
                booked, moved = booked + found["change"], moved + found["moved"]
            money, calls, steps = found["money"], calls + 1, steps + some.steps
        gc.collect()
        drift = money - (opening or 0.0) - booked
        extra = {name: value for name, value in found.items() if name not in ("money", "change", "moved")}
        yield {
            "steps": steps,
            "seconds": time.perf_counter() - began,
            "resident_mb": resident(),
            "arrays": len(jax.live_arrays()),
            "money": money,
            "drift": drift,
            "lost": abs(drift) / max(moved, 1e-30),
            **extra,
        }


def last_growth(amount: float) -> float:
    """The least account, among powers of two, that a reward of that amount no longer changes."""
    for exponent in range(1024):
        wealth, _ = transfer(
            jnp.full(1, 2.0**exponent, real()),
            jnp.zeros((), real()),
            buyer=jnp.zeros((), jnp.int32),
            seller=jnp.full((), -1, jnp.int32),
            price=jnp.zeros((), real()),
            resale=jnp.zeros((), real()),
            reward=jnp.asarray(amount, real()),
        )
        if float(wealth[0]) == 2.0**exponent:
            return 2.0**exponent
    return float("inf")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--only", nargs="*", choices=list(SOAKS), default=list(SOAKS))
    parser.add_argument("--x64", action="store_true", help="accounts in float64")
    parser.add_argument("--out", type=Path, help="a JSON file for all points")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", given.x64)
    report: dict[str, Any] = {"minutes": given.minutes, "x64": given.x64, "markets": {}}
    print(
        f"{'market':18s}{'steps':>14s}{'MB':>9s}{'arrays':>8s}{'money':>14s}{'richest':>13s}{'drift':>12s}{'lost':>10s}"
    )
    for name in given.only:
        rows = []
        for row in soak(SOAKS[name](), 60 * given.minutes / len(given.only)):
            rows.append(row)
            print(
                f"{name:18s}{row['steps']:14,.0f}{row['resident_mb']:9.1f}{row['arrays']:8.0f}{row['money']:14,.1f}"
                f"{row['richest']:13,.1f}{row['drift']:12.3g}{row['lost']:10.1e}",
                flush=True,
            )
        report["markets"][name] = rows
    report["last_growth"] = {f"{amount:g}": last_growth(amount) for amount in (1e-3, 1e-2, 0.1, 0.8)}
    print("a reward no longer changes an account of:", report["last_growth"])
    report["versions"] = {"jax": jax.__version__, "numpy": np.__version__}
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
