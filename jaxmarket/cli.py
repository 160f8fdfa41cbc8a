"""The command line: ``jaxmarket`` and ``python -m jaxmarket``."""

import dataclasses
import gc
import importlib
import itertools
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import cyclopts
import jax
import numpy as np
from cyclopts import App, Parameter

from jaxmarket import auctions
from jaxmarket.environments import OURS, environment_ids, make
from jaxmarket.evaluation import trace_episode as watch_episode
from jaxmarket.keys import from_words, key_for, key_of
from jaxmarket.learners import LEARNERS
from jaxmarket.runs import best_replies, compilation_cache, files, run_folder
from jaxmarket.runs import processes as multi
from jaxmarket.runs.fitting import evaluate_both, fit
from jaxmarket.runs.interrupts import retained
from jaxmarket.runs.sinks import LOGGERS
from jaxmarket.society import MarketPolicy
from jaxmarket.training import divergence
from jaxmarket.training.config import AGENTS, PRESETS, TrainConfig
from jaxmarket.training.transfer import weight_changes
from jaxmarket.validation import escaped, parse_int
from jaxmarket.view import plotting, tables
from jaxmarket.view.text import DataTable, Screen, emit

if TYPE_CHECKING:
    from jaxmarket.view.replay import Replay

__all__ = ["app", "main"]


def _convert(kind: type, text: str) -> Any:
    # cyclopts rounds 1.5 to 2, and rejects 1e6.
    return parse_int(text) if kind is int else cyclopts.convert(kind, [text])


app = App(
    name="jaxmarket",
    help=(
        "Market-based reinforcement learning: societies of agents that buy and sell the right to act.\n\n"
        "Every command takes --import MODULE, which makes the objects of a module available as module:name: "
        "environments, auctions, learners, bid heads.\n\n"
        "Compiled programs are kept in the user's cache folder, so that the next start is faster. "
        "--no-compilation-cache or JAXMARKET_COMPILATION_CACHE=off switches this off; JAX_COMPILATION_CACHE_DIR names "
        "another folder."
    ),
    result_action="return_value",
    help_format="markdown",
    default_parameter=Parameter(converter=lambda kind, tokens: cyclopts.convert(kind, tokens, converter=_convert)),
)

DIVERGED = 3
"""Exit code if every seed diverged, so that there is no result."""

Json = Annotated[bool, Parameter(negative=())]

_INTERRUPTED = "interrupted; finished parts are kept, repeat the command to continue"


