"""Objectives that come and go: a society of experts for single objectives against one agent for all of them.

Targets of several kinds appear on a grid (`environments.targets`). In a society each module observes one kind and is
paid for it, and the auction decides which module acts. It is compared with one PPO agent that observes all kinds and is
paid for all, and with the same experts without an auction: the module of the first kind that is there acts, or a random
one; also with experts that were trained so. Then a kind is added that no agent has met (a module joins the society with
the parameters of another), or one is removed (its module leaves), and nothing is trained again. Related: bidders with
learned policies, whose objectives come and go, in arXiv:2604.02151.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import evaluation
from jaxmarket.environments.adapter import adapt
from jaxmarket.environments.targets import Targets, TargetsParams, TargetsState
from jaxmarket.experiments.claims import Claim, Values, at, separated, within
from jaxmarket.experiments.conditions import Arrays, Compute, Condition, Scope, Train
from jaxmarket.experiments.experiment import Experiment, Quick, Table, by_condition, column
from jaxmarket.experiments.results import Results
from jaxmarket.experiments.tuning import grid_conditions, tuning_table
from jaxmarket.runs.estimates import Estimate, interquartile_mean
from jaxmarket.runs.measures import final, parameters
from jaxmarket.runs.run_folder import SavedRun
from jaxmarket.switches import whole_program
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import ANNEALED_MONOLITH, LEARNED_SOCIETY, train_config
from jaxmarket.training.transfer import join
from jaxmarket.types import Array, PyTree, Rules
from jaxmarket.view import plotting

__all__ = ["EXPERIMENT", "FirstKind", "config", "returns"]

KINDS, NEW, LIKE = 4, 3, 1
"""Kinds of targets, the one that is added, and the one whose module's parameters the new module copies."""
SITUATIONS = {"three kinds": (0, 1, 2), "a fourth joins": (0, 1, 2, 3), "one of three leaves": (1, 2)}
"""The kinds that there are in an evaluation; agents are trained with three, unless they say so."""
_STEPS, _EPISODES = 300_000, 256
_COMMON: dict[str, Any] = {"steps": _STEPS, "log_every": 2}
_SOCIETY: dict[str, Any] = _COMMON | {"base": LEARNED_SOCIETY, "modules": KINDS, "hidden": (32, 32)}
_PPO: dict[str, Any] = _COMMON | {"base": ANNEALED_MONOLITH, "hidden": (68, 68)}
_RATES = {
    "society": ("learning_rate", "action_learning_rate"),
    "PPO": ("learning_rate", "value_learning_rate"),
}
"""The learning rates of an agent, which are equal."""
TUNED = {"society": 3e-3, "PPO": 1e-2}
"""The best rate of each agent's grid; see the table ``tuning`` of a ``--full`` run."""
GRIDS: dict[str, Any] = {agent: [{"rate": rate} for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)] for agent in TUNED}
"""The rates that are tried, on separate seeds."""
_TUNING_SEED, _TUNING_SEEDS = 5, 4
_KEPT = 0.95  # share of the return of an agent that was trained in the new situation


@dataclasses.dataclass(frozen=True)
class FirstKind(Targets):
    """Targets with fixed priorities: the module of the first kind whose target is there acts."""

    def eligible_modules(self, state: TargetsState, params: TargetsParams) -> Array:
        """One module, or all of them if no target is there."""
        first = jnp.arange(self.kinds) == jnp.argmax(state.present)
        return jnp.where(state.present.any(), first, params.kinds)


# --- conditions


def config(agent: str, situation: str = "three kinds", rate: float | None = None, **changes: Any) -> TrainConfig:
    """The training of an agent with the kinds of a situation.

    Args:
        agent: ``society``, ``society, priorities`` (a society with fixed priorities) or ``PPO``.
        situation: one of `SITUATIONS`.
        rate: the learning rate; by default that of `TUNED`.
        changes: other settings.
    """
    kind, _, priorities = agent.partition(", ")
    absent = tuple(k for k in range(KINDS) if k not in SITUATIONS[situation])
    env = (FirstKind if priorities else Targets)(KINDS, absent=absent)
    rates: dict[str, Any] = dict.fromkeys(_RATES[kind], TUNED[kind] if rate is None else rate)
    return train_config(env, **((_SOCIETY if kind == "society" else _PPO) | rates | changes))


