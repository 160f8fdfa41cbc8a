"""The command line: ``jaxmarket`` and ``python -m jaxmarket``."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import jax
import numpy as np
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from jaxmarket import auctions, plotting, runs, tables
from jaxmarket.config import PRESETS, TrainConfig
from jaxmarket.environments import OURS, environment_ids, make
from jaxmarket.evaluation import watch as watch_episode
from jaxmarket.fitting import evaluate_both, fit
from jaxmarket.learners import LEARNERS
from jaxmarket.society import MarketPolicy
from jaxmarket.transfer import weight_changes

__all__ = ["app", "main"]

app = App(
    name="jaxmarket",
    help="Societies of agents that buy and sell the right to act.",
    result_action="return_value",
    help_format="markdown",
)

Json = Annotated[bool, Parameter(negative=())]


@app.command
def train(
    config: Annotated[TrainConfig, Parameter(name="*")],
    *,
    seed: int = 0,
    out: Path | None = None,
    start: Path | None = None,
    freeze: tuple[str, ...] = (),
    json: Json = False,
) -> None:
    """Train a society, evaluate it, and show what its agents learned to bid.

    Args:
        config: settings.
        seed: of all randomness; the same seed gives the same bits on the same device.
        out: a folder for the settings, metrics, parameters and figures.
        start: the --out of a finished run, of this task or another, whose networks to go on from.
        freeze: parts of the networks to leave as they are, such as policy/torso/* or module0/*.
        json: make the last line of standard output one JSON object.
    """
    result = fit(config, jax.random.key(seed), out, start=start, freeze=freeze)
    console = Console()
    console.print(tables.returns_table(result))
    bids = tables.bids_table(result)
    if bids is not None:
        console.print(bids)
    s = result.summary
    console.print(
        f"{s['env_steps']:,} environment steps in {s['run_seconds']:.1f} s "
        f"({s['steps_per_second']:,.0f} steps/s), compiled in {s['compile_seconds']:.1f} s"
    )
    if s["interrupted"]:
        console.print("[yellow]interrupted: the figures are those of the training so far[/]")
    if out is not None:
        console.print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}", highlight=False)
    if json:
        print(runs.to_json(s))


@app.command
def evaluate(folder: Path, *, seed: int = 0, json: Json = False) -> None:
    """Play fresh episodes with a trained society, with greedy and with sampled bids.

    Args:
        folder: the --out of a finished run.
        seed: of the episodes.
        json: make the last line of standard output one JSON object.
    """
    run = runs.read(folder)
    table = Table(title=f"{run.config.adapter.name}: returns of fresh episodes, {run.config.seeds} seeds")
    for column in ("bids", "return", "± std", "lowest", "highest", "length", "unended"):
        table.add_column(column, justify="right")
    summary: dict[str, Any] = {"env": run.config.adapter.name, "seeds": run.config.seeds}
    both = evaluate_both(runs.player_of(run.config), run.params, jax.random.key(seed), run.config.seeds)
    for bids, episodes in jax.device_get(both).items():
        per_seed = episodes.returns.mean(1)
        numbers = (per_seed.mean(), per_seed.std(), per_seed.min(), per_seed.max(), episodes.lengths.mean())
        table.add_row(bids, *(f"{x:.3f}" for x in numbers), str(int(np.sum(~episodes.finished))))
        summary |= {f"{bids}_return_mean": float(numbers[0]), f"{bids}_return_std": float(numbers[1])}
    Console().print(table)
    if json:
        print(runs.to_json(summary))


@app.command
def watch(folder: Path, *, seed: int = 0, run_seed: int | None = None, sampled: bool = False, steps: int = 60) -> None:
    """Show one episode: who bid what, who won, who paid whom.

    Args:
        folder: the --out of a finished run.
        seed: of the episode's randomness.
        run_seed: which of the run's seeds to watch; the one with the highest greedy return by default.
        sampled: sample the bids instead of bidding their means.
        steps: cut the episode after so many auctions.
    """
    run = runs.read(folder)
    if steps < 1:
        raise ValueError(f"steps: expected a whole number >= 1, got {steps}")
    policy = run.policy(run_seed, greedy=not sampled)
    if not isinstance(policy, MarketPolicy):
        raise ValueError(f"{folder}: one agent acts here and holds no auctions; watch a society")
    rows = watch_episode(policy.society, policy.params, jax.random.key(seed), run.config.adapter.default_params, steps)
    shown = f"seed {run.best_seed} of {run.config.seeds}, the best" if run_seed is None else f"seed {run_seed}"
    Console().print(f"society: {shown}", justify="center")
    Console().print(tables.trace_table(policy.society, rows))


@app.command
def compare(before: Path, after: Path, *, out: Path | None = None, json: Json = False) -> None:
    """Show how far each part of the networks moved between two runs, such as a transfer and what it started from.

    Args:
        before: the --out of a finished run.
        after: the --out of another, with the same kind of agent.
        out: a PNG for the figure.
        json: make the last line of standard output one JSON object.
    """
    old, new = runs.read(before), runs.read(after)
    rows = weight_changes(old.networks, new.networks, modules=old.config.agent == "society")
    parts = list(dict.fromkeys(row["part"] for row in rows))
    table = Table("part", title=f"{old.config.adapter.name} → {new.config.adapter.name}: mean over seeds")
    for column in ("weights", "relative change", "share moved"):
        table.add_column(column, justify="right")
    for part in parts:
        mine = [row for row in rows if row["part"] == part]
        change, moved = (np.mean([row[field] for row in mine]) for field in ("change", "moved"))
        table.add_row(part, str(mine[0]["weights"]), f"{change:.3f}", f"{moved:.3f}")
    table.caption = "change: |after - before| / |before| · moved: by more than a tenth of the part's root mean square"
    Console().print(table)
    if out is not None:
        fig, (ax,) = plotting.figure(height=1.5 + 0.25 * len(parts))
        plotting.draw_weight_changes(ax, rows)
        plotting.save(fig, out)
        Console().print(f"written to {out}", highlight=False)
    if json:
        print(runs.to_json({"before": old.config.adapter.name, "after": new.config.adapter.name, "parts": rows}))


@app.command(name="list")
def list_names() -> None:
    """List the environments, auctions, learners and presets."""
    table = Table(show_header=False)
    refused = []
    for env_id in environment_ids():
        try:
            if env_id not in OURS:  # they work, and some are long to build
                make(env_id)
        except ValueError:
            refused.append(env_id)
    table.add_row("environments", ", ".join(i for i in environment_ids() if i not in refused))
    table.add_row("not usable here", ", ".join(refused))
    table.add_row("auctions", ", ".join(auctions.MECHANISMS))
    table.add_row("learners", ", ".join(LEARNERS))
    table.add_row("presets", ", ".join(PRESETS))
    Console().print(table)


@app.command
def reproduce(
    name: str | None = None,
    *,
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
    quick: Annotated[bool, Parameter(negative=())] = False,
    full: Annotated[bool, Parameter(negative=())] = False,
    seeds: int | None = None,
    seed: int = 0,
    resolution: int | None = None,
    depth: Literal["fixed", "dynamic"] | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Run what a paper reports again, and say of each of its claims whether it came back.

    Finished conditions are kept in the folder and skipped when run again.

    Args:
        name: of the experiment; --list shows them all.
        list_: show the experiments and their sources.
        quick: a smaller budget, two minutes on two idle cores: shows that it works, and is no evidence.
        full: the published settings with Beta bids and 2,000 updates throughout, beside the others; hours on a CPU.
        seeds: independent seeds per condition; 16 by default for most.
        seed: of all randomness.
        resolution: mental-rotation only: side of the images in pixels, 32 by default; the paper's is 64.
        depth: mental-rotation only: two functions each time, or as many as an input needs.
        out: folder for tables, figures and finished conditions; reproductions/NAME by default, with -quick, -full and
            the number of seeds where given.
        json: make the last line of standard output one JSON object with the table and the verdicts.
    """
    from jaxmarket import experiments  # noqa: PLC0415  half a second of imports, only where they are used

    console = Console()
    if list_ or name is None:
        if not list_:
            raise ValueError(f"name: which one? choose from {', '.join(experiments.EXPERIMENTS)}")
        table = Table("name", "shows", "source", title="jaxmarket reproduce NAME")
        for key, experiment in experiments.EXPERIMENTS.items():
            table.add_row(key, experiment.shows, experiment.source)
        console.print(table)
        return
    try:
        report = experiments.reproduce(
            name, out, quick=quick, full=full, seeds=seeds, seed=seed, resolution=resolution, depth=depth
        )
    except KeyboardInterrupt:
        print("jaxmarket: interrupted; what was finished is kept, run it again to go on", file=sys.stderr)
        sys.exit(130)
    console.print(report.view())
    console.print(f"written to {report.folder}: {', '.join(report.written)}", highlight=False)
    if json:
        print(report.to_json())


@app.command
def bench(
    name: str | None = None,
    *,
    quick: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
    out: Path = Path("bench"),
    cores: int = 1,
) -> None:
    """Measure what jaxmarket costs on this machine.

    Args:
        name: step, train, scale, compile or roofline; all of them, one after the other, without a name.
        quick: the headline numbers only, each benchmark within a minute.
        json: make the last line of standard output one JSON object with the numbers.
        out: folder for NAME.json, raw seconds included.
        cores: on a CPU, cores this process may use; more than one is usually slower.
    """
    from jaxmarket import bench as benchmarks  # noqa: PLC0415  only where it is used

    console = Console()
    reports = []
    for each in benchmarks.BENCHMARKS if name is None else [name]:
        try:
            reports.append(benchmarks.bench(each, out, quick=quick, cores=cores))
        except KeyboardInterrupt:
            print(f"jaxmarket: {each} interrupted; finished benchmarks are in {out}", file=sys.stderr)
            sys.exit(130)
        console.print(f"[bold]{each}[/]: {benchmarks.BENCHMARKS[each]}")
        console.print(reports[-1].view())
        written = ", ".join(sorted(path.name for path in out.glob(f"{each}.*")))
        console.print(f"written to {out}: {written}", highlight=False)
    if json:
        found = [report.to_json() for report in reports]
        print(runs.to_json(found[0] if name is not None else {"benchmarks": found}))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what is wrong with a name or a value is one line and exit code 2."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except (cyclopts.CycloptsError, ValueError) as error:
        print(f"jaxmarket: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
