"""The resolved settings of ``--preset paper``, of every condition of every experiment, and of the benchmarks.

Nothing is trained.
"""

import contextlib
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import compile as compiling
from benchmarks import images, roofline, step, train
from jaxmarket import environments
from jaxmarket.experiments import (
    Scope,
    Train,
    best_reply,
    changing_objectives,
    equilibrium,
    learned_primitives,
    learning_populations,
    mental_rotation,
    modularity,
    numerical,
    redundancy,
    truthfulness,
    two_rooms,
    wide_vs_deep,
)
from jaxmarket.learners import protocol
from jaxmarket.runs.run_folder import config_to_dict
from jaxmarket.society import Society
from jaxmarket.training import config as configuration
from jaxmarket.training import pinned

MODES = ("normal", "quick", "full")


def plain(value):
    """A number, string or list as JSON holds it: infinite bounds as strings, and arrays as lists."""
    if isinstance(value, float):
        return str(value) if np.isinf(value) else value
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value


def layers(torso):
    """The settings of a network's layers."""
    names = ("convolutions", "stride", "hidden", "activation", "layer_norm")
    return {name: plain(getattr(torso, name)) for name in names}


def resolved(config):
    """What a configuration resolves to, without the settings that do not apply to its kind of agent."""
    s = config.settings
    hyper, learner, unused = s.hyperparameters, s.learner, getattr(s.agent, "unused", ())
    names = {f.name for f in dataclasses.fields(learner)} - {"policy", "value", "axis", "normalize", "anneal"}
    values = {
        "env": s.adapter.name,
        "choices": s.adapter.num_actions,
        "agent": s.values["agent"],
        "learner": type(learner).__name__,
        **{name: plain(getattr(learner, name)) for name in sorted(names)},
        "seeds": s.seeds,
        "steps": s.steps,
        "instances": s.instances,
        "horizon": s.horizon,
        "updates_per_chunk": s.updates_per_chunk,
        "chunks": s.chunks,
        "gamma": s.gamma,
        "time_limits": s.time_limits,
        "trace_decay": hyper.trace_decay or 0.0,
        "torso": layers(learner.policy.torso),
    }
    assert "persistence" in unused or not hyper.persistence, "there was none"
    assert not getattr(learner, "normalize", False), "there was none"
    assert not getattr(learner, "anneal", False), "rates were constant for 500 updates"
    if hasattr(learner, "value"):
        values["value_torso"] = layers(learner.value.torso)
    head = s.society.policy.head
    values |= {
        "auction": s.society.mechanism.name,
        "clones": s.society.clones,
        "share_clones": s.society.share,
        "ties": s.society.ties,
        "bids": type(head).__name__,
        "bid_low": plain(head.low),
        "bid_high": plain(head.high),
        "exploration": hyper.exploration or 0.0,
        "exploration_final": hyper.exploration_final or 0.0,
        "dropout": hyper.dropout or 0.0,
        "reserve": hyper.reserve or 0.0,
    }
    if s.values["agent"] == "monolith":  # monolithic agents had no exploration
        values = {name: value for name, value in values.items() if value or not name.startswith("exploration")}
    return {name: value for name, value in values.items() if name not in unused}


def in_full(config):
    """Every setting of a configuration, and the fields of its learners and layers that no setting can change."""
    s = config.settings
    values = config_to_dict(config) | {"env": s.adapter.name}
    if "learner" not in values:  # a population
        return values
    for name, learner in (("learner", s.learner), ("action_learner", s.action_learner)):
        if learner is not None:
            own = {f.name for f in dataclasses.fields(learner)} - {"policy", "value", "axis"} - values.keys()
            own = {field: plain(getattr(learner, field)) for field in sorted(own)}
            values[name] = {"object": type(learner).__name__, "torso": layers(learner.policy.torso)} | own
    if "bids" in values:
        head = s.society.policy.head
        values["bids"] = {"object": type(head).__name__, "low": plain(head.low), "high": plain(head.high)}
    return values


def adam_step():
    """One step of the learners' optimizer down a small and a large gradient."""
    params, gradient = jnp.zeros(2), jnp.array([1e-7, 1.0])
    return protocol.descend(params, protocol.adam(params), gradient, 1.0)[0].tolist()


class Scan:
    """An image or a vector of features instead of the digits of Mental Rotation, which take seconds to read."""

    num_actions, default_params = 14, None

    def __init__(self, shape):
        self.shape, self.name = shape, f"scan {shape}"

    def reset(self, key, params):
        return jnp.zeros(self.shape), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.zeros(self.shape), state + 1, 0.0, state > 0, False, {}