def returns(arbitration: str, keys: Array, run: SavedRun, *, joins: bool = True) -> Arrays:
    """The mean greedy return of every seed in every situation, without further training: f64 [seeds] each.

    Args:
        arbitration: which module of a society acts: ``auction``, ``priorities`` or ``random``; without meaning for PPO.
        keys: typed PRNG keys [seeds].
        run: the trained agents.
        joins: whether a module joins where a fourth kind does.
    """
    env = (FirstKind if arbitration == "priorities" else Targets)(KINDS)
    player: Any = run.config.settings.trainable.player(greedy=True)
    params, rules = jax.tree.map(jnp.asarray, run.params), None
    if run.config.agent == "society":
        player = dataclasses.replace(player.society, env=adapt(env))
        present = jnp.arange(KINDS) != (KINDS if joins else NEW)
        rules = Rules(exploration=float(arbitration == "random"), present=jnp.repeat(present, player.clones))
        params = jax.vmap(lambda each: join(each, NEW, like=LIKE))(params)
    found = {}
    for situation, kinds in SITUATIONS.items():
        there = env.default_params.replace(kinds=jnp.isin(jnp.arange(KINDS), jnp.asarray(kinds)))
        found[situation] = np.asarray(_play(player, params, keys, there, rules), np.float64)
    return found


