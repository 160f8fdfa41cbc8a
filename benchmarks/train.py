"""Speed of complete training, compared with a monolithic agent and with Stable-Baselines3.

A step is one auction, its environment step, and its share of settlement, learning and metrics. The monolithic PPO is
`jaxmarket.training.monolith`: the same kind of networks, learner, instances and minibatches, as many parameters in all.
"""

import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step import market_rollout
from benchmarks.timing import REPEATS, ROOT, Report, allowed_cores, executable, in_a_row, measure
from jaxmarket.evaluation import evaluate
from jaxmarket.runs.devices import over_seeds
from jaxmarket.training import monolith as baselines
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.training.settings import Settings
from jaxmarket.training.society import TrainState
from jaxmarket.types import Array, PyTree
from jaxmarket.view.tables import progress

__all__ = [
    "CHAIN",
    "agent",
    "beside_rollouts",
    "equal_width",
    "largest",
    "monolithic",
    "parameters_of_agent",
    "parameters_of_society",
    "run",
    "training",
    "worker",
]

CHAIN = train_config("Chain-v0", hidden=(16,), instances=128, horizon=32, steps=163_840, log_every=40)
"""Chain with the paper's networks and PPO settings: 4,096 steps per update as published, from 128 instances."""


def training(config: TrainConfig) -> tuple[Callable[[TrainState], Any], Callable[[Array], TrainState]]:
    """The training chunk and the initial state of one seed, as functions; traced settings are constants."""
    program, env_params = config.settings.trainable, config.adapter.default_params
    hyper, oracle = config.settings.hyperparameters.as_arrays(), config.settings.oracle
    return (
        lambda state: program.chunk(state, env_params, hyper, oracle),
        lambda key: program.init(key, env_params, hyper),
    )


def _alone(config: TrainConfig) -> Settings:
    """The settings of a monolithic agent with those of a society, without the auctions' settings."""
    rules = ("exploration", "exploration_final", "dropout", "reserve")
    return dataclasses.replace(config, **dict.fromkeys(rules)).as_monolith().settings


def agent(config: TrainConfig, hidden: tuple[int, ...] | None = None) -> baselines.Monolith:
    """The monolithic agent with the settings of a society; ``hidden``: its dense layers, if they are others."""
    return baselines.Monolith.of(_alone(config), hidden)


def monolithic(config: TrainConfig, hidden: tuple[int, ...] | None = None) -> tuple[Callable, Callable]:
    """`training` of a monolithic agent."""
    program, env_params = agent(config, hidden), config.adapter.default_params
    hyper = config.settings.hyperparameters.as_arrays()
    return (
        lambda state: program.chunk(state, env_params, hyper),
        lambda key: program.init(key, env_params),
    )


def _parameters(learner: Any, config: TrainConfig) -> int:
    """The number of parameters of a learner's networks."""
    seen = config.settings.society.observation
    obs = jnp.zeros(seen.shape, seen.dtype)
    return baselines.parameters(jax.eval_shape(learner.init, jax.random.key(0), obs))


def parameters_of_society(config: TrainConfig) -> int:
    """The number of parameters of a society's networks."""
    return config.settings.society.modules * _parameters(config.settings.learner, config)


def parameters_of_agent(config: TrainConfig, hidden: tuple[int, ...] | None = None) -> int:
    """The number of parameters of `agent`."""
    return _parameters(agent(config, hidden).learner, config)


def equal_width(config: TrainConfig) -> tuple[int, ...]:
    """Hidden widths for which the number of parameters of a monolithic agent is closest to that of the society."""
    layers = len(config.settings.society.policy.torso.hidden)  # type: ignore[attr-defined]
    wanted = parameters_of_society(config)

    def missing(width: int) -> int:
        return wanted - parameters_of_agent(config, (width,) * layers)

    below = largest(lambda width: missing(width) >= 0, 1, wanted)
    return (min((below, below + 1), key=lambda width: abs(missing(width))),) * layers


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest integer from ``low`` to ``high - 1`` that fits, if all smaller ones do: by bisection."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclasses.dataclass(frozen=True)
class _Idle:
    """A learner that does not change its state."""

    learner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def update(self, state: PyTree, *_: Any) -> tuple[PyTree, dict[str, Array]]:
        return state, {}