@app.command
def train(
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
    *,
    seed: int | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    start: Path | None = None,
    freeze: tuple[str, ...] = (),
    checkpoint_every: float = 60.0,
    devices: int | Literal["all"] = 1,
    log: tuple[str, ...] = (),
    check: Annotated[bool, Parameter(negative=())] = False,
    other_versions: Annotated[bool, Parameter(negative=())] = False,
    best_reply_every: int | None = None,
    json: Json = False,
) -> None:
    """Train a society, evaluate it, and show the bids that it learned.

    Compiled programs are kept in the user's cache folder, unless --no-compilation-cache is given.

    Args:
        config: settings.
        seed: random seed, 0 by default; the same seed gives the same bits on the same device.
        out: folder for settings, metrics, checkpoints, parameters and figures.
        resume: run folder (--out) of an interrupted run, which continues with its own settings. If the run has
            finished, show its result.
        start: run folder of a finished run, on this or another task, whose networks initialise this run.
        freeze: parts of the networks that are not trained, such as policy/torso/* or module0/*.
        checkpoint_every: seconds between checkpoints (with --out); 0 for one after every chunk.
        devices: number of devices over which seeds and instances are sharded, or all.
        log: also log to console, jsonl, tensorboard or wandb; may be repeated.
        check: stop with an error at the first bid, price or reward that is not finite, and if money is not conserved;
            slower.
        other_versions: with --resume, continue a run of other library versions; results may differ.
        best_reply_every: updates between two values of the metric best_reply_gain, the distance from equilibrium; only
            for societies on finite processes.
        json: print one JSON object as the last line of standard output.
    """
    unknown = set(log) - set(LOGGERS)
    if unknown:
        raise ValueError(f"log: unknown logger {min(unknown)!r}; choose from {', '.join(LOGGERS)}")
    key, env_params = key_of(0 if seed is None else seed), None
    if resume is not None:
        given = {"env": config, "seed": seed, "out": out, "start": start, "freeze": freeze or None}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"resume: the settings are those in {resume}; leave out {name}")
        out = resume
        config, origin = run_folder.read_config(resume)
        key, freeze = from_words(origin.key), tuple(origin.frozen)
        env_params = run_folder.params_in(config, origin.env_params, resume)
    if config is None:
        raise ValueError("env: expected an environment, such as Chain-v0, or --resume RUN_FOLDER, got neither")
    loggers = [LOGGERS[name](out) for name in log] if jax.process_index() == 0 else []
    result = fit(
        config,
        key,
        out,
        env_params=env_params,
        start=start,
        freeze=freeze,
        resume=resume is not None,
        checkpoint_every=checkpoint_every,
        devices=devices,
        loggers=loggers,
        check=check,
        other_versions=other_versions,
        best_reply_every=best_reply_every,
    )
    screen = Screen()
    screen.print(tables.returns_table(result))
    s = result.summary
    if s["diverged"]:
        screen.message(divergence.described(s["diverged"], s["seeds"]), "yellow")
    bids = tables.bids_table(result)
    if bids is not None:
        screen.print(bids)
    screen.message(
        f"{s['env_steps']:,} environment steps in {s['run_seconds']:.1f} s "
        f"({s['steps_per_second']:,.0f} steps/s), compiled in {s['compile_seconds']:.1f} s"
    )
    if s["interrupted"]:
        again = "" if out is None else f"; resume with {run_folder.resume_command(out)}"
        screen.message(f"interrupted: the numbers are those of the training so far{again}", "yellow")
    if out is not None:
        screen.message(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    if json:
        emit(run_folder.to_json(s))
    if s["interrupted"]:
        sys.exit(130)
    _some_seed(s["return_seeds"], "lower --learning-rate, or find the first value that is not finite with --check")


def _some_seed(returns: Any, remedy: str) -> None:
    """End with exit code 3 if every seed diverged."""
    if not len(divergence.finite(returns)):
        _stop(f"every seed diverged, so there is no result; {remedy}", DIVERGED)


@app.command
def launch(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True)],
    processes: int,
    coordinator: str | None = None,
    process: int | None = None,
) -> None:
    """Run train as one run in several processes, for example: launch --processes 2 train Chain-v0 --out runs/chain.

    On one machine, this starts all processes. On a cluster, run it once on each machine with the same --coordinator and
    --processes, and with its own --process; the run folder must be on a shared disk.

    Args:
        command: train and its settings.
        processes: number of processes; each uses the devices that JAX has there.
        coordinator: HOST:PORT of process 0, to which the others connect.
        process: number of this process, from 0; by default all processes are started on this machine.
    """
    if command[:1] != ("train",):
        raise ValueError(f"command: expected train and its settings, got {' '.join(command) or 'none'}")
    if coordinator is not None and process is not None:
        multi.end_with_parent()
        multi.join(coordinator, processes, process)
        try:
            main(list(command))
        except SystemExit as stop:
            multi.leave(stop.code if isinstance(stop.code, int) else 1)
        except BaseException:
            traceback.print_exc()
            multi.leave(1)
        return
    if coordinator is not None or process is not None:
        raise ValueError(
            "process: expected both --coordinator and --process (on a cluster) or neither (on one machine), got one"
        )
    try:
        code = multi.launch(command, processes)
        stopped = f"stopped by {signal.Signals(code - 128).name}" if code > 128 else ""
    except ChildProcessError as error:
        code, stopped = 1, str(error)
    if stopped:
        words = [w for word in command for w in (word.split("=", 1) if word.startswith("--") else [word])]
        folder = next((b for a, b in itertools.pairwise(words) if a in ("--out", "--resume")), None)
        if folder is not None and Path(folder, "config.json").exists():
            again = f"jaxmarket launch --processes {processes} train --resume {shlex.quote(folder)}"
            stopped += f"; resume with: {again}"
        _stop(stopped, code)
    sys.exit(code)