@functools.partial(whole_program, static_argnums=0)
def _play(player: Any, params: PyTree, keys: Array, env_params: TargetsParams, rules: Rules | None) -> Array:
    """The mean return of greedy episodes of every seed: f [seeds]. A society follows the rules, PPO has none."""

    def mean(params: PyTree, key: Array) -> Array:
        if rules is None:
            return player.evaluate(params, key, env_params, _EPISODES).returns.mean()
        return evaluation.evaluate(player, params, key, env_params, _EPISODES, rules=rules).returns.mean()

    return jax.vmap(mean)(params, keys)


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        start: the training run whose agents play.
        arbitration: which module acts, as in `returns`.
        scratch: the agent whose training in the new situation its returns are compared with; None for no comparison.
        joins: as in `returns`.
    """

    start: str
    arbitration: str = "auction"
    scratch: str | None = "society"
    joins: bool = True


RUNS: Mapping[str, Callable[[], TrainConfig]] = {
    "trained society": functools.partial(config, "society"),
    "trained PPO": functools.partial(config, "PPO"),
    "society with four": functools.partial(config, "society", "a fourth joins"),
    "PPO with four": functools.partial(config, "PPO", "a fourth joins"),
    "society with two": functools.partial(config, "society", "one of three leaves"),
    "PPO with two": functools.partial(config, "PPO", "one of three leaves"),
    "trained by priorities": functools.partial(config, "society, priorities"),
    "trained at random": functools.partial(config, "society", exploration=1.0, exploration_final=1.0),
    "trained PPO, longer": functools.partial(config, "PPO", steps=4 * _STEPS),
}
ARMS: Mapping[str, Arm] = {
    "society": Arm("trained society"),
    "society, nothing joins": Arm("trained society", joins=False),
    "fixed priorities": Arm("trained society", "priorities"),
    "random arbitration": Arm("trained society", "random"),
    "fixed priorities, trained so": Arm("trained by priorities", "priorities"),
    "random arbitration, trained so": Arm("trained at random", "random"),
    "PPO": Arm("trained PPO", scratch="PPO"),
    "PPO, four times the steps": Arm("trained PPO, longer", scratch=None),
}
_SCRATCH = {"a fourth joins": "with four", "one of three leaves": "with two"}
_LEFT_OUT = ("with two", "trained by", "trained at", "longer")  # of a quick run


def _names(scope: Scope) -> tuple[list[str], list[str]]:
    """Runs and arms of that scope."""
    runs = [name for name in RUNS if not (scope.quick and any(part in name for part in _LEFT_OUT))]
    return runs, [name for name, arm in ARMS.items() if arm.start in runs]


def _conditions(scope: Scope) -> list[Condition]:
    def tried(name: str, agent: str, setting: Mapping[str, Any]) -> list[Condition]:
        return [Train(name, config(agent, **setting), seed=_TUNING_SEED, seeds=_TUNING_SEEDS)]

    runs, arms = _names(scope)
    played = [
        Compute(name, functools.partial(returns, ARMS[name].arbitration, joins=ARMS[name].joins), (ARMS[name].start,))
        for name in arms
    ]
    return [
        *(Train(name, RUNS[name]()) for name in runs),
        *played,
        *(grid_conditions(GRIDS, tried) if scope.full else []),
    ]


# --- claims


def _share(arm: str, situation: str) -> Values:
    """The return of an arm, relative to that of agents that were trained in the situation: f [seeds]."""

    def values(results: Results) -> np.ndarray:
        trained = results.measure(f"{ARMS[arm].scratch} {_SCRATCH[situation]}", "return")
        return results.measure(arm, situation) / trained.mean()

    return values


def _claims(scope: Scope) -> list[Claim]:
    before, added, removed = SITUATIONS
    arms = [arm for arm in _names(scope)[1] if not arm.startswith("society")]

    def higher(text: str, situation: str, other: str) -> Claim:
        return separated(text, at("society", situation), at(other, situation))

    def kept(text: str, situation: str, trained: str) -> Claim:
        text = f"{text}: the society keeps at least {_KEPT:.0%} of the return of one that is trained {trained}"
        return within(text, _share("society", situation), at_least=_KEPT)

    claims = [higher(f"three kinds: the society's return is higher than that of {arm}", before, arm) for arm in arms]
    for text, situation in (("a fourth kind", added), ("one kind leaves", removed)):
        claims += [
            higher(f"{text}: the society's return is higher than that of {arm}", situation, arm)
            for arm in arms
            if arm.startswith("PPO")
        ]
    share = "a fourth kind: the share that the society keeps is larger than that of PPO"
    claims += [
        higher("a fourth kind: the society's return is higher if a module joins", added, "society, nothing joins"),
        kept("a fourth kind", added, "with four"),
        separated(share, _share("society", added), _share("PPO", added)),
    ]
    return claims if scope.quick else [*claims, kept("one kind leaves", removed, "with two")]


# --- table and figure


def _relative(situation: str) -> Any:
    """A column: the share of the return of agents that were trained in a situation."""

    def cell(results: Results, name: str) -> Estimate | None:
        if f"{ARMS[name].scratch} {_SCRATCH[situation]}" not in results:
            return None
        return interquartile_mean(_share(name, situation)(results))

    return cell


def _sizes(results: Results) -> dict[str, int]:
    """The number of parameters of each agent."""
    return {agent: int(parameters(results[f"trained {agent}"])[0]) for agent in TUNED}


def _note(results: Results) -> str:
    sizes = " · ".join(f"{agent} {size:,} parameters" for agent, size in _sizes(results).items())
    return (
        "greedy return of new episodes, interquartile mean over seeds ± the larger side of its 95% bootstrap interval\n"
        "share: of the mean return of societies (PPO: agents) that were trained with four or two kinds from the start\n"
        f"all agents were trained with three kinds, and nothing is trained again · {sizes}"
    )


def _table_rows(results: Results) -> Any:
    columns: dict[str, Any] = {}
    for situation in SITUATIONS:
        columns[situation] = situation
        if situation in _SCRATCH:
            columns[f"share {_SCRATCH[situation]}"] = _relative(situation)
    return by_condition(columns, first="agent", names=_names(results.scope)[1])(results)


def _scratch_rows(results: Results) -> Any:
    wanted = [name for name in RUNS if name in results]
    return by_condition({"return": "return", "lowest seed": column("return", np.min)}, first="run", names=wanted)(
        results
    )


def _draw(results: Results) -> Any:
    arms = _names(results.scope)[1]
    colors = plotting.series_colors(arms)
    fig, axes = plotting.figure(width=7.0, height=4.5)
    series = {arm: [interquartile_mean(results.measure(arm, situation)) for situation in SITUATIONS] for arm in arms}
    plotting.draw_estimates(axes[0], list(SITUATIONS), series, colors)
    axes[0].set(xlabel="greedy return", title="at once, without further training")
    plotting.legend_below(fig, columns=3)
    return fig


EXPERIMENT = Experiment(
    name="changing-objectives",
    shows="objectives that come and go: a society of experts against one agent for all",
    source="this library; related: arXiv:2604.02151",
    conditions=_conditions,
    measures={"return": final()},
    claims=_claims,
    tables=[
        Table("changing-objectives", "a kind of target is added, or removed", _table_rows, _note),
        Table("runs", "the training runs, each in its own situation", _scratch_rows),
        tuning_table(
            f"the same grid for both agents: three kinds, {_TUNING_SEEDS} separate seeds",
            GRIDS,
            {"return": column("return", np.mean), "lowest": column("return", np.min)},
            lambda row: -row["return"],
            "best: the highest mean greedy return",
        ),
    ],
    figures={"changing-objectives": _draw},
    seeds=8,
    quick=Quick(seeds=2, steps=0.1),
    facts=lambda results: {"rates": TUNED, "parameters": _sizes(results)},
)
