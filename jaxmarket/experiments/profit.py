"""Networks trained by profit: equal to backpropagation, with old prices, in two processes, and with priced units.

`jaxmarket.networks.firm_methods` has the networks and their training.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import optax

from jaxmarket.deep_market.layer_market import BACKPROPAGATION, LayerStructure, activations, logits
from jaxmarket.deep_market.layer_methods import BATCH, train
from jaxmarket.experiments.claims import Claim, at, every_seed, separated, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.results import Results
from jaxmarket.keys import key_of
from jaxmarket.networks import FirmMarket, Plant
from jaxmarket.networks import firm_methods as firms
from jaxmarket.runs.curves import first_reach, reached_by
from jaxmarket.runs.estimates import interquartile_mean, mean
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT"]

_CURVES = {"firms": "SGD", "SGD": "SGD", "hybrid": "hybrid", "capitalism": "capitalism"}
"""What is trained on the two-layer network of `capitalism`, and the method there."""
_DELAYS = (0, 1, 2, 4, 8, 16)
_RATE = 0.3
"""Learning rate of the firms whose prices are old; a third of it is measured, too."""
_WINDOWS = (1, 4)
_RENTS = (0.02, 0.05, 0.1, 0.2, 0.3)
_STEP_SIZES = (0.1, 0.01, 0.001)
_GOAL = 0.95


def _chosen(scope: Scope, values: Iterable[Any]) -> list[Any]:
    """The values, or, in a quick run, the first and the last of them."""
    values = list(values)
    return values[:: max(1, len(values) - 1)] if scope.quick else values


def _late(delay: int, aware: bool = False, rate: float = _RATE) -> str:
    return f"delay {delay}, rate {rate:g}" + (", shorter steps" if aware else "")


# --- conditions


def _conditions(scope: Scope) -> list[Condition]:
    lots, steps, wide = (2048, 400, 2000) if scope.quick else (49152, 4000, 16_000)
    compared = [
        Compute(f"{network}, {optimizer}", functools.partial(firms.compare_with_backpropagation, network, optimizer))
        for network in _chosen(scope, firms.NETWORKS)
        for optimizer in _chosen(scope, firms.OPTIMIZERS)
    ]
    curves = [Compute(name, functools.partial(_curve, name, scope.seed, lots)) for name in _CURVES]
    late = [
        Compute(_late(delay, aware, rate), functools.partial(firms.train_late, delay, aware, rate, steps=steps))
        for rate in (_RATE, _RATE / 3)
        for delay in _chosen(scope, _DELAYS)
        for aware in ((False, True) if delay and rate == _RATE else (False,))
    ]
    apart = [
        Compute(f"two processes, window {window}", functools.partial(firms.train_apart, window, _RATE / 3, steps=steps))
        for window in _WINDOWS
    ]
    priced = []
    for rent in _chosen(scope, _RENTS):
        name = f"rent {rent:g}"
        priced += [
            Compute(name, functools.partial(firms.train_priced, rent, steps=wide)),
            Compute(f"{name}, pruned", functools.partial(firms.train_pruned, steps=wide), (name,)),
            Compute(f"{name}, narrow", functools.partial(firms.train_narrow, steps=wide), (name,)),
            Compute(f"{name}, entry", functools.partial(firms.train_priced, rent, steps=wide, entry=True)),
        ]
    routed = [
        Compute(f"routing, step {size:g}", functools.partial(firms.route, size)) for size in _chosen(scope, _STEP_SIZES)
    ]
    return [*compared, *curves, *late, *apart, *priced, *routed]


def profit_gradient(weights: tuple[Array, Array], structure: LayerStructure, x: Array, labels: Array) -> Any:
    """The gradient of `layer_market.cross_entropy`, as two firms with the layers of that network find it."""
    market = FirmMarket(
        plants=(
            Plant("hidden", lambda w, x: (activations(w, structure, x),), ("x",), ("h",)),
            Plant("readout", lambda w, h: (logits(w, h),), ("h",), ("y",)),
        ),
        buys=("x",),
        sells=("y",),
        optimizers=optax.identity(),
    )
    trade = market.trade(dict(zip(market.firms, weights, strict=True)), (x,), lambda y: firms.value(y, labels))
    return tuple(-trade.marginal_profits[firm] for firm in market.firms)


def _curve(name: str, seed: int, lots: int, keys: Array) -> Arrays:
    """Held-out accuracy of a method of `capitalism`; ``firms`` is SGD whose gradients are marginal profits."""
    gradient = profit_gradient if name == "firms" else BACKPROPAGATION
    trained = train(_CURVES[name], key_of(seed), seeds=len(keys), lots=lots, gradient=gradient)
    return {"examples": trained.lots * BATCH, "accuracy": trained.accuracy}


# --- claims


def _last(condition: str) -> at:
    return at(condition, "final accuracy")


def _claims(scope: Scope) -> list[Claim]:
    rents, delays, networks = (_chosen(scope, values) for values in (_RENTS, _DELAYS, firms.NETWORKS))
    apart = [f"two processes, window {window}" for window in _WINDOWS]
    one = _last(_late(0, rate=_RATE / 3))
    smallest = at(f"routing, step {_STEP_SIZES[-1]:g}", "error")
    return [
        *(
            every_seed(
                f"after 100 steps the parameters of the {network} equal those of Flax and Optax to 1e-6 "
                f"({', '.join(_chosen(scope, firms.OPTIMIZERS))})",
                functools.partial(_largest, network, "difference"),
                at_most=1e-6,
            )
            for network in networks
        ),
        every_seed(
            "what firms receive and pay adds up to the consumers' payments in every step",
            lambda results: np.max([_largest(network, "residual", results) for network in networks], 0),
            at_most=1e-5,
        ),
        every_seed(
            "the accuracy of firms is that of SGD at every measurement, within one held-out image",
            lambda results: abs(results["firms"]["accuracy"] - results["SGD"]["accuracy"]).max(0),
            at_most=1 / 359 + 1e-9,
        ),
        *(
            separated(f"firms that ascend their profit are more accurate than {arm}", _last("firms"), _last(arm))
            for arm in ("hybrid", "capitalism")
        ),
        *(
            within(
                f"with prices {delay} steps old and shorter steps, accuracy is within .01 of that without delay",
                lambda results, delay=delay: _last(_late(delay, True))(results) - _last(_late(0))(results),
                at_least=-0.01,
                estimate=mean,
            )
            for delay in delays[1:]
        ),
        separated(
            "with prices 16 steps old, shorter steps are more accurate than equal steps",
            _last(_late(16, True)),
            _last(_late(16)),
        ),
        *(
            within(
                f"{name}: accuracy is within .01 of one process",
                lambda results, name=name: _last(name)(results) - one(results),
                at_least=-0.01,
                at_most=0.01,
                estimate=mean,
            )
            for name in apart
        ),
        every_seed(
            "a higher rent leaves fewer neurons",
            lambda results: np.max(np.diff([results[f"rent {rent:g}"]["units"] for rent in rents], axis=0), 0),
            at_most=0,
        ),
        *(
            within(
                f"at rent {rent:g} accuracy is at most .005 below that of magnitude pruning to as many neurons",
                lambda results, name=f"rent {rent:g}": _last(name)(results) - _last(f"{name}, pruned")(results),
                at_least=-0.005,
                estimate=mean,
            )
            for rent in rents
        ),
        every_seed(
            f"routing: with steps of {_STEP_SIZES[-1]:g} welfare rises at Σ y² Var(a), within 1% in every step",
            smallest,
            at_most=0.01,
        ),
    ]


def _largest(network: str, name: str, results: Results) -> np.ndarray:
    optimizers = _chosen(results.scope, firms.OPTIMIZERS)
    return np.max([results[f"{network}, {optimizer}"][name] for optimizer in optimizers], 0)


def _final(result: Arrays) -> np.ndarray:
    """The last accuracy of each seed, of a curve f [T, seeds] or a vector f [seeds]."""
    accuracy = np.asarray(result["accuracy"])
    return accuracy[-1] if accuracy.ndim == 2 else accuracy


# --- tables and figures


def _comparison_rows(results: Results) -> Iterator[dict[str, Any]]:
    for network in _chosen(results.scope, firms.NETWORKS):
        for optimizer in _chosen(results.scope, firms.OPTIMIZERS):
            found = results[f"{network}, {optimizer}"]
            row = {name: f"{found[name].max():.1e}" for name in ("difference", "residual")}
            yield {"network": network, "optimizer": optimizer, **row, "moved": f"{found['moved'].min():.1e}"}


def _curve_rows(results: Results) -> Iterator[dict[str, Any]]:
    for name in _CURVES:
        found = results[name]
        reached = reached_by(first_reach(found["accuracy"], 0.9, found["examples"]))
        yield {"training": name, "accuracy": interquartile_mean(_final(found)), "examples to .9": reached}


def _late_rows(results: Results) -> Iterator[dict[str, Any]]:
    names = [name for name in results if name.startswith(("delay", "two processes"))]
    for name in names:
        found = results[name]
        reached = reached_by(first_reach(found["accuracy"], _GOAL, found["steps"])) if len(found["steps"]) > 1 else None
        yield {"prices": name, "accuracy": interquartile_mean(_final(found)), f"steps to {_GOAL}": reached}


def _priced_rows(results: Results) -> Iterator[dict[str, Any]]:
    for rent in _chosen(results.scope, _RENTS):
        name = f"rent {rent:g}"
        row = {"rent": rent, "neurons": interquartile_mean(results[name]["units"])}
        for column, suffix in (("priced", ""), ("pruned", ", pruned"), ("narrow", ", narrow")):
            row[column] = interquartile_mean(_final(results[name + suffix]))
        entered = results[f"{name}, entry"]
        yield row | {
            "with entry": interquartile_mean(_final(entered)),
            "its neurons": interquartile_mean(entered["units"]),
        }


def _routing_rows(results: Results) -> Iterator[dict[str, Any]]:
    for size in _chosen(results.scope, _STEP_SIZES):
        error = results[f"routing, step {size:g}"]["error"]
        yield {"step size": size, "largest error": f"{error.max():.1e}", "median error": f"{np.median(error):.1e}"}


def _draw_curves(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=7.0, height=4.2)
    curves = {name: (results[name]["examples"], results[name]["accuracy"]) for name in reversed(_CURVES)}
    plotting.draw_accuracy(ax, curves, chance=0.1)
    return fig


def _draw_late(results: Results) -> Any:
    fig, (left, right) = plotting.figure(2, width=5.0, height=3.6)
    delays = _chosen(results.scope, _DELAYS)
    arms = {
        f"rate {_RATE:g}": [_late(delay) for delay in delays],
        f"rate {_RATE / 3:g}": [_late(delay, rate=_RATE / 3) for delay in delays],
        f"rate {_RATE:g} / (1 + delay)": [_late(delay, delay > 0) for delay in delays],
    }
    places = np.arange(len(delays))
    for (name, conditions), color in zip(arms.items(), plotting.series_colors(arms).values(), strict=True):
        values = np.stack([_final(results[condition]) for condition in conditions])
        plotting.draw_quartiles(left, places, values, color=color, label=name, marker="o")
    left.set(xlabel="age of prices in steps", ylabel="held-out accuracy", ylim=(0, 1.02))
    left.set_xticks(places, [str(delay) for delay in delays])
    shades = plotting.series_colors([str(delay) for delay in delays]).values()
    for delay, color in zip(delays, shades, strict=True):
        found = results[_late(delay, delay > 0)]
        plotting.draw_quartiles(right, found["steps"], found["accuracy"], color=color, label=f"age {delay}")
    right.set(xlabel="steps", ylabel="held-out accuracy", ylim=(0.5, 1.0), title=f"rate {_RATE:g} / (1 + age)")
    plotting.legend_below(left, columns=2)
    plotting.legend_below(right, columns=3)
    return fig


def _draw_priced(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=6.5, height=4.0)
    arms = {
        "priced units": "",
        "magnitude pruning": ", pruned",
        "narrow from the start": ", narrow",
        "entry": ", entry",
    }
    for (name, suffix), color in zip(arms.items(), plotting.series_colors(arms).values(), strict=True):
        found = [results[f"rent {rent:g}{suffix}"] for rent in _chosen(results.scope, _RENTS)]
        units = [float(np.median(result["units"])) for result in found]
        plotting.draw_quartiles(ax, units, np.stack([_final(r) for r in found]), color=color, label=name, marker="o")
    ax.set(xlabel="neurons", ylabel="held-out accuracy")
    ax.locator_params(axis="x", integer=True)
    plotting.legend_below(ax, columns=2)
    return fig


EXPERIMENT = Experiment(
    name="profit",
    shows="networks whose layers are firms that ascend their own profit, against backpropagation",
    source="Sudhir and Tran-Thanh (2025), §2, and the author's price recursion",
    conditions=_conditions,
    measures={"final accuracy": _final},
    claims=_claims,
    tables=[
        Table(
            "backpropagation",
            "firms and Flax + Optax after 100 steps, worst of all seeds",
            _comparison_rows,
            "difference: the largest of any parameter · moved: how far the parameter that moved least has moved\n"
            "residual: money that appears or vanishes in a step, relative to what was moved",
        ),
        Table(
            "curves",
            "held-out accuracy on digits at equal examples, one hidden layer",
            _curve_rows,
            "hybrid, capitalism: markets of layers selected by wealth, with and without SGD (`reproduce capitalism`)",
        ),
        Table(
            "delays",
            "old prices, four layers",
            _late_rows,
            "shorter steps: divided by 1 + delay · two processes: as delay 0 at the lower rate, two firms in each",
        ),
        Table(
            "units",
            f"neurons that pay rent for their capacity, of {firms.CELLS}, and other ways to as many neurons",
            _priced_rows,
            "pruned: all for half of the steps, then the largest by norm · narrow: as many from the start\n"
            "with entry: starts with an eighth, and new neurons enter in free places",
        ),
        Table("routing", "mirror ascent on random graphs: (ΔW / step size) / Σ y² Var(a) - 1", _routing_rows),
    ],
    figures={"profit_curves": _draw_curves, "profit_delays": _draw_late, "profit_units": _draw_priced},
    seeds=8,
    quick=Quick(seeds=2),
)