@app.command
def evaluate(folder: Path, *, seed: int = 0, json: Json = False) -> None:
    """Evaluate a trained society in new episodes, with greedy and with sampled bids.

    On a finite process, also show how far each bidder is from its best reply to the others.

    Args:
        folder: run folder (--out) of a finished run.
        seed: random seed of the episodes.
        json: print one JSON object as the last line of standard output.
    """
    key = key_for(key_of(seed), "evaluate")
    run = run_folder.read(folder)
    table = DataTable(title=f"{run.config.adapter.name}: returns of new episodes, {run.config.seeds} seeds")
    for column in ("bids", "return", "± std", "lowest", "highest", "length", "unfinished"):
        table.add_column(column, justify="right")
    with tables.progress(run.config.adapter.name) as show:
        show.phase("evaluating")
        trainable, seeds = run.config.settings.trainable, run.config.seeds
        both = jax.device_get(evaluate_both(trainable, run.params, key, seeds, run.env_params))
    trained = np.isfinite(run.summary["return_seeds"])
    kept = np.all([trained, *(np.isfinite(episodes.returns).all(1) for episodes in both.values())], axis=0)
    summary: dict[str, Any] = {
        "env": run.config.adapter.name,
        "seeds": run.config.seeds,
        "interrupted": run.interrupted,
        "diverged": np.flatnonzero(~kept).tolist(),
    }
    for bids, episodes in both.items():
        returns, unfinished = divergence.spread(episodes.returns[kept].mean(1)), 1 - episodes.finished[kept].mean(1)
        share, length = divergence.spread(unfinished).mean, divergence.spread(episodes.lengths[kept]).mean
        table.add_row(bids, *map(tables.number, (*returns, length)), f"{tables.number(100 * share, 1)}%")
        summary |= {
            f"{bids}_return_mean": returns.mean,
            f"{bids}_return_std": returns.std,
            f"{bids}_unfinished_share": share,
        }
    if not kept.all():
        table.caption = f"excludes diverged seeds: {', '.join(map(str, summary['diverged']))}"
    Screen().print(table)
    if best_replies.solvable(trainable) and run.env_params is None and kept.any():
        params = jax.tree.map(lambda leaf: leaf[kept], run.params)
        how = {"greedy": True, "sampled": False}
        found = {bids: best_replies.of_seeds(trainable, params, greedy=greedy) for bids, greedy in how.items()}
        Screen().print(tables.best_replies_table(found))
        for bids, replies in found.items():
            summary[f"{bids}_best_reply_gain"] = float(np.mean([each.gains.max() for each in replies]))
            summary[f"{bids}_best_reply_gains"] = np.mean([each.gains for each in replies], 0).tolist()
    _say_if_interrupted(run)
    if json:
        emit(run_folder.to_json(summary))
    _some_seed(np.where(kept, 0.0, np.nan), "evaluate another run")


def _say_if_interrupted(run: run_folder.SavedRun) -> None:
    if run.interrupted:
        Screen().message(run.interruption, "yellow")


@app.command
def watch(
    folder: Path,
    *,
    seed: int = 0,
    run_seed: int | None = None,
    sampled: bool = False,
    steps: int = 60,
    html: Path | None = None,
    gif: Path | None = None,
    episodes: int | None = None,
    training: bool = False,
) -> None:
    """Show the auctions of one episode: bids, winners, payments; or write a page that replays several, or a picture.

    Args:
        folder: run folder (--out) of a finished run. With --html or --gif also the log of a host market (json_lines).
        seed: random seed of the episodes.
        run_seed: the seed of the run to watch; by default the one with the highest greedy return, on a page the three.
        sampled: sample the bids instead of bidding their means.
        steps: largest number of auctions of an episode.
        html: HTML file for a page that replays the auctions in a browser, without a network.
        gif: GIF file for an animated picture of the auctions of one seed, with one frame per auction.
        episodes: only --html and --gif: episodes of each seed, 3 by default; of a log 20, evenly spread over it.
        training: only --html: repeat the training and show the bids in every state at fifty moments of it.
    """
    if training and html is None:
        raise ValueError("training: the training is shown on a page only; add --html FILE")
    if html is not None or gif is not None:
        if gif is not None and gif.suffix.lower() != ".gif":
            raise ValueError(f"gif: expected a file name that ends in .gif, got {str(gif)!r}")
        made = _replay(folder, seed, run_seed, sampled=sampled, steps=steps, episodes=episodes, training=training)
        _write_replay(made, html, gif)
        return
    if folder.is_file():
        raise ValueError(
            f"folder: expected a run folder, got the file {folder}; add --html FILE to show a log on a page"
        )
    key = key_for(key_of(seed), "watch")
    run = run_folder.read(folder)
    if steps < 1:
        raise ValueError(f"steps: expected an integer >= 1, got {steps}")
    policy = run.policy(run_seed, greedy=not sampled)
    if not isinstance(policy, MarketPolicy):
        kind = run.config.settings.labels["agent"]
        raise ValueError(
            f"folder: {folder} is a run of agent {kind}, whose auctions are not shown as text; add --html FILE, or "
            "give one of a society"
        )
    env_params = run.config.adapter.parameters(run.env_params)
    rows = watch_episode(policy.society, policy.params, key, env_params, steps)
    shown = f"seed {run.best_seed} of {run.config.seeds}, the best" if run_seed is None else f"seed {run_seed}"
    screen = Screen()
    screen.message(f"society: {shown}")
    screen.print(tables.trace_table(policy.society, rows))
    _say_if_interrupted(run)


