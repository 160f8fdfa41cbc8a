"""Mental Rotation (Chang et al. 2020, §6.3): a society composes a program for every input.

Primitives are functions of an image; the right two of them, in the right order, make a digit readable again. A
society (credit-conserving Vickrey, two clones) and one PPO agent over the same functions learn on training digits and
are evaluated on held-out ones, between the best fixed program and an oracle that tries every program and knows the
digit. With ``depth=dynamic`` inputs need zero, one or two functions, and every function has a cost.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmarket.environments.mental_rotation import NAMES, MentalRotation, check_task, inverse, needed
from jaxmarket.experiments import rotated_digits
from jaxmarket.experiments.claims import Claim, every_seed, separated, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Table
from jaxmarket.experiments.measures import final
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.rotated_digits import AGENTS, BASE, COMPONENTS, FULL, GRIDS, TUNED, TUNING, Task
from jaxmarket.experiments.transfers import draw_curves
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.runs.estimates import interquartile_mean, mean
from jaxmarket.society import MarketPolicy
from jaxmarket.training.monolith import ChoicePolicy
from jaxmarket.training.programs import compose_all
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "described", "draw_chains"]

_AIM = 0.9
_TRAINING_DIGITS = 500  # for the choice of the best fixed program
_QUICK_STEPS, _QUICK_DIGITS = 40_960, 100
_LARGE = 16  # pixels, above which convolutions have a stride of 2


def _conditions(scope: Scope) -> list[Condition]:
    task: Task = (scope.settings["resolution"], scope.settings["depth"], COMPONENTS)
    check_task(*task[:2])  # before the environment is made, by the first condition

    def train(name: str, settings: dict[str, Any], task: Task = task, **of_run: Any) -> Train:
        return Train(name, functools.partial(rotated_digits.config, task, settings), inputs=("classifier",), **of_run)

    shorter = {"steps": _QUICK_STEPS} if scope.quick else {}
    agents = [train(name, TUNED[name] | shorter) for name in AGENTS]
    if scope.full:
        pixels, stride = (*task[:2], None), 2 if task[0] > _LARGE else 1
        for name, settings in FULL.items():
            cnn = "convolutions" in settings
            agents.append(train(name, settings | {"stride": stride}, pixels) if cnn else train(name, settings))
    count = _QUICK_DIGITS if scope.quick else None
    reader = functools.partial(rotated_digits.classifier, task)
    wanted: list[Condition] = [Compute("classifier", reader, seeds=1), *agents]
    play = functools.partial(rotated_digits.play, count)
    wanted += [Compute(f"{agent.name}, held out", play, inputs=(agent.name,)) for agent in agents]
    bounds = functools.partial(rotated_digits.bounds, task, count or _TRAINING_DIGITS, count)
    wanted.append(Compute("bounds", bounds, inputs=("classifier",), seeds=1))
    if not scope.full:
        return wanted

    def tried(name: str, agent: str, setting: Mapping[str, float]) -> list[Train]:
        settings = {**TUNED[agent], **setting, "steps": TUNING["steps"]}
        return [train(name, settings, seed=TUNING["seed"], seeds=TUNING["seeds"])]

    return wanted + grid_conditions(GRIDS, tried)


def _tuning_columns(results: Results, name: str) -> dict[str, Any]:
    returns = results.measure(name, "return")
    return {"return": float(returns.mean()), "lowest seed": float(returns.min())}


# --- tables


def described(program: tuple[int, ...]) -> str:
    """The names of a program's functions."""
    return ", then ".join(NAMES[p] for p in program) or "nothing"


def _plays(results: Results) -> dict[str, Arrays]:
    """What every agent composed for the held-out examples."""
    return {name.removesuffix(", held out"): results[name] for name in results if name.endswith(", held out")}


def _accuracy(results: Results, agent: str) -> np.ndarray:
    """Share of examples read: f [seeds]."""
    return results[f"{agent}, held out"]["read"].mean(1)


def _need(results: Results) -> np.ndarray:
    """The number of functions that each example needs: i [N]."""
    return np.array([needed(c) for c in results["bounds"]["combination"]])


def _accuracy_rows(results: Results) -> list[dict[str, Any]]:
    bounds, need = results["bounds"], _need(results)

    def row(who: str, accuracy: np.ndarray, applied: Any = None) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "who": who,
            "accuracy": interquartile_mean(accuracy),
            "lowest seed": float(accuracy.min()),
            "of the oracle's": float(accuracy.mean() / bounds["oracle"].mean()),
        }
        for n in np.unique(need):
            entry[f"used, {n} needed"] = None if applied is None else float(applied[:, need == n].mean())
        return entry

    known = {name: bounds[name].mean()[None] for name in ("none", "fixed", "inverse", "oracle")}
    return [
        row("none", known["none"], np.zeros((1, len(need)))),
        row("best fixed", known["fixed"], np.full((1, len(need)), len(bounds["program"]))),
        *(row(name, _accuracy(results, name), play["applied"]) for name, play in _plays(results).items()),
        row("inverse", known["inverse"], need[None]),
        row("oracle", known["oracle"]),
    ]


