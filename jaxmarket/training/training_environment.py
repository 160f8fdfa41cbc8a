"""A training run as an environment: its actions change settings of the learner while it learns.

Sudhir and Tran-Thanh (2025) ask for *complete feedback*: any aspect of a learner can be changed by a trader that
profits if the change helps. The chunk of a training run is a pure function of its state and of traced settings, so a
run is an environment like any other, and a society, a population or a monolith can be trained to tune it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.evaluation import Episodes
from jaxmarket.learners import Hyperparameters
from jaxmarket.training.config import TrainConfig, check_config
from jaxmarket.training.trainable import Trainable
from jaxmarket.types import Array, PyTree, cached_property, real, tree_select
from jaxmarket.validation import check_bool, check_choice, check_float, check_int, short_repr

__all__ = ["Knob", "TrainingEnvironment", "TrainingParams", "TrainingRunState"]

_UNLIMITED = np.iinfo(np.int32).max
_MOST = 5.0  # observed performance is clipped to [-5, 5]


@dataclasses.dataclass(frozen=True)
class Knob:
    """A traced setting of a training run, and the changes of it that an environment offers as actions.

    Attributes:
        setting: a field of `jaxmarket.learners.Hyperparameters` such as ``learning_rate``, ``entropy``,
            ``exploration``, ``trace_decay``, ``discount``, ``reserve`` or ``dropout``, or a name in its ``own``: a
            numeric setting of the learner, or a term of a population such as ``wealth_tax``. A knob for ``exploration``
            sets ``exploration_final`` as well, so that its value lasts.
        multiply: factors, each of which is one action.
        to: values, each of which is one action.
        low, high: the setting stays between these after any change, and its observation is the position between them,
            on a logarithmic scale if ``low`` is above 0. By default the smallest and the largest of ``to``.

    Raises:
        ValueError: a number is out of range, or there is no change or no range.
    """

    setting: str
    _: dataclasses.KW_ONLY
    multiply: tuple[float, ...] = ()
    to: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.setting, str):
            raise ValueError(f"setting: expected the name of a setting, got {short_repr(self.setting)}; give a string")
        for name, least in (("multiply", 0.0), ("to", -np.inf)):
            given = getattr(self, name)
            if not isinstance(given, tuple):
                raise ValueError(f"{name}: expected a tuple of numbers, got {short_repr(given)}; write (x, y)")
            object.__setattr__(self, name, tuple(check_float(name, value, least) for value in given))
        if not self.multiply and not self.to:
            raise ValueError(
                f"multiply: expected a change of {self.setting}, got none; give multiply=(.5, 2) or to=(0, .1)"
            )
        ends = (min(self.to), max(self.to)) if self.to else (None, None)
        for name, end in zip(("low", "high"), ends, strict=True):
            value = end if getattr(self, name) is None else getattr(self, name)
            if value is None:
                raise ValueError(
                    f"{name}: expected a bound of {self.setting}, got None; a knob that multiplies needs both"
                )
            object.__setattr__(self, name, check_float(name, value))
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"high: expected more than low = {self.low}, got {self.high}; exchange or widen them")
        outside = [value for value in self.to if not self.bounds[0] <= value <= self.bounds[1]]
        if outside:
            raise ValueError(f"to: expected values in [{self.low}, {self.high}], got {outside[0]}; widen low and high")

    @property
    def bounds(self) -> tuple[float, float]:
        """``low`` and ``high``."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    @property
    def logarithmic(self) -> bool:
        """Whether positions between the bounds are logarithmic."""
        return self.bounds[0] > 0

    def position(self, value: Array) -> Array:
        """Where a value lies between the bounds, from -1 to 1: f [...]."""
        low, high = self.bounds
        if self.logarithmic:
            low, high, value = np.log(low), np.log(high), jnp.log(jnp.maximum(value, np.finfo(np.float32).tiny))
        return jnp.clip(2 * (value - low) / (high - low) - 1, -1, 1)

    def value(self, position: Array) -> Array:
        """The value at a position, the inverse of `position`: f [...]."""
        low, high = self.bounds
        share = (position + 1) / 2
        return low * (high / low) ** share if self.logarithmic else low + (high - low) * share

    @property
    def changes(self) -> tuple[str, ...]:
        """What each action does, for tables."""
        return tuple(f"{self.setting} × {factor:.3g}" for factor in self.multiply) + tuple(
            f"{self.setting} = {value:.3g}" for value in self.to
        )


