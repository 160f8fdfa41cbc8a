"""Mental Rotation (Chang et al. 2020, §6.3): a society composes a program for every input.

Primitives are functions of an image; the right two of them, in the right order, make a digit readable again. A
society (credit-conserving Vickrey, two clones) and one PPO agent over the same functions learn on training digits and
are evaluated on held-out ones, between the best fixed program and an oracle that tries every program and knows the
digit. With ``depth=dynamic`` inputs need zero, one or two functions, and every function has a cost.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxmarket.environments.functions import Composition, compose, search
from jaxmarket.environments.mental_rotation import NAMES, MentalRotation, inverse, needed
from jaxmarket.experiments import report
from jaxmarket.experiments.report import Report, ResultTable, Verdict, difference, interquartile_mean
from jaxmarket.experiments.settings import train_config
from jaxmarket.experiments.transfer_conditions import draw_curves
from jaxmarket.runs.run_folder import SavedRun, as_policy
from jaxmarket.runs.sweeps import Condition
from jaxmarket.society import MarketPolicy
from jaxmarket.training import divergence
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.monolith import ChoicePolicy
from jaxmarket.types import PyTree
from jaxmarket.view import plotting, tables

__all__ = ["AGENTS", "GRID", "TUNED", "described", "draw_chains", "environment", "run"]

AGENTS = ("society", "monolithic")
_COMPONENTS = 128
_AIM = 0.9
_DEEPEST = 2  # functions that an input needs at most
_TRAINING_DIGITS = 500  # for the choice of the best fixed program

# All agents have the same frozen encoder, and one small layer on top of it.
_BASE: dict[str, Any] = {
    "hidden": (64,),
    "instances": 64,
    "horizon": 16,
    "minibatch": 128,
    "epochs": 4,
    "value_learning_rate": 1e-3,
    "steps": 153_600,
}
_KINDS: dict[str, dict[str, Any]] = {"society": {"agent": "society"}, "monolithic": {"agent": "monolith"}}
TUNED: dict[str, dict[str, Any]] = {
    "society": {"learning_rate": 5e-4, "entropy": 0.03},
    "monolithic": {"learning_rate": 1e-3, "entropy": 0.03},
}
"""The best settings of each agent's grid; see the table ``tuning`` of a ``--full`` run."""
GRID = tuple(itertools.product((3e-4, 5e-4, 1e-3), (0.01, 0.03, 0.1)))
"""The grid of policy learning rates and entropy weights, for both agents; it uses separate seeds."""
_TUNING_KEY, _TUNING_SEEDS, _TUNING_STEPS = 5, 4, 102_400
_FULL: dict[str, dict[str, Any]] = {
    # The paper's bidders, each with its own convolutions over the pixels: ten times the compute of the others.
    "society-cnn": {
        "learning_rate": 1e-3,
        "entropy": 0.03,
        "hidden": (32,),
        "convolutions": (8, 16),
        "epochs": 2,
        "steps": 81_920,
    },
    "society-valuation": {"learner": "valuation", "epochs": 1, "value_learning_rate": None},
}
"""Additional societies of a ``--full`` run."""
_QUICK_STEPS, _QUICK_DIGITS = 40_960, 100
_LARGE = 16  # pixels, above which convolutions have a stride of 2


def environment(options: report.ExperimentOptions, *, components: int | None = _COMPONENTS) -> MentalRotation:
    """The task at the resolution and depth of the options."""
    return MentalRotation(options.settings["resolution"], options.settings["depth"], components=components)


def _config(agent: str, env: MentalRotation, **settings: Any) -> TrainConfig:
    return train_config(env, **{**_BASE, **_KINDS[agent], **settings})


