"""Growth of time and memory per step with bidders, instances and network width, and of training with bidders."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from benchmarks import train
from benchmarks.step import market_rollout, scrambled
from benchmarks.timing import Report, exponent, in_a_row, measure
from jaxmarket.environments import adapt, garnet
from jaxmarket.policies import BidPolicy, KumaraswamyHead, linear
from jaxmarket.society import Society, reset
from jaxmarket.training.pinned import train_config
from jaxmarket.types import Array, PyTree
from jaxmarket.view.plotting import COLORS, figure, legend_below
from jaxmarket.view.tables import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw", "exponents", "market", "run", "sweep", "training"]

_HORIZON = 16
_TRAINING, _LEARNERS = "training", ("valuation", "ppo")


def market(bidders: int, width: int = 16) -> Society:
    """A society of ``bidders`` bidders, two for each action of a random deterministic process of eight states."""
    env = garnet(0, 8, bidders // 2, 0.9, branching=1)
    return Society(adapt(env), BidPolicy(linear(width), KumaraswamyHead()), clones=2)


def _time(society: Society, instances: int, repeats: int, budget: int) -> tuple[float, float, dict]:
    """Seconds and bytes per environment step, and the raw timing."""
    env_params = society.env.default_params
    # Each under jit: one program compiles sooner than many of one operation.
    params = jax.jit(lambda: scrambled(society.init(jax.random.key(0)), jax.random.key(1)))()
    begin = jax.jit(jax.vmap(lambda key: reset(society, key, env_params)[0]))
    states = begin(jax.random.split(jax.random.key(2), instances))

    def roll(key: Array, state: PyTree) -> tuple[PyTree, PyTree]:
        params, states = state
        states, rows = market_rollout(society, params, instances, _HORIZON)(key, states)
        return (params, states), rows

    count = max(1, budget // (instances * _HORIZON * society.bidders))
    timing = measure({"": (in_a_row(roll, count), (jax.random.key(3), (params, states)))}, repeats)[""]
    steps = instances * _HORIZON
    return timing.median / (count * steps), (timing.memory_bytes or 0) / steps, timing.raw()


def sweep(
    report: Report, what: str, sizes: Iterable[int], budget: int = 1_000_000, instances: int = 64
) -> Iterator[int]:
    """Measure several bidders, instances or widths, and add a row for each; yields a size before it is measured.

    Args:
        report: the report to extend.
        what: ``bidders``, ``instances`` or ``width``.
        sizes: in ascending order.
        budget: bids per call; a call runs at least one rollout, so the largest sizes exceed it.
        instances: where they are not what is measured.
    """
    rows = report.tables.setdefault(f"growth with {what}", [])
    for size in sizes:
        yield size
        society = market(size if what == "bidders" else 4, size if what == "width" else 16)
        count = size if what == "instances" else instances
        seconds, memory, raw = _time(society, count, 10, budget)
        report.timings[f"{size} {what}"] = raw
        rows.append({what: size, "µs per step": 1e6 * seconds, "bytes per step": memory})


def training(report: Report, sizes: Iterable[int], repeats: int = 10) -> Iterator[int]:
    """Measure complete training with several numbers of bidders, two to a table; yields a size before it is measured.

    Args:
        report: the report to extend.
        sizes: numbers of bidders in ascending order.
        repeats: of each measurement.
    """
    rows = report.tables.setdefault(_TRAINING, [])
    for size in sizes:
        yield size
        row: dict[str, float] = {"bidders": size}
        for learner in _LEARNERS:
            shape: dict[str, Any] = {"instances": 32, "horizon": 32, "hidden": (), "steps": 1024, "log_every": 1}
            config = train_config(garnet(0, 8, size // 2, 0.9, branching=1), learner=learner, clones=2, **shape)
            step, start = train.training(config)
            timing = measure({learner: (step, (jax.jit(start)(jax.random.key(0)),))}, repeats)[learner]
            report.timings[f"training {size} bidders by {learner}"] = timing.raw()
            row[f"{learner}, µs per step"] = 1e6 * timing.median / config.settings.auctions_per_chunk
        rows.append(row)


def run(quick: bool = False) -> Report:
    """Measure several values of one size at a time and fit exponents."""
    report = Report("scale")
    few = {"bidders": (2, 64, 4096), "instances": (1, 4096)}
    all_of_them = {
        "bidders": tuple(2**k for k in range(1, 13)),
        "instances": tuple(4**k for k in range(9)),
        "width": (16, 32, 64, 128, 256, 512),
    }
    sweeps = few if quick else all_of_them
    trained = (2, 64) if quick else all_of_them["bidders"]
    todo, done = sum(map(len, sweeps.values())) + len(trained), 0
    with progress("scale", unit="sizes") as show:
        for what, sizes in sweeps.items():
            for size in sweep(report, what, sizes, 400_000 if quick else 1_000_000):
                show(done, todo, f"{size} {what}")
                done += 1
        report.headline = exponents(report)
        report.figure = draw(report)
        for size in training(report, trained):
            show(done, todo, f"training of {size} bidders")
            done += 1
        show(todo, todo)
    rows = report.tables[_TRAINING]
    for learner in _LEARNERS:
        times = [row[f"{learner}, µs per step"] for row in rows]
        report.headline[f"exponent_training_{learner}"] = exponent([row["bidders"] for row in rows], times)
    report.notes.append("exponents: of growth with bidders, 64 instances, fitted over all sizes")
    report.notes.append("bytes: memory that XLA plans for arguments, results and temporaries of a call, per step")
    return report


def exponents(report: Report) -> dict[str, float | None]:
    """The exponents of time and memory per step with the number of bidders."""
    rows = report.tables["growth with bidders"]
    sizes = [row["bidders"] for row in rows]
    return {
        "exponent_time": exponent(sizes, [row["µs per step"] for row in rows]),
        "exponent_memory": exponent(sizes, [row["bytes per step"] for row in rows]),
    }


def draw(report: Report) -> "Figure":
    """Draw time and memory per step over each size, and a line of proportional growth."""
    fig, axes = figure(len(report.tables), 2, width=4.2, height=3.2)
    for column, (title, rows) in enumerate(report.tables.items()):
        sizes = [next(iter(row.values())) for row in rows]
        for row, (quantity, color) in enumerate((("µs per step", COLORS[0]), ("bytes per step", COLORS[1]))):
            ax, values = axes[len(report.tables) * row + column], [line[quantity] for line in rows]
            ax.loglog(sizes, values, "o-", color=color)
            ax.set_xscale("log", base=2)
            if max(values) < 10 * min(values):  # less than a decade: label minor ticks
                ax.yaxis.set_minor_formatter("{x:g}")
                ax.yaxis.set_major_formatter("{x:g}")
            ax.set(xlabel=title.removeprefix("growth with "), ylabel=quantity if column == 0 else None)
            if column == 0:
                start = values[-1] / sizes[-1]
                ax.plot(sizes, [start * size for size in sizes], color="gray", linestyle=":", label="proportional")
                legend_below(ax)
    machine = report.machine
    device = machine["device"] if machine["platform"] != "cpu" else f"{machine['cpu']}, {machine['cores_used']} core"
    fig.suptitle(f"rollouts: growth of time and memory per step ({device})", fontsize=10)
    return fig