def beside_rollouts(report: Report, label: str, config: TrainConfig, repeats: int = REPEATS) -> dict[str, float]:
    """Measure complete training and parts of it, in turns: steps/s.

    Returns:
        The rates of ``training``, of ``rollouts``, and of ``rollouts, settlement, metrics``: training by learners that
        change nothing.
    """
    (step, start), settings = training(config), config.settings
    program: Any = settings.trainable
    idle = dataclasses.replace(program, learner=_Idle(program.learner))
    given = config.adapter.default_params, settings.hyperparameters.as_arrays(), settings.oracle
    state = jax.jit(start)(jax.random.key(0))
    roll = market_rollout(settings.society, state.learner.params, settings.instances, settings.horizon)
    timings = measure(
        {
            "training": (step, (state,)),
            "rollouts": (in_a_row(roll, settings.updates_per_chunk), (jax.random.key(1), state.market)),
            "rollouts, settlement, metrics": (lambda state: idle.chunk(state, *given), (state,)),
        },
        repeats,
    )
    report.keep(label, timings)
    return {name: settings.auctions_per_chunk / timing.median for name, timing in timings.items()}


def _chain(report: Report) -> None:
    """Measure complete training on Chain on one core, and rollouts without learning."""
    rates = beside_rollouts(report, "Chain", CHAIN, 2 * REPEATS)
    parts = [1e9 / rates[name] for name in ("rollouts", "rollouts, settlement, metrics", "training")]
    report.tables["training on Chain, ns per step"] = [
        {"rollouts": parts[0], "settlement and metrics": parts[1] - parts[0], "learning": parts[2] - parts[1]}
    ]
    report.headline |= {
        "chain_steps_per_second": rates["training"],
        "chain_rollout_steps_per_second": rates["rollouts"],
        "train_over_rollout": rates["training"] / rates["rollouts"],
    }


def worker(seed: int) -> None:
    """Train Chain when a line arrives on standard input; print the seconds of each chunk."""
    step, start = training(CHAIN)
    state = jax.jit(start)(jax.random.key(seed))
    program = executable(step, state)
    jax.block_until_ready(program(state))
    print("ready", flush=True)
    sys.stdin.readline()
    seconds = []
    for _ in range(4 * REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(program(state))
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds), flush=True)


def _every_core(report: Report) -> None:
    """Measure the throughput of one process per core, with separate seeds."""
    cores = allowed_cores()
    if len(cores) < 2 or jax.default_backend() != "cpu":
        report.headline["chain_steps_per_second_every_core"] = None
        return
    # Set the affinity before the import, because a backend keeps the cores that it starts with.
    code = "import os; os.sched_setaffinity(0, {{{0}}}); from benchmarks.train import worker; worker({0})"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    workers: list[Any] = [
        subprocess.Popen([sys.executable, "-c", code.format(core)], cwd=ROOT, **pipes) for core in cores
    ]  # fmt: skip
    for process in workers:
        process.stdout.readline()  # ready
    for process in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    seconds = [json.loads(process.communicate()[0]) for process in workers]
    report.timings["Chain: every core, one process each"] = {"seconds": seconds}
    report.headline["chain_steps_per_second_every_core"] = sum(
        CHAIN.settings.auctions_per_chunk / float(np.median(s)) for s in seconds
    )


def cart_pole() -> TrainConfig:
    """The society on CartPole that is compared with one agent."""
    return train_config("CartPole-v1", hidden=(64, 64), instances=128, horizon=32, steps=32_768, log_every=8)


def _against_monolithic(report: Report) -> None:
    """Compare a society on CartPole with one agent with as many parameters and the same settings."""
    config = cart_pole()
    hidden = equal_width(config)
    programs = {"society": training(config), "monolithic": monolithic(config, hidden)}
    states = {name: jax.jit(start)(jax.random.key(0)) for name, (_, start) in programs.items()}
    timings = measure({name: (step, (states[name],)) for name, (step, _) in programs.items()}, 2 * REPEATS)
    report.keep("CartPole", timings)
    rates = {name: config.settings.auctions_per_chunk / timing.median for name, timing in timings.items()}
    report.headline["society_over_monolithic"] = rates["society"] / rates["monolithic"]
    rows = report.tables.setdefault("ppo on CartPole-v1, 128 instances × 32 steps, minibatch 128", [])
    for name, timing in timings.items():
        rows.append(
            {
                "agent": name,
                "parameters": baselines.parameters(states[name].learner),
                "steps/s": rates[name],
                "± IQR": rates[name] * timing.iqr / timing.median,
                "compile s": timing.compile_seconds,
            }
        )