def _replay(
    source: Path, seed: int, run_seed: int | None, *, sampled: bool, steps: int, episodes: int | None, training: bool
) -> "Replay":
    number = {} if episodes is None else {"episodes": episodes}  # else the default of what is shown
    if source.is_file():
        from jaxmarket.host.replay import replay  # noqa: PLC0415  host markets, only where they are used

        return replay(source, title=source.name, **number)
    from jaxmarket.runs.watching import watch as watch_run  # noqa: PLC0415  environments and their pictures

    run = run_folder.read(source)
    made = watch_run(run, seed=seed, run_seed=run_seed, steps=steps, sampled=sampled, training=training, **number)
    _say_if_interrupted(run)
    return made


def _write_replay(made: "Replay", html: Path | None, gif: Path | None) -> None:
    screen = Screen()
    if html is not None:
        made.save(html)
        auctions = sum(len(episode.steps) for episode in made.episodes)
        screen.message(
            f"written to {html}: {len(made.episodes)} episodes, {auctions} steps, {len(made.html) / 1000:,.0f} kB; "
            "open it in a browser"
        )
    if gif is not None:
        made.save_gif(gif)
        screen.message(f"written to {gif}: {gif.stat().st_size / 1000:,.0f} kB")
    for each in made.training[:1]:
        screen.message(each.note)


