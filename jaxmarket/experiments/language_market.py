"""A market of a real language model under different prompts and of Python tools, against routers and the model alone.

`jaxmarket.experiments.language_tasks` has the tasks and the agents, `jaxmarket.experiments.language_arms` the markets
and routers. The experiment runs without the model, whose answers are stored.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxmarket.experiments import language_arms as arms
from jaxmarket.experiments import language_tasks as lt
from jaxmarket.experiments.claims import Claim, Values, at, every_seed, separated
from jaxmarket.experiments.conditions import Compute, Condition, Scope
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.results import Results
from jaxmarket.runs.estimates import interquartile_mean
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT"]


def _conditions(scope: Scope) -> list[Condition]:
    episodes = 100 if scope.quick else 500
    return [
        Compute("abilities", arms.abilities),
        *(Compute(name, functools.partial(arms.route, name, episodes), reports=True) for name in arms.ROUTERS),
        *(
            Compute(name, functools.partial(arms.play, arm, episodes), reports=True)
            for name, arm in arms.MARKETS.items()
        ),
    ]


_OURS = "learned, ccv"
_ARMS = (*arms.MARKETS, *arms.ROUTERS)


def _accuracy(name: str) -> at:
    return at(name, "accuracy")


def _largest(measure: str, names: Iterable[str]) -> Values:
    return lambda results: np.max([results.measure(name, measure) for name in names], 0)


def _claims() -> list[Claim]:
    learned = [name for name in arms.MARKETS if name.startswith("learned")]
    others = ("best agent", "random", "model alone", "chain of thought", "best pipeline", "bandit")
    ablations = ("fixed, ccv", "stated, ccv", "no conservation", "no conservation, no bluffer")
    return [
        *(
            separated(f"the market with learned bids solves more tasks than: {name}", _accuracy(_OURS), _accuracy(name))
            for name in (*others, *ablations)
        ),
        separated(
            "it solves more tasks per token than the bandit",
            at(_OURS, "per 1,000 tokens"),
            at("bandit", "per 1,000 tokens"),
        ),
        separated(
            "tokens at four times the price: it uses fewer than where they are free",
            at("learned, ccv, tokens × 4", "tokens"),
            at("learned, ccv, free tokens", "tokens"),
            lower=True,
        ),
        every_seed(
            "the bad agent goes bankrupt in every market with learned bids",
            _largest("bluffer's wealth", learned),
            at_most=arms.BANKRUPTCY,
        ),
        every_seed("money adds up in all markets", _largest("residual", arms.MARKETS), at_most=1e-9),
    ]


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for name in _ARMS:
        if name in results.failed:
            continue
        row: dict[str, Any] = {"arm": name}
        for measure in ("accuracy", "tokens", "seconds", "per 1,000 tokens"):
            row[measure] = interquartile_mean(results.measure(name, measure))
        market = name in arms.MARKETS
        row["bankrupt"] = float(np.mean(results[name]["bankrupt"])) if market else None
        row["bluffer left"] = float(np.mean(results[name]["bluffer's wealth"])) if market else None
        yield row


def _ability_rows(results: Results) -> Iterator[dict[str, Any]]:
    found = results["abilities"]
    for name, solved, tokens in zip(lt.MODEL_AGENTS, found["solved"], found["tokens"], strict=True):
        yield {
            "agent": name,
            **dict(zip(lt.KINDS, solved.round(2).tolist(), strict=True)),
            "tokens": round(float(tokens)),
        }


def _facts(results: Results) -> Mapping[str, Any]:
    found_arms = {}
    for name in _ARMS:
        if name not in results.failed:
            found = interquartile_mean(results.measure(name, "accuracy"))
            tokens = float(np.mean(results.measure(name, "tokens")))
            found_arms[name] = {"accuracy": found.value, "interval": [found.low, found.high], "tokens": tokens}
    residual = max(float(np.max(results[name]["residual"])) for name in arms.MARKETS if name not in results.failed)
    tokens = sum(arm["tokens"] for arm in found_arms.values()) * arms.HELD_OUT * results.scope.seeds
    return {"model": lt.MODEL, "tokens": round(tokens), "arms": found_arms, "money_residual": residual}


def _draw(results: Results) -> Any:
    fig, axes = plotting.figure(columns=2, width=4.5, height=4.8)
    names = [name for name in _ARMS if name not in results.failed][::-1]
    colors = plotting.series_colors(("markets", "routers"))
    for ax, measure, label in zip(axes, ("accuracy", "tokens"), ("held-out accuracy", "tokens per task"), strict=True):
        for group, shape in (("markets", "o"), ("routers", "s")):
            rows = [row for row, name in enumerate(names) if (name in arms.MARKETS) == (group == "markets")]
            found = [interquartile_mean(results.measure(names[row], measure)) for row in rows]
            error = np.transpose([(each.value - each.low, each.high - each.value) for each in found])
            values = [each.value for each in found]
            ax.errorbar(values, rows, xerr=error, fmt=shape, color=colors[group], label=group)
        ax.set(xlabel=label, xlim=(-0.02 if measure == "accuracy" else -3, None))
    axes[0].set_yticks(range(len(names)), names)
    axes[1].set_yticks(range(len(names)), [""] * len(names))
    plotting.legend_below(fig, columns=2)
    return fig


EXPERIMENT = Experiment(
    name="language-market",
    shows="a real language model under different prompts, and tools, on a market with learned bids, against routers",
    source="not of a paper; Economy of Minds fixes bids and gives all on the path the final score",
    conditions=_conditions,
    measures={"per 1,000 tokens": lambda found: 1000 * found["accuracy"] / found["tokens"]},
    claims=_claims(),
    tables=[
        Table(
            "arms",
            f"{arms.HELD_OUT} held-out tasks after 500 tasks, agents of SmolLM2-135M-Instruct and Python tools",
            _rows,
            "tokens, seconds: per task, those of bids included; seconds of the model on one core\n"
            "per 1,000 tokens: correct answers · bankrupt: other agents, of 22, mean over seeds\n"
            "bluffer left: the wealth of the bad agent, of 20 · no conservation: all on the path gets the score",
        ),
        Table(
            "abilities",
            "what each of the model's agents solves, alone or before the right tools, by kind of task",
            _ability_rows,
            "tokens: of a prompt and its reply, mean",
        ),
    ],
    figures={"language_market": _draw},
    facts=_facts,
    seeds=8,
    quick=Quick(seeds=2),
)