def _many_seeds(report: Report) -> None:
    """Compare 64 seeds of Chain in one call with one seed with 64 times the instances; steps and minibatches agree."""
    many = dataclasses.replace(CHAIN, steps=4_096, log_every=1)
    single = dataclasses.replace(many, instances=64 * 128, steps=64 * 4_096)
    (step, start), (step_one, start_one) = training(many), training(single)
    states = jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(0), 64))
    timings = measure(
        {
            "64 seeds × 128 instances": (functools.partial(over_seeds, step), (states,)),
            "1 seed × 8,192 instances": (step_one, (jax.jit(start_one)(jax.random.key(0)),)),
        }
    )
    report.keep("seeds", timings)
    seeds, one = (single.settings.auctions_per_chunk / timing.median for timing in timings.values())
    report.headline |= {"seeds64_over_single": seeds / one, "seeds64_steps_per_second": seeds}


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """An algorithm and its settings on one environment."""

    name: str
    config: TrainConfig
    monolithic: bool = False

    def build(self) -> tuple[Callable, Callable, Callable[[Any, Array], Array]]:
        """Functions for a chunk, an initial state, and the mean greedy return of 64 new episodes."""
        env_params = self.config.adapter.default_params
        if self.monolithic:
            hidden = equal_width(self.config)
            step, start = monolithic(self.config, hidden)
            alone = agent(self.config, hidden).player(greedy=True)
            score = lambda s, key: alone.evaluate(s.learner.params, key, env_params, 64).returns.mean()  # noqa: E731
        else:
            step, start = training(self.config)
            greedy = dataclasses.replace(self.config.settings.society, greedy=True)
            score = lambda s, key: evaluate(greedy, s.learner.params, key, env_params, 64).returns.mean()  # noqa: E731
        return step, start, score


def comparisons() -> list[tuple[str, float, list[_Candidate]]]:
    """Environments, the returns that count as solved, and the compared algorithms."""
    # Societies use the tuned settings of docs/reproductions/numerical.md, or the learner's; agents were tuned by hand.
    # All algorithms are evaluated every 4,096 steps on Chain, and every 16,384 on CartPole.
    chain: dict[str, Any] = {"hidden": (16,), "instances": 128, "horizon": 32, "steps": 4_096_000, "log_every": 1}
    tuned: dict[str, Any] = {"learning_rate": 4e-4, "entropy": 0.05, "trace_decay": 0.8}
    alone: dict[str, Any] = {"learning_rate": 1e-3, "entropy": 0.01, "trace_decay": 0.95}
    return [
        (
            "Chain-v0",
            0.79,
            [
                _Candidate("society ppo", train_config("Chain-v0", **chain, **tuned)),
                _Candidate("society valuation", train_config("Chain-v0", learner="valuation", hidden=(), log_every=4)),
                _Candidate("monolithic ppo", train_config("Chain-v0", **chain, **alone), monolithic=True),
            ],
        ),
        (
            "CartPole-v1",
            475.0,
            [
                _Candidate(
                    "society valuation", train_config("CartPole-v1", learner="valuation", hidden=(64, 64), log_every=16)
                ),
                _Candidate(
                    "monolithic ppo",
                    train_config(
                        "CartPole-v1",
                        hidden=(64, 64),
                        learning_rate=3e-4,
                        value_learning_rate=1e-3,
                        entropy=0.01,
                        trace_decay=0.95,
                        epochs=4,
                        log_every=4,
                    ),
                    monolithic=True,
                ),
            ],
        ),
    ]


