"""Long runs of markets: exit code 1 if memory grows or money is not accounted for.

    python -m benchmarks soak --minutes 15 --out benchmarks/results/cpu/soak.json
    python -m benchmarks soak --minutes 1
    python -m benchmarks soak --self-check

It runs a society on Chain under each mechanism, a deep market with births and deaths, and a wide market, for an equal
share of the time each. At ten points it reports the memory of the process after garbage collection, the number of live
arrays, and the money. ``drift`` is money in the accounts that no named flow explains, where flows are summed in float64
outside of the program; accounts in float32 are rounded, so some drift is expected, and it grows with the accounts.
``relative_drift`` is its absolute value over all money that was moved.

A market fails if

- an account is not finite, or an agent died of such an account;
- a call changed the money by more than its named flows and rounding explain. Each addition rounds
  an account by at most half an epsilon of the account, and each term rounds a sum of flows: the bound is
  ``eps / 2 * (updates of accounts * largest account + terms of a sum * money moved)``. Each call is checked
  separately, because accounts grow: in the first calls they are small, and a market that loses a hundredth of every
  sale exceeds the bound at once, whereas rounding in accounts of 10⁵ could hide such a loss;
- more arrays are alive at the last point than at the second, or the process has grown by more than 32 MB since then;
- a step takes four times as much processor time in the last third of the points as in the first.

``--self-check`` injects three faults into copies of a market and fails unless each is detected:
a hundredth of every sale is destroyed, one account becomes NaN, an array is kept alive in every call.
"""

import argparse
import functools
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import MECHANISMS, BidPolicy, Society, deep_market, environments, reset, rollout, wide_market
from jaxmarket import society as society_module
from jaxmarket.accounts import pay_sale
from jaxmarket.auctions import CREDIT_CONSERVING_VICKREY
from jaxmarket.deep_market import BidTables, Terms
from jaxmarket.policies import KumaraswamyHead, linear
from jaxmarket.types import Accounts, Array, PyTree, Transition, real
from jaxmarket.wide_market import Additive, SealedBids

INSTANCES = 8
POINTS = 10
TERMS = 32
GROWTH = 32.0  # MB that a process may grow by: an allocator's arenas
SLOWER = 4.0


class Soak(NamedTuple):
    """A market without an end, and the function that continues it."""

    state: PyTree
    # Compiled: the next state, and accounts, their change and the money moved.
    advance: Callable[[Array, PyTree], tuple[PyTree, dict[str, Array]]]
    steps: int  # auctions of a call; of a wide market, rounds
    updates: int  # the most updates of accounts in a call; each is rounded
    terms: int  # the most terms of a partial sum in ``change`` and ``moved``


def _partial(values: Array) -> Array:
    """Sums of `TERMS` values each; the host adds them up in float64."""
    return values.reshape(-1, TERMS).sum(1)


def society(mechanism: str) -> Soak:
    """Untrained bidders on Chain, without resets of the accounts."""
    env = environments.make("Chain-v0")[0]
    who = Society(env, BidPolicy(linear(16), KumaraswamyHead()), MECHANISMS[mechanism])
    params, length = who.init(jax.random.key(0)), 1024

    def roll(key: Array, state: PyTree) -> tuple[PyTree, Transition]:
        return rollout(who, key, params, state, env.default_params, length, bootstrap=False)

    @jax.jit
    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, rows = jax.vmap(roll)(jax.random.split(key, INSTANCES), state)
        return state, {
            "accounts": jnp.concatenate([state.accounts.wealth.reshape(-1), state.accounts.auctioneer]),
            "richest": state.accounts.wealth.max(),
            "change": _partial(rows.reward + rows.payout - rows.price),
            "moved": _partial(jnp.abs(rows.reward) + rows.payout + rows.price),
        }

    start = jax.jit(jax.vmap(lambda key: reset(who, key, env.default_params)[0]))
    steps = length * INSTANCES
    return Soak(start(jax.random.split(jax.random.key(1), INSTANCES)), advance, steps, updates=4 * steps, terms=TERMS)


def deep() -> Soak:
    """Agents with bid tables on Chain, with rent, deaths by bankruptcy, and births."""
    env = environments.make("Chain-v0")[0]
    market = deep_market.DeepMarket(env, BidTables(states=6, actions=2), capacity=16, instances=INSTANCES)
    terms, rounds, period = Terms(rent=0.01, endowment=0.5, bankruptcy=1e-3, max_idle_steps=200.0), 8, 64
    state = deep_market.init(market, jax.random.key(0), env.default_params)

    @jax.jit
    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, history = deep_market.run(
            market, key, state, env.default_params, terms, rounds=rounds, period=period, max_births=2
        )
        return state, {
            "accounts": jnp.concatenate([state.population.wealth, state.consumers]),
            "richest": state.population.wealth.max(),
            "change": history.flows.net,
            "moved": history.flows.moved,
            "born": state.population.count,
            "nonfinite": history.statistics.nonfinite_deaths.sum(),
        }

    steps = rounds * period * INSTANCES
    # Per step: a payment, a sale and a reward in each instance, and rent of every agent.
    updates = rounds * period * (3 * INSTANCES + market.capacity)
    return Soak(state, advance, steps, updates=updates, terms=period + INSTANCES + 10)