@app.command
def compare(
    *folders: Path,
    weights: Annotated[bool, Parameter(negative=())] = False,
    share: float = 0.9,
    target: float | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Compare finished runs: differing settings, returns with intervals, steps to a target return.

    The first run is the baseline of the others. With --weights, compare the networks of two runs, such as a run and
    one that started from it: how much each part changed.

    Args:
        folders: run folders of two or more runs on one environment, or a folder of runs, such as that of a sweep.
        weights: compare networks instead of returns, for exactly two runs.
        share: the target return, as a share of the best run's return at the end of training.
        target: the target return itself, instead of a share.
        out: PNG file for the figure.
        json: print one JSON object as the last line of standard output.
    """
    if weights:
        _compare_weights(folders, out, json)
        return
    from jaxmarket.runs import comparison  # noqa: PLC0415  scipy's statistics, only where they are used

    found = comparison.compare(folders, share=share, target=target)
    screen = Screen()
    screen.print(*(table.as_rich() for table in found.tables()))
    if out is not None:
        with files.writing(out):
            plotting.save(found.figure(), out)
        screen.message(f"written to {out}")
    if json:
        emit(run_folder.to_json(found.document()))


def _compare_weights(folders: tuple[Path, ...], out: Path | None, json: bool) -> None:
    if len(folders) != 2:
        raise ValueError(f"weights: expected two run folders, before and after, got {len(folders)}")
    old, new = (run_folder.read(folder) for folder in folders)
    rows = weight_changes(old.networks, new.networks, modules=old.config.settings.trainable.module_axis)
    parts = list(dict.fromkeys(row["part"] for row in rows))
    table = DataTable("part", title=f"{old.config.adapter.name} → {new.config.adapter.name}: mean over seeds")
    for column in ("weights", "relative change", "share moved"):
        table.add_column(column, justify="right")
    for part in parts:
        mine = [row for row in rows if row["part"] == part]
        change, moved = (np.mean([row[field] for row in mine]) for field in ("change", "moved"))
        relative = "–" if np.isnan(change) else f"{change:.3f}"
        table.add_row(part, mine[0]["weights"], relative, f"{moved:.3f}")
    table.caption = (
        "relative change: |after - before| / |before|, – if it was zero before · "
        "share moved: weights that changed by more than a tenth of the part's root mean square"
    )
    screen = Screen()
    screen.print(table)
    if out is not None:
        fig, (ax,) = plotting.figure(height=1.5 + 0.25 * len(parts))
        plotting.draw_weight_changes(ax, rows)
        with files.writing(out):
            plotting.save(fig, out)
        screen.message(f"written to {out}")
    if json:
        emit(run_folder.to_json({"before": old.config.adapter.name, "after": new.config.adapter.name, "parts": rows}))


class _Given(TrainConfig):
    """Settings as given, without derived ones: a sweep derives these for every combination."""

    __doc__ = TrainConfig.__doc__

    def __post_init__(self) -> None:
        pass


@app.command
def sweep(
    config: Annotated[_Given, Parameter(name="*")],
    *,
    vary: tuple[str, ...],
    samples: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    share: float = 0.9,
    json: Json = False,
) -> None:
    """Train every combination of some settings, and compare them.

    Every combination is a run in its own folder below OUT, such as learning_rate=0.001,entropy=0.1, which compare,
    evaluate and watch accept. If the command is repeated, finished runs are skipped. All values of a numeric setting,
    such as rates, entropy, exploration and gamma, share one compiled program; other settings compile for every value.

    Args:
        config: settings of all combinations.
        vary: a setting and its values: learning_rate=1e-3,1e-4 · clones=1,2 · hidden=none,64,64x64 · a range of 8
            values, learning_rate=1e-5:1e-2:log:8 (or lin); once per setting.
        samples: number of combinations to draw at random instead of all; ranges then need no number of values.
        seed: random seed.
        out: folder for the runs, sweep.csv, sweep.json and sweep.png; sweeps/ENV by default.
        share: the target return of "steps to", as a share of the best run's return at the end of training.
        json: print one JSON object as the last line of standard output.
    """
    from jaxmarket.runs import sweeps  # noqa: PLC0415  scipy's statistics, only where they are used

    varied: dict[str, Any] = {}
    for text in vary:
        field, values = sweeps.parse(text)
        if field in varied:
            raise ValueError(f"vary: {field} is given twice; give all its values in one --vary")
        varied[field] = values
    # Settings at their defaults are left out: `sweep` derives them for every combination.
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "env"}
    given = {
        f.name: settings[f.name] for f in dataclasses.fields(config) if settings.get(f.name, f.default) != f.default
    }
    folder = Path("sweeps") / str(config.env) if out is None else out
    try:
        found = sweeps.sweep(config.env, varied, folder, samples=samples, seed=seed, share=share, **given)
    except KeyboardInterrupt:
        _stop(_INTERRUPTED, 130)
    screen = Screen()
    screen.print(*(table.as_rich() for table in found.tables()))
    screen.message(f"{len(found.settings)} combinations, {found.compiled} training programs compiled")
    screen.message(f"written to {folder}: a folder per combination, sweep.csv, sweep.json, sweep.png")
    if json:
        emit(run_folder.to_json(found.document()))
    _some_seed([r for run in found.comparison.runs for r in run.returns], "sweep over lower learning rates")


@app.command(name="list")
def list_names() -> None:
    """List the environments, kinds of agents, auctions, learners and presets."""
    table = DataTable(show_header=False)
    table.add_column("")
    table.add_column("", wrap=24)
    refused = []
    for env_id in environment_ids():
        try:
            if env_id not in OURS:  # the library's own are all usable, and some take long to build
                make(env_id)
        except ValueError:
            refused.append(env_id)
    table.add_row("environments", ", ".join(i for i in environment_ids() if i not in refused))
    table.add_row("not usable", ", ".join(refused))
    table.add_row("agents", ", ".join(AGENTS))
    table.add_row("auctions", ", ".join(auctions.MECHANISMS))
    table.add_row("learners", ", ".join(LEARNERS))
    table.add_row("presets", ", ".join(PRESETS))
    Screen().print(table)


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
    """Reproduce the experiments of a paper, and report for each claim whether the measurements confirm it.

    If the command is repeated, it skips the conditions that are finished.

    Args:
        name: name of the experiment, or module:NAME for your own; --list shows all.
        list_: list the experiments and their sources.
        quick: use a smaller budget, about two minutes on two cores, to test that the experiment runs; its verdicts are
            not evidence.
        full: also run the published settings with Beta bids and 2,000 updates; hours on a CPU.
        seeds: independent seeds per condition; 16 by default for most experiments.
        seed: random seed.
        resolution: only mental-rotation: width of the images in pixels, 32 by default; 64 in the paper.
        depth: only mental-rotation: two functions for every input (fixed), or up to four and stop (dynamic).
        out: folder for tables, figures and finished conditions; by default reproductions/NAME, followed by the options
            that are not the defaults, as in NAME-quick-4-seeds-seed-1-resolution-64.
        json: print one JSON object with the table and the verdicts as the last line of standard output.
    """
    from jaxmarket import experiments  # noqa: PLC0415  half a second of imports, only where they are used

    screen = Screen()
    if list_ or name is None:
        if not list_:
            raise ValueError(
                f"name: expected an experiment, got none; choose from {', '.join(experiments.EXPERIMENTS)}"
            )
        table = DataTable("name", title="jaxmarket reproduce NAME")
        table.add_column("shows", wrap=24)
        table.add_column("source", wrap=24)
        for key, experiment in experiments.EXPERIMENTS.items():
            table.add_row(key, experiment.shows, experiment.source)
        screen.print(table)
        return
    if ":" in name:
        _imported(["--import", name.partition(":")[0]])
    try:
        report = experiments.reproduce(
            name, out, quick=quick, full=full, seeds=seeds, seed=seed, resolution=resolution, depth=depth
        )
    except KeyboardInterrupt:
        _stop(_INTERRUPTED, 130)
    screen.print(report.view())
    screen.message(f"written to {report.folder}: {', '.join(report.written)}")
    if json:
        emit(report.to_json())
    if report.errors:
        _stop(f"{', '.join(report.errors)} failed; {report.folder}/errors.txt has the tracebacks", 1)


@app.command(help_flags=())
def bench(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Run benchmarks: ``python -m benchmarks``, in a checkout.

    Args:
        words: name of a benchmark and its options; --help lists them.
    """
    for root in (Path.cwd(), Path(__file__).parents[1]):
        if (root / "benchmarks" / "scoreboard.py").exists():  # other projects have a folder of this name, too
            break
    else:
        raise ValueError(
            "bench: the installed package has no benchmarks; run this command in a checkout of "
            "https://github.com/jaxmarket/jaxmarket, where they are in the folder benchmarks"
        )
    # A process that has not imported JAX yet: some benchmarks set variables that JAX reads when it is imported.
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "benchmarks", *words]
    os.execve(sys.executable, command, os.environ | {"PYTHONPATH": paths})