def _conditions(env: MentalRotation, options: report.ExperimentOptions) -> list[Condition]:
    size: dict[str, Any] = {"seeds": options.seeds} | ({"steps": _QUICK_STEPS} if options.quick else {})
    wanted = [Condition(name, _config(name, env, **(TUNED[name] | size))) for name in AGENTS]
    if options.full:
        pixels, stride = environment(options, components=None), 2 if options.settings["resolution"] > _LARGE else 1
        for name, settings in _FULL.items():
            chosen = _BASE | settings | size
            if "convolutions" in settings:
                config = train_config(pixels, **chosen, stride=stride)
            else:
                config = train_config(env, **chosen)
            wanted.append(Condition(name, config))
    return wanted


# --- composed programs


@dataclasses.dataclass(frozen=True)
class Play:
    """The greedy programs of one run for N held-out examples; leaves [seeds, N, ...].

    Attributes:
        read: bool [seeds, N], whether the digit was read.
        choices: i [seeds, N, T], -1 after the end of a program.
        applied: i [seeds, N], number of functions.
        bids: f [seeds, N, T, P] of each primitive; None for a monolithic agent.
    """

    read: np.ndarray
    choices: np.ndarray
    applied: np.ndarray
    bids: np.ndarray | None

    @property
    def accuracy(self) -> np.ndarray:
        """Share of examples read: f [seeds]."""
        return self.read.mean(1)


@functools.partial(jax.jit, static_argnums=0, static_argnames="keep")
def _compose_all(
    env: MentalRotation, policy: MarketPolicy | ChoicePolicy, examples: PyTree, *, keep: bool = False
) -> tuple[Composition, Any]:
    """The greedy programs and all bids, and the intermediate images if they are requested."""

    def compose_and_bid(example: PyTree) -> tuple[Composition, Any]:
        made = compose(env, policy, example)
        bids = None
        if isinstance(policy, MarketPolicy):
            society = policy.society
            bids = jax.vmap(lambda obs: society.bids(policy.params, None, society.env.encode(obs)))(made.obs)
            bids = bids.reshape(env.steps, society.primitives, society.clones).max(-1)
        return made.replace(obs=None, values=made.values if keep else None), bids

    return jax.lax.map(compose_and_bid, examples, batch_size=256)


def _held_out(env: MentalRotation, options: report.ExperimentOptions) -> tuple[np.ndarray, np.ndarray]:
    return env.examples(env.held_out[: _QUICK_DIGITS if options.quick else None])


def _play(run: SavedRun, examples: tuple[np.ndarray, np.ndarray], on_seed: Callable[[], None] = lambda: None) -> Play:
    env, found = run.config.env, []
    for seed in range(run.config.seeds):
        found.append(jax.device_get(_compose_all(env, as_policy(run, seed=seed), examples)))  # type: ignore[arg-type]
        on_seed()
    made, bids = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    return Play(read=made.reward > 0, choices=made.choices, applied=made.applied, bids=bids)


@functools.partial(jax.jit, static_argnums=0)
def _search_all(env: MentalRotation, examples: PyTree) -> dict[tuple[int, ...], Any]:
    return jax.lax.map(lambda example: search(env, example, _DEEPEST), examples, batch_size=64)


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Accuracy without learning, on the held-out examples: bool [N] each.

    Attributes:
        none: read without a function.
        fixed: read after the program that is best on training digits.
        inverse: read after the exact inverse of its transformations.
        oracle: read after at least one program.
        program: the best fixed one.
    """

    none: np.ndarray
    fixed: np.ndarray
    inverse: np.ndarray
    oracle: np.ndarray
    program: tuple[int, ...]


def _bounds(env: MentalRotation, examples: tuple[np.ndarray, np.ndarray], options: report.ExperimentOptions) -> Bounds:
    count = _QUICK_DIGITS if options.quick else _TRAINING_DIGITS
    lengths = (_DEEPEST,) if env.depth == "fixed" else range(_DEEPEST + 1)
    on_training, on_held_out = (
        {program: np.asarray(read) > 0 for program, read in jax.device_get(_search_all(env, some)).items()}
        for some in (env.examples(np.arange(count)), examples)
    )
    allowed = [program for program in on_held_out if len(program) in lengths]
    best = max(allowed, key=lambda program: on_training[program].mean())
    inverses = [inverse(c) for c in env.combinations]
    combination = examples[1]
    return Bounds(
        none=on_held_out[()],
        fixed=on_held_out[best],
        inverse=np.array([on_held_out[inverses[c]][i] for i, c in enumerate(combination)]),
        oracle=np.any([on_held_out[program] for program in allowed], 0),
        program=best,
    )


# --- tables


def described(program: tuple[int, ...]) -> str:
    """The names of a program's functions."""
    return ", then ".join(NAMES[p] for p in program) or "nothing"