def wide() -> Soak:
    """Agents that buy four indivisible goods and transform them; rent and incomes limit the amount of money."""
    number, kinds, rounds = 8, 4, 512

    def produce(key: Array, agents: PyTree, world: PyTree, bundles: Array) -> wide_market.Produced:
        turned = jnp.roll(bundles, 1, axis=1)
        return wide_market.Produced(holdings=turned, reward=(agents * bundles).sum(1) / 10, world=world)

    market = wide_market.WideMarket(
        lambda taste, world: Additive(taste), produce, SealedBids(CREDIT_CONSERVING_VICKREY)
    )
    tastes = jax.random.uniform(jax.random.key(0), (number, kinds))
    state = wide_market.init(tastes, jnp.ones((number, kinds)), 10.0)

    @jax.jit
    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        state, history = wide_market.run(market, key, state, rounds=rounds, income=0.01, rent=0.05)
        flows = history.flows
        subsidy = flows["sale"].sum(1) + flows["purchase"].sum(1)
        external = [flows[name] for name in ("reward", "income", "rent")]
        return state, {
            "accounts": state.wealth,
            "richest": state.wealth.max(),
            "change": jnp.concatenate([_partial(x) for x in (*external, subsidy)]),
            "moved": jnp.concatenate([_partial(jnp.abs(x)) for x in (*external, flows["sale"])]),
            "goods": jnp.abs(state.holdings.sum() - number * kinds),
        }

    # Per round: an agent's payment, payout, reward, income and rent.
    return Soak(state, advance, rounds, updates=5 * number * rounds, terms=TERMS)


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
    """Run a market for some seconds, and yield its state at equally spaced points."""
    state, steps, began = some.state, 0, time.perf_counter()
    money = opening = named = moved = math.nan
    largest, key = 0.0, jax.random.key(2)
    told: dict[str, Any] = {}
    for point in range(points):
        calls, worst, nonfinite, spent, before = 0, 0.0, 0.0, time.process_time(), steps
        while calls < least or time.perf_counter() - began < seconds * (point + 1) / points:
            key, now = jax.random.split(key)
            state, told = some.advance(now, state)
            told = jax.device_get(told)
            accounts, change, moves = (np.float64(told.pop(name)) for name in ("accounts", "change", "moved"))
            held, size = accounts.sum(), np.abs(accounts).max()
            if math.isnan(opening):  # the first call gives the opening balance, because no earlier balance is known
                opening, named, moved = held, 0.0, 0.0
            else:
                named, moved = named + change.sum(), moved + moves.sum()
                rounding = some.updates * np.maximum(largest, size) + some.terms * moves.sum()
                allowed = np.finfo(real()).eps / 2 * rounding
                worst = np.maximum(worst, abs(held - money - change.sum()) / allowed)
            money, largest, calls, steps = held, size, calls + 1, steps + some.steps
            nonfinite += float((~np.isfinite(accounts)).sum()) + float(told.pop("nonfinite", 0.0))
        gc.collect()
        drift = money - opening - named
        yield {
            "steps": steps,
            "seconds": time.perf_counter() - began,
            "cpu_per_step": (time.process_time() - spent) / (steps - before),
            "resident_mb": resident(),
            "arrays": len(jax.live_arrays()),
            "money": money,
            "drift": drift,
            "relative_drift": abs(drift) / np.maximum(moved, 1e-30),
            "worst": float(worst),  # the largest unexplained change of money in a call, over what rounding explains
            "nonfinite": nonfinite,
            **{name: float(value) for name, value in told.items()},
        }