_RATE = Knob("learning_rate", multiply=(0.1, 10.0), low=1e-4, high=1.0)


class TrainingRunState(struct.PyTreeNode):
    """A training run under way."""

    run: PyTree  # the state of the `Trainable`
    hyper: Hyperparameters
    metrics: Float[Array, " K"]  # of the last period, as they are observed
    performance: Float[Array, ""]  # (return - worst) / (best - worst)
    change: Float[Array, ""]  # of the performance, in the last period
    env_steps: Float[Array, ""]  # environment steps so far, of training and evaluation
    time: Int32[Array, ""]  # periods done


class TrainingParams(struct.PyTreeNode):
    """Parameters of a `TrainingEnvironment`; other values need no new compilation."""

    hyper: Hyperparameters  # settings at the start of a run
    price: Array | float = 0.0  # of a million environment steps, in units of performance
    env_params: PyTree = None  # of the task; its defaults, as constants of the program, if None
    max_steps_in_episode: int = struct.field(pytree_node=False, default=_UNLIMITED)  # runs end by themselves


@dataclasses.dataclass(frozen=True)
class TrainingEnvironment(environment.Environment[Any, Any]):
    """Training runs of a configuration, whose actions change its traced settings.

    An episode is a run of ``horizon`` periods of ``period`` updates. Action 0 changes nothing; the others are the
    changes of the knobs, in their order; with ``stop`` the last action ends the run at once. After each period the
    learner plays new episodes with greedy bids (or choices). The reward is the change of their mean return since the
    period before, in units in which ``worst`` is 0 and ``best`` is 1, less the price of the environment steps. So the
    sum of an episode's rewards is the final performance, less the price. A run that has diverged has performance 0.

    Observations are f [4 + number of knobs + K]: the share of the run that is left, the performance, its last change,
    whether the run is new, the position of each knob between its bounds, and K metrics x of the last period as
    ``x / (1 + |x|)``, 0 where they are not finite or unknown.

    With a key k, ``start="config"`` and no change, the run is that of ``train(env.training, k)``, to the last bit on a
    CPU.

    Attributes:
        config: of the run; its ``steps``, ``seeds`` and ``log_every`` follow from the fields below.
        knobs: settings to change.
        period: updates between two actions.
        horizon: actions in a run.
        episodes: of each evaluation.
        worst, best: returns that count as performance 0 and 1. ``worst`` should be that of an untrained learner.
        start: ``config`` for runs that begin with the settings of the configuration, or ``random`` for knobs at
            positions with a uniform distribution.
        pay: what rewards measure: ``held_out`` performance, the mean return in ``training``, or ``nothing``.
        stop: whether an action ends the run.
        metrics: names of the observed metrics; by default all that are single numbers, in alphabetical order.
        task: ``(env_params, period) -> env_params`` for a task whose parameters change during a run; None for one that
            stays the same. A global function or a frozen dataclass, so that equal environments share programs; a run
            folder is read back without ``objects`` if it is an object that is a global of its module.

    Raises:
        ValueError: a field is invalid, a knob names a setting that the configuration does not have, or a metric is
            unknown.
    """

    config: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig("Chain-v0"))
    knobs: tuple[Knob, ...] = (_RATE,)
    period: int = 4
    horizon: int = 8
    _: dataclasses.KW_ONLY
    episodes: int = 16
    worst: float = 0.0
    best: float = 1.0
    start: Literal["config", "random"] = "random"
    pay: Literal["held_out", "training", "nothing"] = "held_out"
    stop: bool = False
    metrics: tuple[str, ...] | None = None
    task: Callable[[PyTree, Array], PyTree] | None = None

    parts: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "config": lambda found: found is TrainConfig or isinstance(found, TrainConfig),
        "knobs": lambda found: found is Knob or isinstance(found, Knob),
    }
    """The objects that a run folder may name as fields, as in `jaxmarket.training.settings.AgentKind`."""

    def __post_init__(self) -> None:
        check_config(self.config)
        if not isinstance(self.knobs, tuple) or not self.knobs or not all(isinstance(k, Knob) for k in self.knobs):
            raise ValueError(f"knobs: expected a tuple of Knob, got {short_repr(self.knobs)}; write (Knob(...),)")
        for name in ("period", "horizon", "episodes"):
            check_int(name, getattr(self, name))
        check_bool("stop", self.stop)
        check_choice("start", self.start, ("config", "random"))
        check_choice("pay", self.pay, ("held_out", "training", "nothing"))
        for name in ("worst", "best"):
            check_float(name, getattr(self, name))
        if self.best <= self.worst:
            raise ValueError(f"best: expected more than worst = {self.worst}, got {self.best}; exchange them")
        if self.task is not None and not callable(self.task):
            raise ValueError(f"task: expected a function, got {short_repr(self.task)}; see the docs of the class")
        names = [knob.setting for knob in self.knobs]
        if len(set(names)) < len(names):
            raise ValueError(f"knobs: expected different settings, got {names}; join the changes of one setting")
        for name in names:
            if name not in self._settings:
                known = ", ".join(self._settings)
                raise ValueError(f"knobs: this run has no setting {short_repr(name)}; choose from {known}")
        unknown = [name for name in self.metrics or () if name not in self._scalars]
        if unknown:
            known = ", ".join(self._scalars)
            raise ValueError(f"metrics: this run has no metric {short_repr(unknown[0])}; choose from {known}")

    @cached_property
    def training(self) -> TrainConfig:
        """The configuration of a whole run without changes."""
        settings = self.config.settings
        steps = settings.instances * settings.horizon * self.period * self.horizon
        return dataclasses.replace(self.config, steps=steps, seeds=1, log_every=self.period)

    @property
    def _trainable(self) -> Trainable:
        return self.training.settings.trainable

    @cached_property
    def _settings(self) -> dict[str, bool]:
        """Names of the settings that a knob can change, and whether each is one of ``hyper.own``."""
        settings = self.training.settings
        names = [field.name for field in dataclasses.fields(Hyperparameters)]
        used = [name for name in names if {"discount": "gamma"}.get(name, name) in settings.values]
        return dict.fromkeys(used, False) | dict.fromkeys(settings.hyperparameters.own, True)

    @cached_property
    def _scalars(self) -> tuple[str, ...]:
        """Names of the metrics that are single numbers."""
        _, metrics = jax.eval_shape(self._first_period, jax.random.key(0))
        return tuple(sorted(name for name, leaf in metrics.items() if leaf.shape == ()))

    def _first_period(self, key: Array) -> tuple[PyTree, dict[str, Array]]:
        params = self.default_params
        env_params = self._env_params(params, jnp.zeros((), jnp.int32))
        run = self._trainable.init(key, env_params, params.hyper)
        return self._trainable.chunk(run, env_params, params.hyper)

    @property
    def observed_metrics(self) -> tuple[str, ...]:
        """Names of the K metrics in an observation."""
        return self._scalars if self.metrics is None else self.metrics

    @cached_property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Its id; with other fields, that of the task in brackets."""
        return "TrainingChain-v0" if self == TrainingEnvironment() else f"Training({self._trainable.env.name})"

    @property
    def names(self) -> tuple[str, ...]:
        """What each action does, [P], for tables and replays."""
        changes = tuple(change for knob in self.knobs for change in knob.changes)
        return ("keep", *changes, *(("stop",) if self.stop else ()))

    @property
    def num_actions(self) -> int:
        """One for no change, one for each change, and one that stops the run, where that is possible."""
        return len(self.names)

    @cached_property
    def _steps_per_period(self) -> int:
        settings = self.training.settings
        return settings.instances * settings.horizon * self.period

    @property
    def default_params(self) -> TrainingParams:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The settings of the configuration; rules that are off and have a knob start at 0."""
        hyper = self.training.settings.hyperparameters
        off = [k.setting for k in self.knobs if not self._settings[k.setting] and getattr(hyper, k.setting) is None]
        with jax.ensure_compile_time_eval():
            return TrainingParams(hyper=hyper.replace(**dict.fromkeys(off, 0.0)).as_arrays())

    def _env_params(self, params: TrainingParams, time: Array) -> PyTree:
        """Those of the task in a period. Defaults are constants of the program, as in `jaxmarket.fit`."""
        given = self._trainable.env.default_params if params.env_params is None else params.env_params
        return given if self.task is None else self.task(given, time)

    def values(self, state: TrainingRunState) -> Float[Array, " knobs"]:
        """The present setting of each knob."""
        return jnp.stack(self._read(state.hyper))

    def positions(self, values: Float[Array, "... knobs"]) -> Float[Array, "... knobs"]:
        """The positions of settings between the bounds of their knobs, from -1 to 1."""
        return jnp.stack([knob.position(values[..., k]) for k, knob in enumerate(self.knobs)], -1)

    def values_at(self, positions: Float[Array, "... knobs"]) -> Float[Array, "... knobs"]:
        """The settings at positions of the knobs between their bounds, from -1 to 1."""
        return jnp.stack([knob.value(positions[..., k]) for k, knob in enumerate(self.knobs)], -1)

    def with_values(self, state: TrainingRunState, values: Float[Array, " knobs"]) -> TrainingRunState:
        """The run with a setting for each knob."""
        return state.replace(hyper=self._write(state.hyper, values, jnp.ones(len(self.knobs), bool)))

    def _read(self, hyper: Hyperparameters) -> list[Array]:
        """The setting of each knob, f [] each."""
        names = [knob.setting for knob in self.knobs]
        return [hyper.own[name] if self._settings[name] else getattr(hyper, name) for name in names]  # type: ignore[misc]

    def _write(self, hyper: Hyperparameters, values: Array, changed: Array) -> Hyperparameters:
        """Settings with the values f [knobs] of the knobs that are changed, bool [knobs]; others keep their bits."""
        listed: dict[str, Array] = {}
        own = dict(hyper.own)
        for knob, before, value, new in zip(self.knobs, self._read(hyper), values, changed, strict=True):
            into = own if self._settings[knob.setting] else listed
            into[knob.setting] = jnp.where(new, value, before)
            if knob.setting == "exploration" and hyper.exploration_final is not None:
                listed["exploration_final"] = jnp.where(new, value, hyper.exploration_final)
        return hyper.replace(**listed, own=own)

    @cached_property
    def _changes(self) -> tuple[np.ndarray, np.ndarray]:
        """The factor and the new value of each knob under each action, [P, knobs]; NaN where it has none."""
        factors, values = np.full((2, self.num_actions, len(self.knobs)), np.nan)
        action = 1
        for k, knob in enumerate(self.knobs):
            for table, amounts in ((factors, knob.multiply), (values, knob.to)):
                table[action : action + len(amounts), k] = amounts
                action += len(amounts)
        return factors, values

    def change(self, hyper: Hyperparameters, action: Array | int) -> Hyperparameters:
        """The settings after an action; those that it does not change keep their bits."""
        factor, value = (jnp.asarray(table, real())[action] for table in self._changes)
        before = jnp.stack(self._read(hyper))
        low, high = jnp.asarray([knob.bounds for knob in self.knobs], real()).T
        after = jnp.clip(jnp.where(jnp.isnan(value), before * factor, value), low, high)
        return self._write(hyper, after, ~(jnp.isnan(factor) & jnp.isnan(value)))

    def reset_env(self, key: Array, params: TrainingParams) -> tuple[Array, TrainingRunState]:
        """Begin a run, with ``key`` as the key of its seed."""
        hyper = params.hyper
        if self.start == "random":
            key_start = jax.random.fold_in(key, len(self.knobs))
            values = self.values_at(jax.random.uniform(key_start, (len(self.knobs),), real(), -1, 1))
            hyper = self._write(hyper, values, jnp.ones(len(self.knobs), bool))
        zero, time = jnp.zeros((), real()), jnp.zeros((), jnp.int32)
        state = TrainingRunState(
            run=self._trainable.init(key, self._env_params(params, time), hyper),
            hyper=hyper,
            metrics=jnp.zeros(len(self.observed_metrics), real()),
            performance=zero,
            change=zero,
            env_steps=zero,
            time=time,
        )
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: TrainingRunState, action: Any, params: TrainingParams
    ) -> tuple[Array, TrainingRunState, Array, Array, dict[Any, Any]]:
        """Change a setting, train for a period, and evaluate.

        ``info`` has ``return_mean`` and ``performance``, held-out whatever is paid, ``env_steps`` of this period and
        ``duration`` 1.
        """
        trainable, env_params = self._trainable, self._env_params(params, state.time)
        hyper = self.change(state.hyper, jnp.asarray(action))
        run, metrics = trainable.chunk(state.run, env_params, hyper)
        player = trainable.player(greedy=True)
        played: Episodes = player.evaluate(run.learner.params, key, env_params, self.episodes)
        held_out = played.returns.mean()
        diverged = metrics.get("diverged", jnp.zeros(())) > 0

        def performance_of(returned: Array) -> Array:
            performance = (returned - self.worst) / (self.best - self.worst)
            return jnp.where(diverged | ~jnp.isfinite(performance), 0, performance).astype(real())

        performance = tested = performance_of(held_out)
        if self.pay == "training":
            known = diverged | (metrics["episodes"] > 0)
            performance = jnp.where(known, performance_of(metrics["return_mean"]), state.performance)
        env_steps = metrics["duration"] * self._steps_per_period + played.lengths.sum()
        seen = [metrics[name].astype(real()) for name in self.observed_metrics]
        after = TrainingRunState(
            run=run,
            hyper=hyper,
            metrics=_squashed(jnp.stack(seen)) if seen else state.metrics,
            performance=performance,
            change=performance - state.performance,
            env_steps=state.env_steps + env_steps,
            time=state.time + 1,
        )
        earned = jnp.zeros((), real()) if self.pay == "nothing" else after.change
        reward = earned - params.price * env_steps / 1e6
        ended = after.time >= self.horizon
        if self.stop:
            stopped = jnp.asarray(action) == self.num_actions - 1
            after = tree_select(stopped, state.replace(change=jnp.zeros((), real())), after)
            reward, ended = jnp.where(stopped, 0, reward), ended | stopped
            env_steps = jnp.where(stopped, 0, env_steps)
        info = {"return_mean": held_out, "performance": tested, "env_steps": env_steps, "duration": 1}
        return self.get_obs(after), after, reward.astype(real()), ended, info

    def get_obs(self, state: TrainingRunState, params: Any = None, key: Any = None) -> Array:
        """What a trader observes: f [4 + knobs + K]."""
        clock = [
            1 - state.time.astype(real()) / self.horizon,
            jnp.clip(state.performance, -_MOST, _MOST),
            jnp.clip(state.change, -_MOST, _MOST),
            (state.time == 0).astype(real()),
        ]
        return jnp.concatenate([jnp.stack(clock).astype(real()), self.positions(self.values(state)), state.metrics])

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The changes."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Numbers between -5 and 5."""
        return spaces.Box(-_MOST, _MOST, (4 + len(self.knobs) + len(self.observed_metrics),), real())


def _squashed(metrics: Array) -> Array:
    """X / (1 + |x|); 0 where x is not finite."""
    return jnp.where(jnp.isfinite(metrics), metrics / (1 + jnp.abs(metrics)), 0)