def _combination_rows(results: Results) -> list[dict[str, Any]]:
    rows, env, bounds = [], results["society"].config.env, results["bounds"]
    for c in env.combinations:
        here = bounds["combination"] == c
        choices = results["society, held out"]["choices"][:, here]
        programs, counts = np.unique(choices.reshape(-1, env.steps), axis=0, return_counts=True)
        usual = tuple(p for p in programs[counts.argmax()] if 0 <= p < len(NAMES))
        rows.append(
            {
                "done": env.describe(c),
                "none": float(bounds["none"][here].mean()),
                **{name: float(play["read"][:, here].mean()) for name, play in _plays(results).items()},
                "inverse": float(bounds["inverse"][here].mean()),
                "oracle": float(bounds["oracle"][here].mean()),
                "undone": float((choices == _padded(inverse(c), env)).all(-1).mean()),
                "usual program": described(usual),
            }
        )
    return rows


def _padded(program: tuple[int, ...], env: MentalRotation) -> np.ndarray:
    """A program in the format of the choices: ``stop`` if it ends early, then -1."""
    choices = [*program, *([len(NAMES)] if len(program) < env.steps else [])]
    return np.array(choices + [-1] * (env.steps - len(choices)))


def _bid_rows(results: Results) -> list[dict[str, Any]]:
    """Mean bids at every auction of the exact inverse, over the examples whose choices followed it so far."""
    rows, env, play = [], results["society"].config.env, results["society, held out"]
    for c in env.combinations:
        here, wanted = results["bounds"]["combination"] == c, _padded(inverse(c), env)
        choices, bids = play["choices"][:, here], play["bids"][:, here]
        for t in range(int((wanted >= 0).sum())):
            followed = (choices[..., :t] == wanted[:t]).all(-1)
            found = bids[followed][:, t].mean(0) if followed.any() else np.full(env.num_actions, np.nan)
            row = {"what was done": env.describe(c), "auction": t + 1, "right": env.names[wanted[t]]}
            rows.append(row | {name: float(bid) for name, bid in zip(env.names, found, strict=True)})
    return rows


# --- figures


def _draw_curves(results: Results) -> Any:
    fig, (ax,) = plotting.figure(width=7.0)
    draw_curves(ax, {name: results[name] for name in _plays(results)}, metric="return_mean", title="Mental Rotation")
    for name, style in (("oracle", ":"), ("inverse", "--"), ("fixed", "-.")):
        label = "best fixed program" if name == "fixed" else name
        ax.axhline(results["bounds"][name].mean(), color="black", linewidth=0.8, linestyle=style, label=label)
    dynamic = results.scope.settings["depth"] == "dynamic"
    ax.set_ylabel("digits read" + (" minus the price of functions" if dynamic else "") + ", during training")
    ax.legend(frameon=False, fontsize=8)
    return fig


def _draw_bids(results: Results) -> Any:
    rows, env = _bid_rows(results), results["society"].config.env
    fig, (ax,) = plotting.figure(width=8.0, height=1.5 + 0.25 * len(rows))
    bids = np.array([[row[name] for name in env.names] for row in rows])
    shown = ax.imshow(bids, aspect="auto", cmap="viridis")
    fig.colorbar(shown, ax=ax, label="mean greedy bid")
    ax.grid(visible=False)
    ax.set_xticks(range(len(env.names)), env.names, rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(len(rows)), [f"{row['what was done']} · auction {row['auction']}" for row in rows], fontsize=7)
    right = [env.names.index(row["right"]) for row in rows]
    ax.plot(right, range(len(rows)), linestyle="", marker="o", color="red", markersize=4, label="exact inverse")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    ax.set_title("mean greedy bids along the exact inverse", loc="left")
    return fig


def draw_chains(env: MentalRotation, policy: MarketPolicy | ChoicePolicy) -> Any:
    """One held-out digit for each combination, its intermediate images under a society's policy, and winning bids."""
    examples = (env.held_out[: len(env.combinations)], np.array(env.combinations, np.int32))
    made, bids = jax.device_get(compose_all(env, policy, examples, keep=True))
    columns = int(made.applied.max()) + 1
    fig, axes = plotting.figure(columns=columns, rows=len(env.combinations), width=1.9, height=1.75)
    for ax in axes:
        ax.set_axis_off()
    for i, c in enumerate(env.combinations):
        chosen = [f"{env.names[p]} ({bid[p]:.2f})" for p, bid in zip(made.choices[i], bids[i], strict=True)]
        last = int(made.applied[i])
        for t in range(last + 1):
            ax = axes[i * columns + t]
            ax.imshow(made.values[i, t], cmap="gray", vmin=0, vmax=1)
            lines = [env.describe(c) if t == 0 else chosen[t - 1]]
            if t == last:
                read, label = int(env.reader(made.values[i, t]).argmax()), env.digits.labels[examples[0][i]]
                lines += chosen[t : t + 1]  # the choice ``stop``
                lines.append(f"read: {read}" + ("" if read == label else f", is {label}"))
            ax.set_title("\n".join(lines), fontsize=7)
    return fig