def failures(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The failures of a market, from its points; empty if there are none."""
    found, settled, last = [], rows[1], rows[-1]
    broken = next((row for row in rows if row["nonfinite"] > 0 or not math.isfinite(row["money"])), None)
    if broken is not None:
        found.append(f"an account was not finite before step {broken['steps']:,.0f}")
    # `not <=`: NaN fails.
    leak = next((row for row in rows if not row["worst"] <= 1), None)
    if leak is not None:
        found.append(
            f"before step {leak['steps']:,.0f} money changed in one call by {leak['worst']:.3g} times what its flows "
            "and rounding explain"
        )
    if not last.get("goods", 0.0) <= 1e-3:
        found.append(f"{last['goods']:.3g} goods appeared or disappeared")
    if last["arrays"] > settled["arrays"]:
        found.append(f"arrays alive grew from {settled['arrays']:.0f} to {last['arrays']:.0f}")
    if last["resident_mb"] > settled["resident_mb"] + GROWTH:
        found.append(f"memory grew from {settled['resident_mb']:.0f} to {last['resident_mb']:.0f} MB")
    third = max(1, (len(rows) - 1) // 3)
    costs = [row["cpu_per_step"] for row in rows[1:]]  # the first point compiles
    early, late = float(np.median(costs[:third])), float(np.median(costs[-third:]))
    if late > SLOWER * early:
        found.append(f"a step takes {late / early:.1f} times as much processor time as at the beginning")
    return found


def _burning(some: Soak) -> Soak:
    """Destroy a hundredth of every sale."""

    def burn(accounts: Accounts, *, payout: Array, **movement: Array) -> Accounts:
        return pay_sale(accounts, payout=0.99 * payout, **movement)

    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        with mock.patch.object(society_module, "pay_sale", burn):  # the first call traces it
            return some.advance(key, state)

    return some._replace(advance=advance)


def _poisoned(some: Soak) -> Soak:
    """One account becomes NaN in the fifth call."""
    calls = 0

    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        nonlocal calls
        calls += 1
        if calls == 5:
            wealth = state.accounts.wealth.at[0, 0].set(jnp.nan)
            state = state.replace(accounts=state.accounts.replace(wealth=wealth))
        return some.advance(key, state)

    return some._replace(advance=advance)


def _hoarding(some: Soak) -> Soak:
    """Keep an array alive in every call."""
    kept = []

    def advance(key: Array, state: PyTree) -> tuple[PyTree, dict[str, Array]]:
        kept.append(jnp.ones(16) * len(kept))
        return some.advance(key, state)

    return some._replace(advance=advance)


def self_check(seconds: float = 2.0) -> list[str]:
    """Run a correct market and three with faults; the errors of the harness, empty if there are none."""
    trials: dict[str, tuple[Callable[[Soak], Soak], str | None]] = {
        "no fault": (lambda some: some, None),
        "a hundredth of every sale destroyed": (_burning, "money changed"),
        "an account becomes NaN": (_poisoned, "not finite"),
        "an array kept alive in every call": (_hoarding, "arrays alive grew"),
    }
    wrong = []
    for name, (fault, expected) in trials.items():
        jax.clear_caches()  # cached programs would still contain the fault
        found = failures(list(soak(fault(society("ccv")), seconds)))
        noticed = not found if expected is None else any(expected in failure for failure in found)
        print(f"self-check, {name}: {'; '.join(found) or 'nothing found'}", flush=True)
        if not noticed:
            wrong.append(f"{name}: expected {expected or 'nothing'}, found {'; '.join(found) or 'nothing'}")
    return wrong


def last_growth(amount: float) -> float:
    """The smallest account, among powers of two, that a reward of ``amount`` does not change, because of rounding."""
    for exponent in range(1024):
        after = pay_sale(
            Accounts(jnp.full(1, 2.0**exponent, real()), jnp.zeros((), real())),
            buyer=jnp.zeros((), jnp.int32),
            seller=jnp.full((), -1, jnp.int32),
            price=jnp.zeros((), real()),
            payout=jnp.zeros((), real()),
            reward=jnp.asarray(amount, real()),
        )
        if float(after.wealth[0]) == 2.0**exponent:
            return 2.0**exponent
    return float("inf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="minutes for all markets together")
    parser.add_argument("--only", nargs="*", choices=list(SOAKS), default=list(SOAKS), help="markets; all by default")
    parser.add_argument("--x64", action="store_true", help="accounts in float64")
    parser.add_argument("--out", type=Path, help="a JSON file for all points")
    parser.add_argument("--self-check", action="store_true", help="inject faults; fail unless each is detected")
    given = parser.parse_args(arguments)
    if given.self_check:
        return _finish(self_check())
    jax.config.update("jax_enable_x64", given.x64)
    report: dict[str, Any] = {"minutes": given.minutes, "x64": given.x64, "markets": {}, "failures": []}
    print(
        f"{'market':18s}{'steps':>14s}{'MB':>9s}{'arrays':>8s}{'money':>14s}{'richest':>13s}{'drift':>12s}{'relative':>10s}{'worst':>8s}"
    )
    for name in given.only:
        rows = []
        for row in soak(SOAKS[name](), 60 * given.minutes / len(given.only)):
            rows.append(row)
            print(
                f"{name:18s}{row['steps']:14,.0f}{row['resident_mb']:9.1f}{row['arrays']:8.0f}{row['money']:14,.1f}"
                f"{row['richest']:13,.1f}{row['drift']:12.3g}{row['relative_drift']:10.1e}{row['worst']:8.2g}",
                flush=True,
            )
        report["markets"][name] = rows
        report["failures"] += [f"{name}: {failure}" for failure in failures(rows)]
    report["last_growth"] = {f"{amount:g}": last_growth(amount) for amount in (1e-3, 1e-2, 0.1, 0.8)}
    print("smallest account that a reward of this amount does not change:", report["last_growth"])
    report["versions"] = {"jax": jax.__version__, "numpy": np.__version__}
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return _finish(report["failures"])


def _finish(wrong: Sequence[str]) -> int:
    """Print the failures; returns 1, or 0 if there are none."""
    for failure in wrong:
        print(f"FAILED: {failure}", file=sys.stderr)
    return int(bool(wrong))
