"""Training by profit, compared with `jax.value_and_grad` and Optax on the same network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.timing import Report, measure
from jaxmarket.networks import FirmMarket, from_linen
from jaxmarket.networks.firm_methods import NETWORKS, value
from jaxmarket.types import Array, PyTree
from jaxmarket.view.tables import progress

__all__ = ["programs", "run"]

BATCH = 256
_OPTIMIZER = optax.adam(1e-3)


def programs(network: str, steps: int, batch: int = BATCH) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Training steps of a network, each on all of one batch, in three programs.

    Args:
        network: of `NETWORKS`.
        steps: number of steps in a call.
        batch: examples per step.

    Returns:
        By name, functions and their arguments: ``backpropagation``; ``firms``; and ``firms with accounts``, which also
        return, for every step, sales, purchases and rent of every firm, what consumers pay and what suppliers receive.
    """
    module = NETWORKS[network]
    x = jax.random.normal(jax.random.key(0), (batch, 64))
    labels = jax.random.randint(jax.random.key(1), (batch,), 0, 10)
    params = module.init(jax.random.key(2), x)["params"]
    market = from_linen(module, {"params": params}, x, optimizers=_OPTIMIZER)

    def loss(params: PyTree, x: Array, labels: Array) -> Array:
        return -value(jnp.asarray(module.apply({"params": params}, x)), labels)

    def descend(params: PyTree, x: Array, labels: Array) -> tuple[PyTree, Array]:
        def step(carry: Any, _: None) -> tuple[Any, Array]:
            params, state = carry
            lost, gradient = jax.value_and_grad(loss)(params, x, labels)
            updates, state = _OPTIMIZER.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), lost

        carry, values = jax.lax.scan(step, (params, _OPTIMIZER.init(params)), length=steps)
        return carry[0], values

    def trade(accounts: bool, market: FirmMarket = market) -> Callable[..., Any]:
        def call(params: PyTree, x: Array, labels: Array) -> tuple[PyTree, Any]:
            def step(state: Any, _: None) -> tuple[Any, Any]:
                state, done = market.step(state, (x,), lambda logits: value(logits, labels))
                money = (done.accounts, done.paid_by_consumers, done.paid_to_suppliers) if accounts else ()
                return state, (done.welfare, money)

            state, kept = jax.lax.scan(step, market.init(params), length=steps)
            return market.params(state), kept

        return call

    arguments = (params, x, labels)
    return {
        "backpropagation": (descend, arguments),
        "firms": (trade(False), arguments),
        "firms with accounts": (trade(True), arguments),
    }


def run(quick: bool = False) -> Report:
    """Time all programs of all networks."""
    report = Report("firms")
    steps = 2 if quick else 50
    rows = report.tables["µs per training step"] = []
    with progress("firms", unit="networks") as show:
        for done, network in enumerate(NETWORKS):
            show(done, len(NETWORKS), network)
            timings = measure(programs(network, steps, 16 if quick else BATCH))
            report.keep(network, timings)
            first = timings["backpropagation"]
            row: dict[str, Any] = {"network": network}
            for name, timing in timings.items():
                row[name] = 1e6 * timing.median / steps
                if name != "backpropagation":
                    row[f"{name}, ratio"] = timing.median / first.median
                    row[f"{name}, compilation"] = timing.compile_seconds / first.compile_seconds
            rows.append(row)
        show(len(NETWORKS), len(NETWORKS))
    report.headline = {
        "ratio_firms": max(row["firms, ratio"] for row in rows),
        "ratio_accounts": max(row["firms with accounts, ratio"] for row in rows),
    }
    report.notes.append(
        f"Adam, {BATCH} examples per step; ratios to backpropagation in the same run, the largest are in the summary"
    )
    report.notes.append("compilation: seconds relative to backpropagation, tracing included")
    return report