def _first_action(obs, key):
    return jnp.int32(0)


class Trained(dict):
    """Results of all conditions: runs with policies that take the first action."""

    def __missing__(self, name):
        self[name] = mock.MagicMock(networks={})
        self[name].policy.return_value = _first_action
        return self[name]


def planned(experiment, scope):
    """The configurations that an experiment trains, by name of the condition."""
    with mock.patch.object(mental_rotation, "environment", _scan):
        wanted = [condition for condition in experiment.planned(scope) if isinstance(condition, Train)]
        return {condition.name: condition.job(scope, Trained()).config for condition in wanted}


def experiment_configs():
    """Configurations by experiment, and by mode and condition."""
    found = {}

    def keep(experiment, mode, configs):
        names = found.setdefault(experiment, {})
        names |= {f"{mode}: {name}": config for name, config in configs.items()}

    for mode in MODES:
        scope = Scope(4, mode == "quick", mode == "full", settings={"resolution": 32, "depth": "fixed"})
        for experiment in (numerical.BANDIT, numerical.CHAIN, numerical.DUALITY):
            env = f"{experiment.name.capitalize()}-v0"
            keep("numerical", mode, {f"{env} {name}": c for name, c in planned(experiment, scope).items()})
        keep("redundancy", mode, redundancy.societies(scope))
        others = truthfulness, best_reply, modularity, two_rooms, mental_rotation
        for experiment in (module.EXPERIMENT for module in others):
            for name, config in planned(experiment, scope).items():
                keep(experiment.name, "tuning" if name.startswith("tuning-") else mode, {name: config})
        steps = wide_vs_deep.steps_of(scope)
        keep("wide-vs-deep", mode, _wide_vs_deep(wide_vs_deep.ARMS, (1, 2), steps))
        if mode == "full":
            lines, steps = (wide_vs_deep.TUNING[name] for name in ("lines", "steps"))
            keep("wide-vs-deep", "tuning", _wide_vs_deep(wide_vs_deep.GRIDS, (lines,), steps))
    return found


def newest_configs():
    """Configurations of the experiments whose settings are stored in full, by experiment and condition."""
    scope = Scope(4, full=True)  # the other modes have some of its conditions, with fewer steps or seeds
    others = learned_primitives, changing_objectives, learning_populations, equilibrium
    return {module.EXPERIMENT.name: planned(module.EXPERIMENT, scope) for module in others}


def _wide_vs_deep(arms, lines, steps):
    return {f"{arm}, {n}": wide_vs_deep.config(arm, n, steps) for arm in arms for n in lines}


def _scan(resolution, depth, *, source, components=None):
    return Scan((components,) if components else (resolution, resolution, 1))


def bench_configs():
    """Configurations of the benchmarks."""
    found = {"train: Chain": train.CHAIN, "train: CartPole": train.cart_pole()}
    found |= {f"train: {env} {c.name}": c.config for env, _, candidates in train.comparisons() for c in candidates}
    found |= {f"roofline: {name}": config for name, config in roofline.configs().items()}
    found |= {f"images: {env}, {kind}": images.config(env, kind) for env in images.TASKS for kind in images.LEARNERS}
    found |= {"compile: Chain": compiling.chain(), "compile: CartPole, 2 layers": compiling.cart_pole(2)}
    return found | {f"step: {case}": case.config for case in step.cases(quick=False)}


def preset_configs():
    """``--preset paper`` for tables, vectors and images."""
    envs = ("Chain-v0", "CartPole-v1", "Breakout-MinAtar")
    return {env: configuration.TrainConfig(env, preset="paper") for env in envs}


@contextlib.contextmanager
def shared_environments():
    """Environments are made, checked and traced once, and not for every condition."""
    make, adapt = functools.lru_cache(environments.make), functools.lru_cache(environments.adapt)
    observe = functools.lru_cache(lambda env: jax.eval_shape(env.reset, jax.random.key(0), env.default_params)[0])
    patches = [
        mock.patch.object(Society, "observation", property(lambda society: observe(society.env))),
        mock.patch.object(configuration, "adapt", adapt),
        mock.patch.object(configuration, "make", make),
        mock.patch.object(pinned, "make", make),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def all_settings():
    """All resolved settings, by group and condition."""
    with shared_environments():
        groups = {"preset paper": preset_configs(), "benchmarks": bench_configs(), **experiment_configs()}
        found = {group: {name: resolved(config) for name, config in each.items()} for group, each in groups.items()}
        newest = newest_configs()
        return found | {
            group: {name: in_full(config) for name, config in each.items()} for group, each in newest.items()
        }
