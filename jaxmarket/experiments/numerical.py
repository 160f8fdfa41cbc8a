"""The numerical experiments of Chang et al. (2020, §6.1): Bandit, Chain and Duality.

{bucket brigade, Vickrey, credit-conserving Vickrey, environment reward} × {solitary, cloned}, each with the paper's
settings and with tuned ones, and many seeds in one vmapped call. Learning rates, entropy weights and the length of a
run are traced, so that both settings share one compiled program per mechanism and number of clones.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxmarket.auctions import MECHANISMS
from jaxmarket.environments import make
from jaxmarket.experiments.claims import Claim, Values, at, every_seed, separated, share_of_seeds, tally, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Column, Experiment, Table, by_condition
from jaxmarket.experiments.results import Measure, Results
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.estimates import difference, interquartile_mean
from jaxmarket.runs.ledgers import account_names, who_paid_whom
from jaxmarket.runs.measures import TOLERANCE, bid_error, final, nearly, solved, while_learning
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.training.pinned import PPO_SOCIETY, train_config
from jaxmarket.types import Array
from jaxmarket.view import plotting

__all__ = ["BANDIT", "CHAIN", "CLONES", "DUALITY", "MEASURES", "QUICK", "REFERENCE", "SETTINGS", "cells"]

_UPDATE = 4096  # environment steps
# `PPO_SOCIETY` has the paper's numbers; Kumaraswamy bids replace Beta bids: they are faster.
# A trace decay of 0 has no effect; it is set so that all settings share one program.
_PUBLISHED = {"hidden": (16,), "time_limits": "terminal", "log_every": 10, "steps": 500 * _UPDATE, "trace_decay": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "published": _PUBLISHED,
    "tuned": _PUBLISHED | {"steps": 300 * _UPDATE, "learning_rate": 4e-4, "entropy": 0.05, "trace_decay": 0.8},
    "beta": _PUBLISHED | {"bids": "beta"},
}
"""``published``: policy learning rate 4e-5, entropy weight .1, time-outs count as terminal. ``tuned``: learning rate
ten times that, half the entropy weight, λ = .8 contracts of buyers with sellers (`settle`), 300 updates, not 500."""

QUICK = {"steps": 100 * _UPDATE}
"""Settings that a quick run replaces."""

CLONES = {"cloned": 2, "solitary": 1}
"""Bidders per primitive in each society."""

_AT = (50, 100, 200, 300, 500)
REFERENCE: dict[str, dict[str, tuple[float, ...]]] = {
    "Bandit-v0": {
        "ccv": (0.68, 0.78, 0.79, 0.80, 0.80),
        "vickrey": (0.68, 0.78, 0.79, 0.80, 0.80),
        "bb": (0.54, 0.69, 0.77, 0.78, 0.80),
    },
    "Chain-v0": {
        "ccv": (0.41, 0.60, 0.79, 0.80, 0.80),
        "bb": (0.37, 0.46, 0.68, 0.75, 0.80),
        "vickrey": (0.34, 0.32, 0.29, 0.25, 0.25),
    },
    "Duality-v0": {
        "ccv": (-3.9, -0.2, 3.3, 4.4, 4.6),
        "vickrey": (-4.3, -2.1, 2.1, 3.7, 4.4),
        "bb": (-3.6, -1.4, 2.5, 4.3, 4.7),
    },
}
"""Returns of an independent reimplementation of the released code at updates 50, 100, 200, 300, 500; one seed."""


def _bids_reach(env: str) -> bool:
    """Whether Q* lies in the range of bids."""
    q, bids = make(env)[0].optimal_q(), PPO_SOCIETY["bids"]
    return bool(bids.low <= q.min() and q.max() <= bids.high)


# --- conditions and measures


def cells(scope: Scope) -> list[tuple[str, str, str]]:
    """Settings, auction and society of each condition; the slowest first, and equal programs far apart."""
    every = [(auction, society) for society in CLONES for auction in MECHANISMS]
    found = [(settings, *cell) for settings in ("published", "tuned") for cell in every]
    if scope.quick:  # compiling takes most of a quick run, so that it leaves one program out
        return [cell for cell in found if cell[1:] != ("env", "solitary")]
    return [("beta", *cell) for cell in (every if scope.full else [("ccv", "cloned")])] + found


def _settings(name: str, scope: Scope) -> dict[str, Any]:
    longer = {"steps": 2000 * _UPDATE} if scope.full and name in ("published", "beta") else {}
    return SETTINGS[name] | (QUICK if scope.quick else longer)


def _conditions(env: str, scope: Scope) -> list[Condition]:
    def train(settings: str, auction: str, society: str) -> Train:
        config = train_config(env, auction=auction, clones=CLONES[society], **_settings(settings, scope))
        return Train(f"{settings}-{auction}-{society}", config)

    ledger = functools.partial(_ledger, scope.seed)
    ledgers = [Compute(f"ledger-{auction}", ledger, inputs=(f"tuned-{auction}-cloned",)) for auction in MECHANISMS]
    return [*(train(*cell) for cell in cells(scope)), *ledgers]


def _ledger(seed: int, keys: Array, run: SavedRun) -> Arrays:
    """Money per episode from payer to payee: f [A + 3, A + 3]."""
    del keys
    return {"money": who_paid_whom(run, key_for(key_of(seed), "measurement"))}


MEASURES: dict[str, Measure] = {
    "greedy": final(),
    "solved": lambda run: solved(final()(run), run.config.adapter.optimal_return(run.config.settings.gamma)),
    "sampled": while_learning(),
    "winner error": bid_error(lambda bids, q: np.abs(bids.max(-1) - q.max(-1))),
    "every error": bid_error(lambda bids, q: np.abs(bids - q).mean(-1)),
    "winning bid": while_learning("winning_bid"),
    "minted": while_learning("subsidy"),
    "residual": lambda run: run.metrics["conservation_residual"].max(0),
}
"""Of a society on a finite process. ``greedy``: return; ``sampled``: return while learning; ``winner error`` and
``every error``: of the highest greedy bid and of all bids, mean over visited states; ``minted``: per auction."""


# --- the paper's claims


def _claims(env: str, scope: Scope) -> list[Claim]:
    claims, lowest, reach = [], nearly(make(env)[0].optimal_return()), _bids_reach(env)
    for settings in SETTINGS:
        names = ["-".join(cell) for cell in cells(scope) if cell[0] == settings]
        ccv = f"{settings}-ccv-cloned"
        if names and reach:
            text = f"[{settings}] cloned ccv bids are truthful: mean |highest bid - max Q*| over visited states"
            claims.append(within(text, at(ccv, "winner error"), at_most=0.05))
        if names:
            text = f"[{settings}] cloned ccv recovers the optimal policy: greedy return within 1% of the optimum"
            claims.append(every_seed(text, at(ccv, "greedy"), at_least=lowest))
        if len(names) > 1:
            claims += _claims_on_all(env, settings, names)
    return claims


def _claims_on_all(env: str, settings: str, names: list[str]) -> list[Claim]:
    def largest(measure: str, *auctions: str) -> Values:
        chosen = [name for name in names if name.split("-")[1] in (auctions or MECHANISMS)]
        return lambda results: np.max([np.abs(results.measure(name, measure)) for name in chosen], 0)

    def sampled(results: Results) -> dict[str, float]:
        found = {auction: results.measure(f"{settings}-{auction}-cloned", "sampled") for auction in MECHANISMS}
        return {auction: interquartile_mean(values).value for auction, values in found.items()}

    def least(results: Results) -> float:
        others = sampled(results)  # env has no auction
        return max(others["bb"], others["vickrey"]) - TOLERANCE * abs(make(env)[0].optimal_return())

    def gain(results: Results) -> str:
        cloned, alone = (values(results) for values in returns)
        return f"return while learning higher by {difference(cloned, alone)}"

    pair = f"{settings}-ccv-cloned", f"{settings}-ccv-solitary"
    returns, errors = ([at(name, measure) for name in pair] for measure in ("sampled", "winner error"))
    matter = f"[{settings}] clones matter (ccv): "
    closer = separated(f"{matter}winning bids are closer to Q*", *errors, lower=True, evidence=gain)
    text = "all credit is accounted for: unexplained share of the money moved"
    vickrey, ccv = largest("minted", "vickrey"), largest("minted", "ccv")
    return [
        every_seed(f"[{settings}] bb and ccv mint no credit", largest("minted", "bb", "ccv"), at_most=0),
        share_of_seeds(f"[{settings}] vickrey mints credit", vickrey, share=1, above=ccv),
        every_seed(f"[{settings}] {text}", largest("residual"), at_most=1e-4),
        closer if _bids_reach(env) else separated(f"{matter}a higher return while learning", *returns),
        within(
            f"[{settings}] neither bb nor vickrey, cloned, beats ccv by 1%: return while learning",
            returns[0],
            at_least=least,
            evidence=lambda results: ", ".join(f"{name} {value:.3f}" for name, value in sampled(results).items()),
        ),
    ]


# --- tables and figures


def _shown(results: Results) -> list[str]:
    """The societies that have finished, by settings."""
    names = ["-".join(cell) for settings in SETTINGS for cell in cells(results.scope) if cell[0] == settings]
    return [name for name in names if name in results]


def _condition_rows(env: str, results: Results) -> Iterable[dict[str, Any]]:
    columns: dict[str, Column] = {
        **{part: lambda _, name, i=i: name.split("-")[i] for i, part in enumerate(("settings", "auction", "society"))},
        "greedy": "greedy",
        "solved": lambda results, name: tally(results.measure(name, "solved")),
        "sampled": "sampled",
        "|bid-Q*|": "winner error",
        "every |bid-Q*|": "every error",
        "minted": lambda results, name: float(results.measure(name, "minted").mean()),
    }
    if not _bids_reach(env):
        columns |= dict.fromkeys(("|bid-Q*|", "every |bid-Q*|"), lambda results, name: None)
    return by_condition(columns, first=None, names=_shown(results))(results)


def _learning_rows(env: str, results: Results) -> Iterator[dict[str, Any]]:
    columns = [f"at {update}" for update in _AT]
    for auction in ("ccv", "bb", "vickrey", "env"):
        curves: dict[str, Any] = {"reference": REFERENCE[env].get(auction)}
        for settings in SETTINGS:
            if (name := f"{settings}-{auction}-cloned") in results:
                run = results[name]
                curve = np.median(run.metrics["return_mean"], 1)
                rows = [update // run.config.settings.updates_per_chunk - 1 for update in _AT]
                curves[settings] = [float(curve[row]) if row < len(curve) else None for row in rows]
        for settings, values in curves.items():
            if values is not None:
                yield {"auction": auction, "settings": settings, **dict(zip(columns, values, strict=True))}


def _draw_curves(env: str, results: Results) -> Any:
    names = _shown(results)
    settings = list(dict.fromkeys(name.split("-")[0] for name in names))
    fig, axes = plotting.figure(columns=len(settings), width=5.5)
    panels = dict(zip(settings, axes, strict=True))
    for name in names:
        chosen, auction, society = name.split("-")
        curve = results[name].metrics["return_mean"]
        updates = np.arange(1, len(curve) + 1) * results[name].config.settings.updates_per_chunk
        color, line = plotting.NAMED_COLORS[auction], "-" if society == "cloned" else ":"
        label = f"{auction}, {society}"
        plotting.draw_quartiles(panels[chosen], updates, curve, color=color, label=label, linestyle=line)
    for chosen, ax in panels.items():
        ax.axhline(make(env)[0].optimal_return(), color="black", linewidth=0.8)
        ax.set(xlabel="updates of 4,096 steps", ylabel="return while learning", title=f"{env}, {chosen} settings")
        ax.sharey(axes[0])
    plotting.legend_below(fig)
    return fig


def _draw_bids(env: str, results: Results) -> Any:
    shown = [name.split("-") for name in _shown(results) if name.endswith("cloned") and "env" not in name]
    fig, axes = plotting.figure(columns=3, rows=-(-len(shown) // 3), width=5.0, height=3.4)
    for ax, cell in zip(axes, shown, strict=False):
        plotting.draw_bids(ax, results["-".join(cell)], f"{env}, {cell[1]}, cloned, {cell[0]}")
        if not _bids_reach(env):  # otherwise the range of Q* would hide the bids
            ax.set_ylim(0, 1.25)
    for ax in axes[len(shown) :]:
        ax.remove()
    return fig


def _draw_ledgers(env: str, results: Results) -> Any:
    shown = [auction for auction in MECHANISMS if f"ledger-{auction}" in results]
    fig, axes = plotting.figure(columns=len(shown), width=4.6, height=4.4)
    for ax, auction in zip(axes, shown, strict=True):
        names = account_names(results[f"tuned-{auction}-cloned"].config.settings.society)
        title = f"{env}, {auction}, cloned, tuned:\nmoney per episode"
        plotting.draw_ledger(ax, results[f"ledger-{auction}"]["money"], names, title)
    return fig


_NOTE = """interquartile mean over seeds ± the larger side of its 95% bootstrap interval
solved: seeds whose greedy return is within 1% of the optimum
sampled: return with sampled bids, in the last tenth of training
|bid-Q*|: of the highest bid, mean over visited states; – where bids cannot reach Q*
minted: by the auctioneer, per auction · beta: the published settings with the published Beta bids"""

_SOURCE = "reference: an independent reimplementation of the released code, Beta bids, one seed"


def _experiment(name: str, env: str, source: str, shows: str) -> Experiment:
    of, optimum = functools.partial, make(env)[0].optimal_return()

    def title(results: Results) -> str:
        return f"{env}: {results.scope.seeds} seeds per condition, optimum {optimum:.3f}"

    def facts(results: Results) -> dict[str, Any]:
        chosen = {cell[0]: _settings(cell[0], results.scope) for cell in cells(results.scope)}
        return {"env": env, "optimum": optimum, **chosen}

    return Experiment(
        name=name,
        shows=shows,
        source=f"Chang et al. (2020), §6.1, {source}",
        conditions=of(_conditions, env),
        measures=MEASURES,
        claims=of(_claims, env),
        tables=[
            Table("conditions", title, of(_condition_rows, env), _NOTE, aside=("greedy", "every |bid-Q*|")),
            Table("learning", f"{env}: sampled return at updates 50 to 500, cloned", of(_learning_rows, env), _SOURCE),
        ],
        figures={
            "learning_curves": of(_draw_curves, env),
            "bids": of(_draw_bids, env),
            "ledger": of(_draw_ledgers, env),
        },
        facts=facts,
    )


BANDIT = _experiment("bandit", "Bandit-v0", "Market Bandit", "four auctions, solitary and cloned, on the market bandit")
CHAIN = _experiment("chain", "Chain-v0", "Chain", "the same auctions with a reward five steps away")
DUALITY = _experiment("duality", "Duality-v0", "Duality", "the same auctions where greedy choices are trapped")