def _accuracy_rows(
    bounds: Bounds, plays: dict[str, Play], examples: tuple[np.ndarray, np.ndarray]
) -> list[dict[str, Any]]:
    need = np.array([needed(c) for c in examples[1]])
    oracle = bounds.oracle.mean()

    def row(who: str, accuracy: np.ndarray, applied: np.ndarray | None) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "who": who,
            "accuracy": interquartile_mean(accuracy),
            "lowest seed": float(accuracy.min()),
            "of the oracle's": float(accuracy.mean() / oracle),
        }
        for n in np.unique(need):
            entry[f"used, {n} needed"] = None if applied is None else float(applied[:, need == n].mean())
        return entry

    fixed = np.full((1, len(need)), len(bounds.program))
    return [
        row("none", bounds.none.mean()[None], np.zeros((1, len(need)))),
        row("best fixed", bounds.fixed.mean()[None], fixed),
        *(row(name, play.accuracy, play.applied) for name, play in plays.items()),
        row("inverse", bounds.inverse.mean()[None], need[None]),
        row("oracle", oracle[None], None),
    ]


def _combination_rows(
    env: MentalRotation, bounds: Bounds, plays: dict[str, Play], examples: tuple[np.ndarray, np.ndarray]
) -> list[dict[str, Any]]:
    rows = []
    for c in env.combinations:
        here = examples[1] == c
        choices = plays["society"].choices[:, here]
        wanted = _padded(inverse(c), env)
        programs, counts = np.unique(choices.reshape(-1, env.steps), axis=0, return_counts=True)
        usual = tuple(p for p in programs[counts.argmax()] if 0 <= p < len(NAMES))
        rows.append(
            {
                "done": env.describe(c),
                "none": float(bounds.none[here].mean()),
                **{name: float(play.read[:, here].mean()) for name, play in plays.items()},
                "inverse": float(bounds.inverse[here].mean()),
                "oracle": float(bounds.oracle[here].mean()),
                "undone": float((choices == wanted).all(-1).mean()),
                "usual program": described(usual),
            }
        )
    return rows


def _padded(program: tuple[int, ...], env: MentalRotation) -> np.ndarray:
    """A program in the format of `Play.choices`: ``stop`` if it ends early, then -1."""
    choices = [*program, *([len(NAMES)] if len(program) < env.steps else [])]
    return np.array(choices + [-1] * (env.steps - len(choices)))


def _bid_rows(env: MentalRotation, play: Play, examples: tuple[np.ndarray, np.ndarray]) -> list[dict[str, Any]]:
    """Mean bids at every auction of the exact inverse, over the examples whose choices followed it so far."""
    assert play.bids is not None
    rows = []
    for c in env.combinations:
        here, wanted = examples[1] == c, _padded(inverse(c), env)
        choices, bids = play.choices[:, here], play.bids[:, here]
        for t in range(int((wanted >= 0).sum())):
            followed = (choices[..., :t] == wanted[:t]).all(-1)
            mean = bids[followed][:, t].mean(0) if followed.any() else np.full(env.num_actions, np.nan)
            row = {"what was done": env.describe(c), "auction": t + 1, "right": env.names[wanted[t]]}
            rows.append(row | {name: float(bid) for name, bid in zip(env.names, mean, strict=True)})
    return rows