# --- the claims


def _used(results: Results) -> np.ndarray:
    """The society's mean number of functions where 0, 1 and 2 are needed: f [seeds, 3]."""
    applied, need = results["society, held out"]["applied"], _need(results)
    return np.stack([applied[:, need == n].mean(1) for n in (0, 1, 2)], 1)


def _claims(scope: Scope) -> list[Claim]:
    society, rival = (functools.partial(_accuracy, agent=agent) for agent in AGENTS)
    claims = [
        within(
            f"the society reads at least {_AIM:.0%} of the held-out digits the oracle reads, mean over seeds",
            lambda results: society(results) / results["bounds"]["oracle"].mean(),
            at_least=_AIM,
            estimate=mean,
            evidence=lambda results: f"the exact inverse reads {results['bounds']['inverse'].mean():.3f} of all",
        ),
        every_seed(
            "the society reads more than the best fixed program",
            society,
            at_least=lambda results: np.nextafter(results["bounds"]["fixed"].mean(), 1),  # more, and not as many
            evidence=lambda results: described(tuple(results["bounds"]["program"])),
        ),
        separated("the society reads more than one PPO agent over the same functions", society, rival),
    ]
    if scope.settings["depth"] == "dynamic":
        claims.append(
            every_seed(
                "the number of functions is the number needed: the mean of every seed is within .25 of it",
                lambda results: np.abs(_used(results) - np.arange(3)).max(1),
                at_most=0.25,  # then it also grows with it
                evidence=lambda results: (
                    "mean number of functions if 0, 1, 2 are needed: "
                    + ", ".join(str(interquartile_mean(used)) for used in _used(results).T)
                ),
            )
        )
    return claims


def _title(results: Results) -> str:
    env, seeds = results["society"].config.env, results.scope.seeds
    count = len(results["bounds"]["combination"])
    return f"{env.name} at {env.resolution} × {env.resolution}: {count:,} held-out inputs, {seeds} seeds"


def _note(results: Results) -> str:
    dynamic, classifier = results.scope.settings["depth"] == "dynamic", results["classifier"]
    return (
        "accuracy: share of held-out digits read, greedy; interquartile mean over seeds\n"
        "± the larger side of its 95% bootstrap interval\n"
        f"best fixed: {described(tuple(results['bounds']['program']))}, chosen on training digits · inverse: of the "
        f"transformations\noracle: the best program of {'up to ' if dynamic else ''}two functions for each digit\n"
        f"used: mean number of functions · {classifier['digits']} digits: upright, the classifier reads "
        f"{float(classifier['upright']):.1%} of the held-out ones"
    )


def _facts(results: Results) -> dict[str, Any]:
    bounds, env = results["bounds"], results["society"].config.env
    known = {"none": "none", "best_fixed": "fixed", "inverse": "inverse", "oracle": "oracle"}
    return {
        "accuracy": {name: float(bounds[key].mean()) for name, key in known.items()}
        | {name: float(_accuracy(results, name).mean()) for name in _plays(results)},
        "upright": float(results["classifier"]["upright"]),
        "digits": str(results["classifier"]["digits"]),
        "best_fixed_program": [NAMES[p] for p in bounds["program"]],
        "price": env.price,
        "components": env.components,
        **{f"{name}_settings": BASE | TUNED[name] for name in AGENTS},
    }


EXPERIMENT = Experiment(
    name="mental-rotation",
    shows="functions as primitives: a society composes a program for every input",
    source="Chang et al. (2020), §6.3",
    conditions=_conditions,
    measures={"return": final()},
    claims=_claims,
    tables=[
        Table("accuracy", _title, _accuracy_rows, _note),
        Table(
            "combinations",
            "accuracy by the transformations of the digit",
            _combination_rows,
            "undone: share of examples for which the society composes the exact inverse",
            aside=("none", "oracle", "usual program"),
        ),
        Table("bids", "mean greedy bids along the exact inverse", _bid_rows, shown=False),
        Table(
            "seeds",
            "every seed",
            lambda results: [
                {"who": name, "seed": seed, "accuracy": float(accuracy)}
                for name in _plays(results)
                for seed, accuracy in enumerate(_accuracy(results, name))
            ],
            shown=False,
        ),
        tuning_table(
            f"the same grid for both agents: {TUNING['seeds']} separate seeds, training digits",
            GRIDS,
            _tuning_columns,
            lambda row: -row["return"] if np.isfinite(row["return"]) else None,
            "return: greedy, mean over seeds",
        ),
    ],
    figures={
        "learning_curves": _draw_curves,
        "bids": _draw_bids,
        "chains": lambda results: draw_chains(results["society"].config.env, results["society"].policy()),
    },
    settings={"resolution": 32, "depth": "fixed"},
    facts=_facts,
)
