"""Traders that change the learning rate of a training run and live on what their changes earn.

They are compared with the best fixed rate of a grid, random search and population-based training. Every method may look
at the same number of training runs. What it has chosen, a rate for each period or a policy that chooses it, is then
tested on new runs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.deep_market import GuardedPrograms, Terms
from jaxmarket.experiments.claims import Claim, at, every_seed, not_separated, separated, within
from jaxmarket.experiments.conditions import Arrays, Compute, Scope
from jaxmarket.experiments.experiment import Experiment, Quick, Table
from jaxmarket.experiments.feedback_tasks import RATES, TASKS, TRANSFER, knobs
from jaxmarket.experiments.results import Results
from jaxmarket.runs.estimates import mean
from jaxmarket.switches import compiled_map
from jaxmarket.training import tuners
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.loop import train
from jaxmarket.training.population import PopulationAgents
from jaxmarket.training.training_environment import TrainingEnvironment
from jaxmarket.types import Array, real
from jaxmarket.view import plotting

__all__ = ["ARMS", "EXPERIMENT"]

Choose = Callable[[Array], tuple[Any, Array]]
"""``key -> (choice, env_steps)``: settings f [horizon, knobs] or a policy, and the steps spent, NaN if not counted."""

_HARMFUL = 30.0  # a learning rate that destroys a network
_SOCIETY: dict[str, Any] = {
    "learner": "valuation",
    "minibatch": 16,
    "epochs": 4,
    "learning_rate": 3e-3,
    "hidden": (32,),
    "gamma": 1.0,
}
_THRESHOLDS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
_TERMS = Terms(wealth_tax=1e-2, endowment=0.2, birth_rate=0.02, inheritance=0.3, replace_poorest=True)
_SELECTED = 8  # members of a population of population-based training
_RUNS_EACH = 4  # of a setting of random search


_QUICK_RUNS = 40


# --- methods: what they choose with a budget of runs


def _fixed_rates(env: TrainingEnvironment) -> Array:
    """Every rate as settings of all periods: f [rates, horizon, 1]."""
    return jnp.broadcast_to(jnp.asarray(RATES, real())[:, None, None], (len(RATES), env.horizon, 1))


def _grid(env: TrainingEnvironment, runs: int) -> Choose:
    def choose(key: Array) -> tuple[Any, Array]:
        chosen = tuners.best_of(env, key, _fixed_rates(env), max(1, runs // len(RATES)))
        return chosen.settings, chosen.env_steps

    return choose


def _random_search(env: TrainingEnvironment, runs: int) -> Choose:
    def choose(key: Array) -> tuple[Any, Array]:
        key_settings, key = jax.random.split(key)
        settings = tuners.random_settings(env, key_settings, max(1, runs // _RUNS_EACH))
        chosen = tuners.best_of(env, key, settings, _RUNS_EACH)
        return chosen.settings, chosen.env_steps

    return choose


def _population_based(env: TrainingEnvironment, runs: int) -> Choose:
    def choose(key: Array) -> tuple[Any, Array]:
        chosen = tuners.population_based(env, key, _SELECTED, max(1, runs // _SELECTED))
        return chosen.settings, chosen.env_steps

    return choose


def _traders(config: TrainConfig) -> Choose:
    trainable = config.settings.trainable  # made here, because some environments cannot be made while a jit is traced

    def choose(key: Array) -> tuple[Any, Array]:
        state, _ = train(config, key)
        return trainable.policy(state.learner.params, greedy=True), jnp.full((), jnp.nan)

    return choose


def _config(env: TrainingEnvironment, runs: int, **settings: Any) -> TrainConfig:
    """Traders whose episodes are that many runs, eight at a time."""
    return TrainConfig(env, steps=runs * env.horizon, instances=8, horizon=env.horizon, **settings)


def _society(env: TrainingEnvironment, runs: int) -> Choose:
    return _traders(_config(env, runs, **_SOCIETY))


def _untrained(env: TrainingEnvironment, runs: int) -> Choose:
    config = _config(env, runs, **_SOCIETY)
    trainable, hyper = config.settings.trainable, config.settings.hyperparameters

    def choose(key: Array) -> tuple[Any, Array]:
        state = trainable.init(key, env.default_params, hyper.as_arrays())
        return trainable.policy(state.learner.params, greedy=True), jnp.zeros((), real())

    return choose


def _deep_market(env: TrainingEnvironment, runs: int) -> Choose:
    rules = GuardedPrograms(env.observation_space().shape[0], env.num_actions, length=2, constants=_THRESHOLDS)
    agent = PopulationAgents(rules, 32, _TERMS, max_births=2)
    return _traders(_config(env, runs, agent=agent))


@dataclasses.dataclass(frozen=True)
class Tuner:
    """A way to choose learning rates.

    Attributes:
        choose: with a number of runs of an environment.
        control: whether it is compared on the first task only.
        fields: of the environment in which it chooses.
    """

    choose: Callable[[TrainingEnvironment, int], Choose]
    control: bool = False
    fields: Callable[[], Mapping[str, Any]] = dict


def _sabotaged() -> Mapping[str, Any]:
    return {"knobs": knobs(_HARMFUL)}


ARMS = {
    "valuation_traders": Tuner(_society),
    "deep_market": Tuner(_deep_market),
    "grid": Tuner(_grid),
    "random_search": Tuner(_random_search),
    "population_based": Tuner(_population_based),
    "unpaid": Tuner(_society, True, lambda: {"pay": "nothing"}),
    "untrained": Tuner(_untrained, True),
    "saboteur": Tuner(_deep_market, True, _sabotaged),
    "training_return": Tuner(_society, True, lambda: {"pay": "training"}),
}
"""``unpaid`` and ``training_return`` are traders that are paid for nothing or for the return while learning; in
``saboteur`` the agents of a deep market may also destroy the network."""


# --- conditions


def _share_of_wealth(population: Any, action: int) -> Array:
    """The share of a population's wealth that agents with this action have."""
    theirs = (population.agents.action == action) & population.alive
    return jnp.where(theirs, population.wealth, 0).sum() / population.wealth.sum()