# --- figures


def _draw_curves(runs: dict[str, SavedRun], bounds: Bounds, dynamic: bool) -> Any:
    fig, (ax,) = plotting.figure(width=7.0)
    draw_curves(ax, runs, metric="return_mean", title="Mental Rotation")
    for name, style in (("oracle", ":"), ("inverse", "--"), ("fixed", "-.")):
        label = "best fixed program" if name == "fixed" else name
        ax.axhline(getattr(bounds, name).mean(), color="black", linewidth=0.8, linestyle=style, label=label)
    ax.set_ylabel("digits read" + (" minus the price of functions" if dynamic else "") + ", during training")
    ax.legend(frameon=False, fontsize=8)
    return fig


def _draw_bids(env: MentalRotation, rows: list[dict[str, Any]]) -> Any:
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
    made, bids = jax.device_get(_compose_all(env, policy, examples, keep=True))
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


def _verdicts(
    env: MentalRotation, bounds: Bounds, plays: dict[str, Play], examples: tuple[np.ndarray, np.ndarray]
) -> Iterator[Verdict]:
    oracle, fixed = bounds.oracle.mean(), bounds.fixed.mean()
    mine, theirs = (plays[name].accuracy for name in AGENTS)
    yield Verdict.of(
        f"the society reads at least {_AIM:.0%} of the held-out digits the oracle reads, mean over seeds",
        bool(mine.mean() >= _AIM * oracle),
        float(mine.mean() / oracle),
        f"{mine.mean():.3f} (seeds {mine.min():.3f} to {mine.max():.3f}) of {oracle:.3f}; "
        f"the exact inverse reads {bounds.inverse.mean():.3f}",
    )
    yield Verdict.of(
        "the society reads more than the best fixed program, every seed",
        bool(mine.min() > fixed),
        float(mine.min() - fixed),
        f"lowest seed {mine.min():.3f} against {fixed:.3f} ({described(bounds.program)})",
    )
    ours, its, gap = interquartile_mean(mine), interquartile_mean(theirs), difference(mine, theirs)
    yield Verdict.of(
        "the society reads more than one PPO agent over the same functions",
        gap.low > 0,
        gap.value,
        f"{ours} against {its}, difference of the means {gap}; lowest seeds {mine.min():.3f} and {theirs.min():.3f}",
    )
    if env.depth == "dynamic":
        need = np.array([needed(c) for c in examples[1]])
        used = np.stack([plays["society"].applied[:, need == n].mean(1) for n in (0, 1, 2)], 1)
        worst = np.abs(used - np.arange(3)).max()
        yield Verdict.of(
            "the number of functions is the number needed: on every seed the mean is within .25 of it",
            bool(worst <= 0.25),  # then it also grows with it
            float(worst),
            "mean number of functions if 0, 1, 2 are needed: "
            + ", ".join(f"{interquartile_mean(used[:, n])}" for n in range(3)),
        )


def _tuning(env: MentalRotation, options: report.ExperimentOptions) -> list[dict[str, Any]]:
    """Both agents over the same grid, with separate seeds, on training digits."""
    apart = dataclasses.replace(options, folder=options.folder / "tuning", seed=_TUNING_KEY)
    size: dict[str, Any] = {"seeds": _TUNING_SEEDS, "steps": _TUNING_STEPS}
    rows = []
    for agent in AGENTS:
        wanted = [
            Condition(f"{agent}-{rate:g}-{weight:g}", _config(agent, env, **size, learning_rate=rate, entropy=weight))
            for rate, weight in GRID
        ]
        found = apart.train(wanted, f"mental-rotation, tuning: {agent}")
        returns = [np.array(found[condition.name].summary["return_seeds"]) for condition in wanted]
        best = divergence.best([each.mean() for each in returns])
        rows += [
            {
                "arm": agent,
                "learning rate": rate,
                "entropy": weight,
                "return": float(returns[i].mean()),
                "lowest seed": float(returns[i].min()),
                "best": i == best,
            }
            for i, (rate, weight) in enumerate(GRID)
        ]
    return rows


