"""Terminal output of a run: tables and a progress bar."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from jaxmarket.society import Society
from jaxmarket.training import divergence
from jaxmarket.training.objects import label
from jaxmarket.training.result import RunResult, agent_parts
from jaxmarket.types import Transition
from jaxmarket.validation import escaped
from jaxmarket.view.live import CellOutput, LiveCurve
from jaxmarket.view.text import DataTable, Screen, cell, notebook_text

if TYPE_CHECKING:
    from jaxmarket.interop.deviations import BestReplies

__all__ = [
    "Show",
    "best_replies_table",
    "bids_table",
    "number",
    "progress",
    "return_note",
    "returns_table",
    "trace_table",
]

_SATURATED = 0.1  # smallest share of winning bids at an end of their range that a table shows


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        if speed >= 1e6:
            shown = f"{speed / 1e6:.2f} M"  # a million steps with all digits would take the place of the return
        else:
            shown = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
        return Text(f"{shown} {self.unit}/s", style="cyan")


class _Label(ProgressColumn):
    """Text that is cut, rather than wrapped, if the bar is too wide."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self.text = text

    def render(self, task: Task) -> Text:
        return Text(self.text(task), no_wrap=True, overflow="ellipsis")


class _Remaining(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return Text.assemble("ETA ", super().render(task)) if task.total is not None else Text("")


class _Blocks:
    """A curve as a line of blocks in the width that is left; nothing if that is too narrow."""

    _WIDTHS = (4, 24)

    def __init__(self, curve: LiveCurve) -> None:
        self.curve = curve

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        least, most = self._WIDTHS
        width = min(most, options.max_width)
        yield Text(self.curve.blocks(width) if width >= least else "", style="green", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, self._WIDTHS[1])


class _Curve(ProgressColumn):
    """The curve of a task that has one. Its column receives what the others leave, if the bar expands."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(ratio=1, no_wrap=True))

    def render(self, task: Task) -> _Blocks | Text:
        curve = task.fields.get("curve")
        return Text("") if curve is None else _Blocks(curve)


class Show:
    """Updates a progress bar, shows the current phase, and prints above the bar."""

    def __init__(self, bar: Progress, screen: Screen, label: str, output: CellOutput | None = None) -> None:
        self._bar, self._screen, self._label, self._output = bar, screen, escaped(label), output
        self._curve = LiveCurve()
        self._said: list[Text] = []  # in a notebook
        self._task = bar.add_task(f"{self._label}: compiling", total=None, note="", curve=self._curve)
        self._phase: TaskID | None = None  # the line below a bar that has started
        self._lock = threading.Lock()  # the runs of a sweep share a bar, each on its own thread
        self._refresh(now=True)

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Set the progress to ``done`` of ``total``."""
        self._set_phase("")
        self._bar.update(self._task, description=self._label, completed=done, total=total, note=escaped(note))
        self._refresh()

    def point(self, steps: float, returns: np.ndarray, diverged: np.ndarray) -> None:
        """Add a point to the curve of returns, which the next progress shows; see `LiveCurve.add`."""
        self._curve.add(steps, returns, diverged)

    def phase(self, name: str) -> None:
        """Show a phase without a known length, such as evaluating; an empty name ends it."""
        self._set_phase(name)
        self._refresh(now=True)

    def _set_phase(self, name: str) -> None:
        with self._lock:
            if self._phase is not None:
                self._bar.remove_task(self._phase)
                self._phase = None
            if name and self._bar.tasks[0].total is None:
                self._bar.update(self._task, description=f"{self._label}: {escaped(name)}")
            elif name:
                self._phase = self._bar.add_task(escaped(name), total=None, note="")

    def end(self) -> None:
        """Remove everything but bars with a known length."""
        self._set_phase("")
        if self._bar.tasks[0].total is None:
            self._bar.remove_task(self._task)
        self._refresh(last=True)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._output is not None:
            self._said.append(cell(line))
            self._refresh()
        elif not self._bar.disable:
            self._screen.message(line)

    def _refresh(self, *, now: bool = False, last: bool = False) -> None:
        """Show the current state in a notebook; in a terminal, rich does so several times a second."""
        if self._output is not None:
            self._output.show(functools.partial(self._media, last=last), now=now or last)

    def _media(self, *, last: bool) -> dict[str, str]:
        """Lines, bar and curve as a notebook shows them."""
        media = notebook_text(*self._said, self._bar.make_tasks_table(self._bar.tasks))
        media["text/html"] += self._curve.element(now=last)
        return media


@contextlib.contextmanager
def progress(label: str, *, unit: str = "steps", shown: bool = True) -> Iterator[Show]:
    """A progress bar with rate, ETA and the curve of the return: on standard error, or as the output of a notebook.

    Yields ``show``: ``show(done, total, note)`` moves the bar, ``show.point(...)`` continues the curve,
    ``show.phase(name)`` shows a phase of unknown length (evaluating, saving), ``show.say(line)`` prints a line above
    the bar. In a terminal the curve is a line of blocks, in a notebook a figure below the bar.
    """
    screen = Screen(sys.stderr)
    output = CellOutput() if shown and screen.is_jupyter else None
    unicode = screen.encoding.startswith("utf")
    blocks = screen.is_terminal and unicode  # not at the end of a log
    columns: list[ProgressColumn] = [
        *([SpinnerColumn("dots" if unicode else "line")] if output is None else []),  # a notebook does not turn it
        _Label(lambda task: task.description),
        # What a narrow terminal has no room for: the curve, the bar, then the ETA.
        *(
            [BarColumn(20 if screen.width >= 100 else 8, table_column=Column(no_wrap=True))]
            if screen.width > 70
            else []
        ),
        TaskProgressColumn("{task.percentage:>3.0f}%", "", markup=False, table_column=Column(no_wrap=True)),
        _Rate(unit),
        *([_Remaining(table_column=Column(no_wrap=True))] if screen.width >= 60 else []),
        _Label(lambda task: task.fields["note"]),
        *([_Curve()] if blocks else []),
    ]
    bar = Progress(
        *columns,
        console=screen,
        disable=not shown or output is not None,
        expand=blocks,
        # Printed text appears above the bar, unless the output goes to a file or a pipe.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    with bar if not bar.disable else contextlib.nullcontext():
        show = Show(bar, screen, label, output)
        yield show
        show.end()


def return_note(metrics: dict[str, np.ndarray]) -> str:
    """The mean return of the finished episodes and the number of diverged seeds, for a progress bar."""
    lost = metrics.get("diverged", np.zeros_like(metrics["return_mean"])) > 0
    ended = divergence.finite(metrics["return_mean"][~lost])
    notes = [f"return {ended.mean():.3f}"] if len(ended) else []
    return " · ".join([*notes, f"{lost.sum()} of {len(lost)} seeds diverged"] if lost.any() else notes)


def number(value: float, digits: int = 3) -> str:
    """Format a number with ``digits`` decimals; a dash if it is not finite."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def returns_table(result: RunResult) -> DataTable:
    """The return over seeds with its spread, and the bid errors."""
    s = result.summary
    table = DataTable(title=" · ".join([s["env"], *agent_parts(s)]))
    errors = {"bid error": s["bid_error"]}
    if "bid_error_all" in s:
        errors["all bids"] = s["bid_error_all"]
    lost, cut = s.get("diverged", ()), (s.get("unfinished_share", 0.0), s.get("sampled_unfinished_share", 0.0))
    values, saturation = result.config.settings.values, s.get("saturation") or 0.0
    # An adaptive range ends near the highest revenue, so that right bids may be near its end.
    fixed = "bid_low" in values or "bid_high" in values
    shows = {
        "diverged": bool(lost),
        "unfinished": any(share > 0 for share in cut),
        "saturated": fixed and saturation >= _SATURATED,
    }
    extra = [name for name, shown in shows.items() if shown]
    for column in ("seeds", "return", "± std", "lowest", "highest", "sampled", *errors, *extra):
        table.add_column(column, justify="right")
    notes = ["return: with greedy bids, mean over seeds · sampled: the same with sampled bids"]
    if lost:
        notes.append("diverged: number of seeds, which are excluded from all other columns")
    if "unfinished" in extra:
        notes.append("unfinished: share of episodes that the evaluation's step limit cut, with greedy / sampled bids")
    if "saturated" in extra:
        notes.append(
            "saturated: share of the last winning bids within 1% of an end of the range of bids; widen it with bid_low "
            "and bid_high, or leave both out"
        )
    if s["bid_error"] is not None:
        notes.append(
            "bid error: largest |highest greedy bid - max Q*| / max(1, max |Q*|) over visited states and seeds"
        )
    if "all bids" in errors:
        notes.append("all bids: the same for every greedy bid and the Q* of its primitive")
    notes.append(f"settings: {_settings_text(values)}")
    table.caption = "\n".join(notes)
    shown = {"diverged": str(len(lost)), "unfinished": " / ".join(f"{share:.0%}" for share in cut)}
    shown["saturated"] = f"{saturation:.0%}"
    table.add_row(
        str(s["seeds"]),
        *(number(x) for x in (*divergence.spread(s["return_seeds"]), s["sampled_return_mean"])),
        *("–" if error is None else f"{error:.4f}" for error in errors.values()),
        *(shown[column] for column in extra),
    )
    return table


def best_replies_table(found: "Mapping[str, Sequence[BestReplies]]") -> DataTable:
    """What each bidder gains by its best reply to the others, mean over seeds, and the largest gain of any bidder.

    Args:
        found: `BestReplies` of each seed, by how bids are made.
    """
    table = DataTable(
        title="distance from equilibrium: gain of the best reply",
        caption="in expectation over an episode, discounted; all: the largest of each seed\n"
        "share: of the value of an episode of the optimal policy",
    )
    for column in ("bids", "bidder", "earns", "best reply", "gain", "share"):
        table.add_column(column, justify="right")
    for bids, replies in found.items():
        present, best, gains, shares = (
            np.mean([getattr(each, name) for each in replies], 0) for name in ("present", "best", "gains", "relative")
        )
        for bidder, row in enumerate(zip(present, best, gains, strict=True)):
            table.add_row(bids, str(bidder), *map(number, row), f"{shares[bidder]:.1%}")
        largest, share = (
            float(np.mean([getattr(each, name).max() for each in replies])) for name in ("gains", "relative")
        )
        table.add_row(bids, "all", "", "", number(largest), f"{share:.1%}")
    return table


def _settings_text(values: Mapping[str, object]) -> str:
    """Effective settings on one line."""

    def text(value: object) -> str:
        if isinstance(value, tuple):
            return "x".join(map(str, value)) or "none"
        if isinstance(value, float):
            return f"{value:g}"
        return str(value).lower() if isinstance(value, bool) else str(value)

    plain = {name: v if isinstance(v, str | int | float | tuple) else label(v) for name, v in values.items()}
    return " · ".join(f"{name} {text(value)}" for name, value in plain.items())


def bids_table(result: RunResult) -> DataTable | None:
    """The greedy bid for each primitive in each state, mean over seeds, beside Q*; None where Q* is unknown."""
    if result.q is None or result.bids is None or result.visited is None:
        return None
    q = result.q
    bids = result.bids[np.isfinite(result.bids).all((1, 2))]  # without diverged seeds
    if not len(bids):
        return None
    several = len(bids) > 1
    spread = " (mean ± std over seeds)" if several else ""
    table = DataTable(title=f"greedy bids and Q*{spread}", caption="• visited late in training")
    table.add_column("state")
    for p in range(q.shape[1]):
        table.add_column(f"bid {p}", justify="right", style="cyan")
        table.add_column(f"Q* {p}", justify="right")
    mean, std = bids.mean(0), bids.std(0)
    for s in range(q.shape[0]):
        cells = [f"{s} {'•' if result.visited[:, s].any() else ''}"]
        for p in range(q.shape[1]):
            cells += [f"{mean[s, p]:.3f}" + (f" ±{std[s, p]:.3f}" if several else ""), f"{q[s, p]:.3f}"]
        table.add_row(*cells)
    return table


def trace_table(society: Society, rows: Transition) -> DataTable:
    """The auctions of one episode: bids, winner, payments and reward."""
    rows = jax.device_get(rows)
    primitives = getattr(society.env.env, "names", range(society.primitives))  # where they have names
    table = DataTable(
        title=f"one episode of {society.env.name}, {society.mechanism.name} auction",
        caption="bids of #0, #1, …, · if not eligible | winner: #bidder→action\n"
        "seller –: the auctioneer | end: terminated | cut: truncated",
    )

    def action(t: int, winner: int) -> Any:
        if society.learned is None:
            return primitives[winner // society.clones]
        from jaxmarket.view.pictures import action_text  # noqa: PLC0415  environments and their pictures

        return action_text(society.env, np.asarray(rows.choice)[t])

    for column in ("t", "state", "bids", "winner", "price", "seller", "payout", "reward", "end"):
        numeric = column in ("t", "price", "payout", "reward")
        table.add_column(column, justify="right" if numeric else "left", wrap=15 if column == "bids" else 0)
    for t in range(len(rows.reward)):
        winner, owner = int(rows.outcome.winner[t]), int(rows.owner[t])
        bids = Text(" ").join(
            Text(f"{bid:.3f}", "bold green")
            if a == winner
            else Text(f"{bid:.3f}" if rows.outcome.eligible[t, a] else "·")
            for a, bid in enumerate(rows.outcome.bids[t])
        )
        table.add_row(
            t,
            _describe(np.asarray(rows.obs[t])),
            bids,
            "–" if winner < 0 else f"#{winner}→{action(t, winner)}",
            f"{rows.price[t]:.3f}",
            "–" if owner < 0 else f"#{owner}",
            f"{rows.payout[t]:.3f}",
            f"{rows.reward[t]:.3f}",
            "end" if rows.terminated[t] else "cut" if rows.truncated[t] else "",
        )
    return table


def _describe(obs: np.ndarray) -> str:
    """A state index for a one-hot observation, else its numbers, shortened."""
    flat = np.asarray(obs).reshape(-1)
    if set(np.unique(flat)) <= {0.0, 1.0} and flat.sum() == 1:
        return f"s{int(flat.argmax())}"
    return " ".join(f"{x:.2f}" for x in flat[:2]) + (" …" if len(flat) > 2 else "")