def _compute(task: str, arm: str, runs: int, tested: int, keys: Array) -> Arrays:
    """Every seed chooses with its budget, and is tested on new runs."""
    env = dataclasses.replace(TASKS[task].make(), **ARMS[arm].fields())
    choose = ARMS[arm].choose(env, runs)

    def one(key: Array) -> dict[str, Array]:
        key_choose, key_test = jax.random.split(key)
        choice, env_steps = choose(key_choose)
        keys = jax.random.split(key_test, tested)
        settings = isinstance(choice, jax.Array)
        if settings:
            done = tuners.follow(env, keys, jnp.broadcast_to(choice, (tested, *choice.shape)))
        else:
            done = tuners.drive(env, keys, choice)
        found = {
            "performance": done.performance[:, -1].mean(),
            "curve": done.performance.mean(0),
            "rates": jnp.exp(jnp.log(done.settings[..., 0]).mean(0)),
            # Traders do not count their steps; a run of a test has as many on average.
            "env_steps": jnp.where(jnp.isnan(env_steps), done.env_steps.mean() * runs, env_steps),
        }
        if arm == "saboteur" and not settings:
            found["share"] = _share_of_wealth(choice.params, env.num_actions - 1)
        return found

    return compiled_map(one, keys)


def _transfer(runs: int, keys: Array) -> Arrays:
    """Traders that were trained on CartPole, and every fixed rate, on runs of another task; the keys are the same."""
    source, env = TASKS["CartPole"].make(), TRANSFER.make()
    choose = _society(source, runs)

    def one(key: Array) -> dict[str, Array]:
        key_choose, key_test = jax.random.split(key)
        policy, _ = choose(key_choose)
        driven = tuners.drive(env, key_test[None], policy)
        fixed = tuners.follow(env, jnp.broadcast_to(key_test, (len(RATES),)), _fixed_rates(env))
        curves = jnp.concatenate([driven.performance, fixed.performance])
        found = {"curves": curves, "rates": driven.settings[0, :, 0], "performance": curves[0, -1]}
        return found | {f"rate {rate:g}": curve[-1] for rate, curve in zip(RATES, curves[1:], strict=True)}

    return compiled_map(one, keys)


def _arms(task: str) -> list[str]:
    return [name for name, arm in ARMS.items() if task == "changing" or not arm.control]


def _cases(scope: Scope) -> list[tuple[str, str]]:
    """Tasks and arms."""
    return [(task, arm) for task in (("changing",) if scope.quick else TASKS) for arm in _arms(task)]


def _conditions(scope: Scope) -> list[Compute]:
    def compute(task: str, arm: str) -> Compute:
        runs, tested = (_QUICK_RUNS, 4) if scope.quick else (TASKS[task].runs, TASKS[task].tested)
        return Compute(f"{task}, {arm}", functools.partial(_compute, task, arm, runs, tested))

    found = [compute(*case) for case in _cases(scope)]
    if not scope.quick:
        transfer = functools.partial(_transfer, TASKS["CartPole"].runs)
        found.append(Compute("transfer to Breakout", transfer, seeds=TRANSFER.tested))
    return found


# --- claims