def run(options: report.ExperimentOptions) -> Report:
    """Train society and monolithic agent, except those in ``options.folder``, and test the claims."""
    with tables.progress("mental-rotation: digits and their classifier", shown=options.progress) as show:
        env = environment(options)
        show.say(f"the classifier reads {env.reader.accuracy:.1%} of held-out upright {env.digits.source} digits")
    title = f"{env.name} at {env.resolution} × {env.resolution}"
    wanted = _conditions(env, options)
    found = options.train(wanted, "mental-rotation")
    runs = {condition.name: found[condition.name] for condition in wanted}
    examples = _held_out(env, options)
    with tables.progress("mental-rotation: held-out digits", unit="inputs", shown=options.progress) as show:
        count, judged = len(examples[0]), itertools.count(1)
        total = (options.seeds * len(runs) + 1) * count

        def on_seed() -> None:
            show(next(judged) * count, total, "")

        plays = {name: _play(trained, examples, on_seed) for name, trained in runs.items()}
        bounds = _bounds(env, examples, options)
        on_seed()
    bids = _bid_rows(env, plays["society"], examples)
    dynamic = env.depth == "dynamic"
    result_tables = [
        ResultTable(
            "accuracy",
            f"{title}: {len(examples[0]):,} held-out inputs, {options.seeds} seeds",
            _accuracy_rows(bounds, plays, examples),
            "accuracy: share of held-out digits read, greedy; interquartile mean over seeds\n"
            "± the larger side of its 95% bootstrap interval\n"
            f"best fixed: {described(bounds.program)}, chosen on training digits · inverse: of the transformations\n"
            f"oracle: the best program of {'up to ' if dynamic else ''}two functions for each digit\n"
            f"used: mean number of functions · {env.digits.source} digits: upright, the classifier reads "
            f"{env.reader.accuracy:.1%} of the held-out ones",
        ),
        ResultTable(
            "combinations",
            "accuracy by the transformations of the digit",
            _combination_rows(env, bounds, plays, examples),
            "undone: share of examples for which the society composes the exact inverse",
            aside=("none", "oracle", "usual program"),
        ),
        ResultTable("bids", "mean greedy bids along the exact inverse", bids, shown=False),
    ]
    if options.full:
        result_tables.append(
            ResultTable(
                "tuning",
                f"the same grid for both agents: {_TUNING_SEEDS} separate seeds, training digits",
                _tuning(env, options),
                "return: greedy, mean over seeds",
            )
        )
    trained = {name: float(play.accuracy.mean()) for name, play in plays.items()}
    known = {name: float(getattr(bounds, name).mean()) for name in ("none", "inverse", "oracle")}
    return Report(
        settings={
            "seeds": options.seeds,
            "quick": options.quick,
            "full": options.full,
            **options.settings,
            "accuracy": {"none": known["none"], "best_fixed": float(bounds.fixed.mean())} | trained | known,
            "accuracy_seeds": {name: play.accuracy.tolist() for name, play in plays.items()},
            "upright": env.reader.accuracy,
            "digits": env.digits.source,
            "best_fixed_program": [NAMES[p] for p in bounds.program],
            "price": env.price,
            "components": env.components,
            **{f"{name}_settings": _BASE | TUNED[name] for name in AGENTS},
        },
        tables=result_tables,
        verdicts=list(_verdicts(env, bounds, plays, examples)),
        figures={
            "learning_curves": _draw_curves(runs, bounds, dynamic),
            "bids": _draw_bids(env, bids),
            "chains": draw_chains(env, runs["society"].policy()),
        },
    )