def _stop(message: str, code: int) -> NoReturn:
    """End with one line on standard error."""
    emit(f"jaxmarket: {escaped(' '.join(message.split()))}", sys.stderr)
    sys.exit(code)


def _imported(words: list[str]) -> list[str]:
    """Import the modules of ``--import MODULE``, also from the current folder, and return the other words.

    Raises:
        ValueError: a module cannot be imported.
    """
    rest, following = [], iter(words)
    for word in following:
        option, equals, module = word.partition("=")
        if option != "--import":
            rest.append(word)
            continue
        module = module if equals else next(following, "")
        sys.path[:0] = [path for path in (str(Path.cwd()),) if path not in sys.path]
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise ValueError(f"import: cannot import module {module!r} ({error}); give its full name") from error
    return rest


_NOT_CACHED = "--no-compilation-cache"


def _cached(words: list[str]) -> list[str]:
    """Switch the compilation cache on unless the words say otherwise, and return the words without this option."""
    rest = [word for word in words if word != _NOT_CACHED]
    if rest == words and words[:1] != ["bench"]:  # which starts another process
        compilation_cache.switch_on()
    return rest


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Invalid names and values end it with a one-line message and exit code 2."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        gc.freeze()  # while JAX traces, the collector would look through the imported objects again and again
    try:
        if words[:1] != ["launch"]:  # whose processes import the modules themselves
            arguments = _cached(_imported(words))
        with retained():
            app(arguments, console=Screen(), exit_on_error=False, print_error=False)
    except cyclopts.MissingArgumentError as error:
        message = str(error)
        if "--resume" in words and "--env" in message:
            message = "resume: a run continues with the settings in its folder; leave out others, or use --start"
        _stop(message, 2)
    except (cyclopts.CycloptsError, ValueError) as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop("interrupted", 130)