def _claims(scope: Scope) -> list[Claim]:
    def final(arm: str, task: str = "changing") -> at:
        return at(f"{task}, {arm}", "performance")

    def of_the_best_fixed(task: str) -> Callable[[Results], np.ndarray]:
        return lambda results: final("valuation_traders", task)(results) / final("grid", task)(results).mean()

    traders = final("valuation_traders")
    claims = [
        separated("traders beat the best fixed rate where the best rate changes", traders, final("grid")),
        separated("traders beat random search there", traders, final("random_search")),
        separated("traders beat population-based training there", traders, final("population_based")),
        separated("a deep market of rules beats the best fixed rate there", final("deep_market"), final("grid")),
        separated("traders are better than unpaid ones", traders, final("unpaid")),
        not_separated("unpaid traders change nothing that lasts", final("unpaid"), final("untrained")),
        separated(
            "payment by held-out return is better than payment by the return while learning",
            traders,
            final("training_return"),
        ),
        every_seed(
            "agents that destroy the network have less than 1% of a deep market's wealth",
            at("changing, saboteur", "share"),
            at_most=0.01,
        ),
    ]
    if not scope.quick:
        claims += [
            within(
                f"[{task}] traders are within 5% of the best fixed rate",
                of_the_best_fixed(task),
                at_least=0.95,
                estimate=mean,
            )
            for task in ("Chain", "CartPole")
        ]
        transfer = "transfer to Breakout"
        claims.append(
            separated(
                "traders of CartPole beat the rate that they start with on Breakout",
                at(transfer, "performance"),
                at(transfer, "rate 0.001"),
            )
        )
    return claims


# --- tables and figures


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    for task, arm in _cases(results.scope):
        if (name := f"{task}, {arm}") in results:
            found = results[name]
            early, late = (np.exp(np.log(half).mean()) for half in np.split(found["rates"], 2, axis=1))
            yield {
                "task": task,
                "arm": arm,
                "performance": mean(found["performance"]),
                "rate": float(early),
                "later": float(late),
                "k steps": float(found["env_steps"].mean()) / 1000,
            }


def _transfer_rows(results: Results) -> Iterator[dict[str, Any]]:
    if (name := "transfer to Breakout") in results:
        found = results[name]
        yield {"arm": "traders of CartPole", "performance": mean(found["performance"])}
        for rate in RATES:
            yield {"arm": f"rate {rate:g}", "performance": mean(found[f"rate {rate:g}"])}


def _facts(results: Results) -> Mapping[str, Any]:
    def described(task: str, arm: str) -> dict[str, Any]:
        found = results[f"{task}, {arm}"]
        final = mean(found["performance"])
        return {
            "seeds": len(found["performance"]),
            "mean": final.value,
            "interval": [final.low, final.high],
            "env_steps": float(found["env_steps"].mean()),
        }

    by_task: dict[str, dict[str, Any]] = {}
    for task, arm in _cases(results.scope):
        if f"{task}, {arm}" in results:
            by_task.setdefault(task, {})[arm] = described(task, arm)
    return {"arms": by_task.pop("changing", {}), "other_tasks": by_task}


def _draw(results: Results) -> Any:
    """Performance (first row) and learning rates (second row) along the runs of the test."""
    tasks = [task for task in TASKS if any(f"{task}, {arm}" in results for arm in ARMS)]
    fig, axes = plotting.figure(columns=len(tasks), rows=2, width=5.0, height=3.4)
    panels = np.array(axes, object).reshape(2, len(tasks))
    shown = [arm for arm in ARMS if arm != "untrained"]
    colors = plotting.series_colors(shown)
    for (reached, rate), task in zip(panels.T, tasks, strict=True):
        for arm in _arms(task):
            if arm in shown and (name := f"{task}, {arm}") in results:
                found, style = results[name], {"color": colors[arm], "label": arm.replace("_", " ")}
                periods = np.arange(1, found["curve"].shape[1] + 1)
                plotting.draw_quartiles(reached, periods, found["curve"].T, **style)
                plotting.draw_quartiles(rate, periods, found["rates"].T, **style)
        reached.set(title=task, ylabel="held-out performance")
        rate.set(xlabel="period of a run", ylabel="learning rate", yscale="log")
    plotting.legend_below(fig)
    return fig


EXPERIMENT = Experiment(
    name="complete-feedback",
    shows="traders that change the learning rate of training runs, against grids, random search and PBT",
    source="Sudhir and Tran-Thanh (2025), complete feedback; our own test",
    conditions=_conditions,
    claims=_claims,
    tables=[
        Table(
            "arms",
            "what learning rates do that were chosen with the same number of training runs",
            _rows,
            "performance: of new runs at their end, 0 for an untrained learner and 1 for an optimal one\n"
            "rate, later: geometric means of the learning rate in the first and the second half of runs\n"
            "k steps: environment steps of all training runs that a seed has looked at, evaluations included",
        ),
        Table(
            "transfer",
            "Breakout: traders that were trained on CartPole, and fixed rates",
            _transfer_rows,
            "performance: return at the end of 4 runs / 10, with the same keys for every row",
        ),
    ],
    figures={"complete_feedback": _draw},
    facts=_facts,
    seeds=8,
    quick=Quick(seeds=2),
)
