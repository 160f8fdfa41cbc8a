"""Training compared with four limits of the device: arithmetic, transcendental functions, memory, and operations.

XLA's cost analysis gives floating-point operations, transcendental functions (exponentials, logarithms, …) and bytes
accessed. It counts the body of a loop once, so the cost of one training update is computed from its loop bodies,
compiled separately: a step of all instances times the horizon, the settlement, and a gradient step times the number of
minibatches. Bootstrap auctions, metrics, and all but one iteration of the loop in the random number generator are not
counted, so the counts are slightly low. The fourth count is the number of operations (products of matrices and other
kernels) that the compiled program starts, from its text, with the trip counts of its loops.

Each count over the measured rate of the device is a lower bound of the time; the largest is the nearest bound, and its
share of the measured time is how much of it the bound explains. So that two runs agree, every time is the fastest of
ten, because other load only adds to it, and bandwidths are measured well inside each level of the cache (at the
geometric mean of its size and that of the level below), never at its edge. A program is compared with the smallest
level that holds it.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import images
from benchmarks.step import market_rollout
from benchmarks.timing import Report, counts, executable, measure
from jaxmarket.learners.protocol import EXPERIENCE_AXES, is_large
from jaxmarket.settlement import settle
from jaxmarket.society import draw, reset, step_with
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.training.society import SocietyTraining, module_experience
from jaxmarket.types import Array, PyTree, Rules
from jaxmarket.view.tables import progress

__all__ = [
    "Cost",
    "Level",
    "configs",
    "levels",
    "operations",
    "run",
    "update_costs",
]

_MEMORY = 2**27  # bytes of an array that is in no cache
_REPEATS = 60  # short calls, of which the fastest counts


Call = tuple[Callable[..., Any], tuple[Any, ...]]


def _product(size: int = 1024) -> tuple[Call, float]:
    """A matrix product, and its floating-point operations."""
    matrix = jnp.ones((size, size))
    return (jnp.matmul, (matrix, matrix)), 2 * size**3


def _transcendentals(size: int = 2048, times: int = 2000) -> tuple[Call, float]:
    """Exponentials and logarithms of a vector in the first-level cache, and their number."""
    passes = lambda vector: jax.lax.fori_loop(0, times, lambda _, x: jnp.log(2 + jnp.exp(-x)), vector)  # noqa: E731
    return (passes, (jnp.linspace(0, 1, size),)), 2 * size * times


def _passes(size: int, moved: int = 2**28) -> tuple[Call, float]:
    """Passes over an array of ``size`` bytes, and the bytes that they read and write."""
    vector = jnp.ones(max(1, size // 4), jnp.float32)
    times = max(8, moved // (2 * vector.nbytes))
    return (
        lambda vector: jax.lax.fori_loop(0, times, lambda _, x: x + 1, vector),
        (vector,),
    ), 2 * vector.nbytes * times


def _in_sequence(operation: Callable[..., Array], *arguments: Array) -> tuple[Call, float]:
    """An operation on few numbers again and again, each on the result of the last, and how often."""

    def loop(x: Array, *others: Array) -> Array:
        def body(_: Array, x: Array) -> Array:
            return functools.reduce(lambda x, _: operation(x, *others), range(64), x)

        return jax.lax.fori_loop(0, 500, body, x)

    count = operations(executable(loop, *arguments).as_text() or "")
    return (loop, arguments), sum(count.values())


@dataclasses.dataclass(frozen=True)
class Level:
    """A level of the memory: programs of up to ``size`` bytes are compared with its bandwidth."""

    name: str
    size: float
    measured_at: int  # bytes of the array whose bandwidth is measured


def levels() -> list[Level]:
    """The levels of this device, smallest first: data caches of the CPU, as Linux describes them, and the memory."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes: dict[int, int] = {}
    if jax.default_backend() == "cpu" and folder.exists():
        for cache in folder.glob("index*"):
            kind, level, size = ((cache / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction":
                sizes[int(level)] = int(size.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(size[-1], 1)
    found, below = [], 2**10
    for level, size in sorted(sizes.items()):
        found.append(Level(f"L{level}", size, int(math.sqrt(below * size))))
        below = size
    return [*found, Level("memory", math.inf, max(_MEMORY, 4 * below))]


_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) .*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%\S+ = .*? ([a-z][\w\-]*)\((.*)$")
_PRODUCTS = {"dot", "custom-call", "convolution"}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


def operations(program: str) -> Counter[str]:
    """The number of ``products`` (of matrices) and other ``kernels`` that a compiled program starts.

    The body of a loop counts as often as it runs if XLA knows that, else once. Of branches the longest counts.

    Args:
        program: XLA's text of the program.
    """
    entry, name = "", ""
    inside: dict[str, list[tuple[str, str]]] = {}
    for line in program.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[2]
            inside[name], entry = [], name if found[1] else entry
        elif inside and (found := _INSTRUCTION.match(line)):
            inside[name].append((found[1], found[2]))

    def count(computation: str) -> Counter[str]:
        total = Counter[str]()
        for code, rest in inside[computation]:
            if code == "while":
                known = re.search(r'known_trip_count":\{"n":"(\d+)', rest)
                trips = int(known[1]) if known else 1
                for part in re.findall(r"(?:condition|body)=%([^\s,]+)", rest):
                    total.update({kind: trips * number for kind, number in count(part).items()})
            elif code == "conditional":
                branches = re.findall(r"%([^\s,{}()]+)", rest.split("computation", 1)[1])
                total.update(max((count(b) for b in branches if b in inside), key=Counter.total))
            elif code == "call" and 'small_call="true"' not in rest:
                total.update(count(re.findall(r"to_apply=%([^\s,]+)", rest)[0]))
            elif code not in _FREE:
                # On CPUs a product may be the body of a fused kernel of a library.
                fused = inside.get(next(iter(re.findall(r"calls=%([^\s,]+)", rest)), ""), ())
                products = code in _PRODUCTS or any(part in _PRODUCTS for part, _ in fused)
                total["products" if products else "kernels"] += 1
        return total

    return count(entry)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What XLA counts in a program."""

    flops: float
    transcendentals: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __mul__(self, times: int) -> "Cost":
        return Cost(*(times * each for each in dataclasses.astuple(self)))


def _cost(function: Any, *arguments: Any) -> Cost:
    """The cost of one call."""
    analysis = counts(function, *arguments)
    return Cost(*(float(analysis.get(name, 0)) for name in ("flops", "transcendentals", "bytes accessed")))


def update_costs(config: TrainConfig) -> dict[str, Cost]:
    """The cost of one training update (of one epoch), by part: steps, settlement and gradients."""
    program, env_params, society = (
        SocietyTraining.of(config.settings),
        config.adapter.default_params,
        config.settings.society,
    )
    hyper = config.settings.hyperparameters.as_arrays()
    state = jax.jit(program.init)(jax.random.key(0), env_params, hyper)
    keys = jax.random.split(jax.random.key(1), program.instances)
    learner: Any = program.learner

    def one_step(params: PyTree, keys: Array, states: PyTree) -> PyTree:
        def instance_step(key: Array, state: PyTree) -> PyTree:
            fresh, _ = reset(society, key, env_params)
            return step_with(society, draw(society, key), params, state, fresh, env_params, Rules())

        return jax.vmap(instance_step)(keys, states)

    def view(rows: PyTree) -> PyTree:
        settlement = jax.vmap(lambda rows: settle(rows, hyper.discount), in_axes=1, out_axes=1)(rows)
        return module_experience(society, rows, settlement.utility)

    roll = market_rollout(society, state.learner.params, program.instances, program.horizon)
    rows = jax.jit(roll)(jax.random.key(2), state.market)[1]
    experience = jax.jit(view)(rows)
    small = jax.tree.map(lambda x: x[..., : learner.minibatch], experience.replace(obs=None))
    small = small.replace(obs=experience.obs[: learner.minibatch])

    def gradient_step(learner_state: PyTree, experience: PyTree) -> PyTree:
        learn = lambda state, e: learner.update(state, e, hyper, state_update, jnp.zeros(()))[0]  # noqa: E731
        return jax.vmap(learn, in_axes=(0, EXPERIENCE_AXES))(learner_state, experience)

    state_update = jnp.zeros((), jnp.int32)
    minibatches = program.instances * program.horizon // learner.minibatch
    parts = {
        "steps": (_cost(one_step, state.learner.params, keys, state.market), program.horizon),
        "settlement": (_cost(view, rows), 1),
        "gradients": (_cost(gradient_step, state.learner, small), minibatches),
    }
    return {name: cost * times for name, (cost, times) in parts.items()}


def configs(quick: bool = False) -> dict[str, TrainConfig]:
    """The configurations that are measured; a quick run leaves out the large networks."""
    # Short calls, a few milliseconds, so that the fastest of many is one that nothing interrupted.
    small: dict[str, Any] = {"instances": 128, "horizon": 32, "steps": 16_384, "log_every": 4}
    large: dict[str, Any] = {"instances": 1024, "horizon": 32, "minibatch": 1024, "steps": 32_768, "log_every": 1}
    found = {
        "Chain-v0": train_config("Chain-v0", hidden=(16,), **small),
        "CartPole-v1": train_config("CartPole-v1", hidden=(64, 64), **small),
    }
    if not quick:
        found |= {name: images.config(name, "ppo") for name in ("TwoRooms-Red-v0", "MentalRotation-v0")}
        found["CartPole-v1, 2 × 256"] = train_config("CartPole-v1", hidden=(256, 256), **large)
    return found


def run(quick: bool = False) -> Report:
    """Measure the limits of the device, and the share of the time that they explain."""
    report = Report("roofline")
    measured = configs(quick)
    memory = report.tables.setdefault("levels of the memory", [])
    rows = report.tables.setdefault("one training update: lower bounds of its time, ms", [])
    with progress("roofline", unit="steps") as show:
        show(0, 2, "timing")
        work = {
            "flops": _product(),
            "transcendentals": _transcendentals(),
            "kernels": _in_sequence(lambda x: x - x.sum(), jnp.ones(8)),
            "products": _in_sequence(jnp.matmul, jnp.eye(8), jnp.eye(8)),
            **{level.name: _passes(level.measured_at) for level in levels()},
        }
        programs: dict[str, Call] = {}
        large: set[str] = set()
        for name, config in measured.items():
            program, env_params = SocietyTraining.of(config.settings), config.adapter.default_params
            hyper = config.settings.hyperparameters.as_arrays()
            state = jax.jit(program.init)(jax.random.key(0), env_params, hyper)
            if is_large(state.learner.params, config.settings.society.modules):
                large.add(name)
            programs[name] = (lambda state, p=program, e=env_params, h=hyper: p.chunk(state, e, h), (state,))
        # All in turns, so that changes of the machine's speed affect the limits and the programs alike.
        counted = {name: call for name, (call, _) in work.items()}
        # The limits with the emitters of fused kernels, without which some loops are not vectorised.
        timings = measure(counted | programs, _REPEATS, large=large | set(counted))
        report.keep("fastest counts", timings)
        rates = {name: amount / min(timings[name].seconds) for name, (_, amount) in work.items()}
        show(1, 2, "counting")
        for level in levels():
            memory.append(
                {"level": level.name, "measured at kB": level.measured_at / 1024, "GB/s": rates[level.name] / 1e9}
            )
        for name, config in measured.items():
            updates, costs = config.settings.updates_per_chunk, update_costs(config)
            seconds = min(timings[name].seconds) / updates
            cost = sum(costs.values(), Cost(0, 0, 0))
            function, arguments = programs[name]
            started = operations(executable(function, *arguments, large=name in large).as_text() or "")
            working_set = timings[name].memory_bytes or _MEMORY
            level = next(level.name for level in levels() if working_set <= level.size)
            bounds = {
                "flops": cost.flops / rates["flops"],
                "transcendentals": cost.transcendentals / rates["transcendentals"],
                "bytes": cost.bytes / rates[level],
                "operations": sum(number / rates[kind] for kind, number in started.items()) / updates,
            }
            nearest = max(bounds, key=lambda bound: bounds[bound])
            rows.append(
                {
                    "training": name,
                    **{bound: 1e3 * least for bound, least in bounds.items()},
                    "took": 1e3 * seconds,
                    "nearest": nearest,
                    "share": bounds[nearest] / seconds,
                    "held in": level,
                }
            )
            report.timings[f"costs: {name}"] = {part: dataclasses.asdict(each) for part, each in costs.items()} | {
                **{kind: number / updates for kind, number in started.items()},
                "working set": working_set,
            }
        show(2, 2)
    report.headline = {
        "gflops_limit": rates["flops"] / 1e9,
        "billion_transcendentals_per_second_limit": rates["transcendentals"] / 1e9,
        "gbytes_per_second_limit": rates["memory"] / 1e9,
        "kernel_microseconds": 1e6 / rates["kernels"],
        "product_microseconds": 1e6 / rates["products"],
        "achieved": rows[0]["share"],
        "achieved_largest": rows[-1]["share"],
    }
    report.notes += [
        "flops: by the rate of a matrix product; transcendentals: by that of exponentials and logarithms of a vector; "
        "bytes that operations read and write: by the bandwidth of the level that holds the program; operations: by "
        "the time of a product of two 8 × 8 matrices, and of the sum of 8 numbers for all other kernels",
        f"share (in the headline achieved): the nearest bound over the time it took; the fastest of {_REPEATS} calls",
    ]
    return report