def _solve(report: Report, seeds: int, show: Callable[[str], None]) -> None:
    rows = report.tables.setdefault(f"until solved, {seeds} seeds one after the other, compiling apart", [])
    for env, threshold, candidates in comparisons():
        for candidate in candidates:
            config = candidate.config
            step, start, score = candidate.build()
            began = time.perf_counter()
            state = jax.jit(start)(jax.random.key(0))
            program = executable(step, state)
            compiled = time.perf_counter() - began
            jax.block_until_ready(program(state))  # warm-up
            grade = jax.jit(score)
            needed, steps = [], []
            for seed in range(seeds):
                show(f"{env}: {candidate.name}, seed {seed}")
                state, seconds = jax.jit(start)(jax.random.key(seed)), 0.0
                for done in range(1, config.settings.chunks + 1):
                    began = time.perf_counter()
                    state = jax.block_until_ready(program(state)[0])
                    seconds += time.perf_counter() - began
                    # Two evaluations, to reduce the influence of chance.
                    if all(float(grade(state, jax.random.key(k))) >= threshold for k in (done, -done)):
                        needed.append(seconds)
                        steps.append(done * config.settings.auctions_per_chunk)
                        break
            rows.append(_row(env, candidate.name, needed, steps, seeds))
            raw = {"seconds": needed, "steps": steps, "compile_seconds": compiled}
            report.timings[f"{env}: {candidate.name} until solved"] = raw
            report.headline[f"seconds_to_solved {env} {candidate.name}"] = rows[-1]["s, median"]


def _row(env: str, name: str, seconds: list[float], steps: list[int], seeds: int) -> dict[str, Any]:
    return {
        "env": env,
        "agent": name,
        "solved": f"{len(seconds)} of {seeds}",
        # The time of a seed that did not solve the task counts as infinite.
        "s, median": None
        if 2 * len(seconds) < seeds
        else float(np.median(seconds + [np.inf] * (seeds - len(seconds)))),
        "worst": max(seconds) if len(seconds) == seeds else None,
        "steps": int(np.median(steps)) if len(steps) == seeds else None,
        "steps/s": sum(steps) / sum(seconds) if seconds else None,
    }


def _stable_baselines(report: Report, seeds: int, show: Callable[[str], None]) -> None:
    """Measure Stable-Baselines3's PPO with its default settings and eight environments, on the same core."""
    try:
        import torch  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        from stable_baselines3 import PPO  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.env_util import make_vec_env  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.evaluation import evaluate_policy  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        report.notes.append("Stable-Baselines3 is not installed; run pip install -e '.[baselines]' to include its PPO")
        return
    torch.set_num_threads(1)
    needed, steps = [], []
    for seed in range(seeds):
        show(f"CartPole-v1: Stable-Baselines3, seed {seed}")
        model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=seed), seed=seed, device="cpu")
        seconds, done = 0.0, 0
        while done < 500_000:
            began = time.perf_counter()
            model.learn(8 * 2048, reset_num_timesteps=False)
            seconds, done = seconds + time.perf_counter() - began, done + 8 * 2048
            if evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=8, seed=done), n_eval_episodes=64)[0] >= 475:
                needed.append(seconds)
                steps.append(done)
                break
    rows = next(rows for title, rows in report.tables.items() if title.startswith("until solved"))
    rows.append(_row("CartPole-v1", "Stable-Baselines3", needed, steps, seeds))
    versions = {name: version(name) for name in ("stable-baselines3", "torch", "gymnasium")}
    report.timings["CartPole-v1: Stable-Baselines3 until solved"] = {"seconds": needed, "steps": steps, **versions}


def run(quick: bool = False) -> Report:
    """Measure Chain, CartPole with one agent, many seeds, times until solved, and Stable-Baselines3 if installed."""
    report = Report("train")
    parts: list[tuple[str, Callable[[], None]]] = [
        ("Chain, one core", functools.partial(_chain, report)),
        ("CartPole, society and one agent", functools.partial(_against_monolithic, report)),
        ("64 seeds", functools.partial(_many_seeds, report)),
    ]
    if not quick:
        parts.insert(1, ("Chain, every core", functools.partial(_every_core, report)))
    with progress("train", unit="parts") as show:
        total = len(parts) + (0 if quick else 2)
        for done, (label, part) in enumerate(parts):
            show(done, total, label)
            part()
        if quick:
            report.notes.append("omitted with --quick: every core, time to solved and Stable-Baselines3")
        else:
            _solve(report, 8, lambda note: show(len(parts), total, note))
            _stable_baselines(report, 3, lambda note: show(len(parts) + 1, total, note))
        show(total, total)
    if not quick:
        report.notes.append("solved: greedy return of 64 new episodes, .79 of .8 on Chain and 475 of 500 on CartPole")
    report.notes.append("Chain: paper's networks and PPO settings, 2 clones, 128 instances × 32 steps per update")
    return report
