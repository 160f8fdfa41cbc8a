"""The interface of a society to an environment: actions, encoded observations, no automatic reset.

`adapt` wraps any gymnax-style environment. This Python module does not import gymnax.
"""

import contextlib
import dataclasses
import inspect
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Bool, Float

from jaxmarket.switches import check_backend, standard_promotion
from jaxmarket.types import Array, PyTree, cached_property, real
from jaxmarket.validation import check_bool, check_float, check_int, short_repr, shorten

__all__ = ["Adapter", "Box", "Step", "adapt", "longer", "mismatch", "owns"]

# An integer observation with at most this many values per entry is one-hot encoded.
_MOST_CATEGORIES = 1024
# Arrays with bounds 0 and this value are intensities (pixels, memory cells), which are scaled to [0, 1].
_WHITE = 255

# Largest size in bytes of the initial states and observations that a rollout precomputes per instance.
_MOST_AHEAD = 2**21

_PURE = "use jax.numpy and jax.random only, and no Python if or float() on traced values"


class Step(NamedTuple):
    """One environment step, before any reset."""

    obs: PyTree  # f [...] encoded by `Adapter.step`; not encoded by `Adapter.raw_step`
    env_state: PyTree
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    duration: Float[Array, ""]  # environment steps taken (``info["duration"]``, else 1)
    undiscounted: Float[Array, ""]  # reward without discounting inside a primitive (``info["undiscounted"]``)
    module_rewards: Float[Array, " P"] | None = None  # whose reward it is (``info["module_rewards"]``)


class Box(NamedTuple):
    """A space of continuous actions."""

    low: tuple[float, ...]  # of each entry of a flattened action
    high: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A gymnax-style environment with encoded observations; compares and hashes as ``env`` does.

    ``docs/environments.md`` describes the contract for ``env``; `check` verifies it.
    """

    env: Any

    @property
    def name(self) -> str:
        """The environment's name."""
        name = self._attribute("name")
        return name if isinstance(name, str) else type(self.env).__name__

    @property
    def default_params(self) -> PyTree:
        """The environment's default parameters; None if it has none."""
        return getattr(self.env, "default_params", None)

    def parameters(self, given: PyTree = None) -> PyTree:
        """Convert given parameters to arrays and `check` them; ``default_params`` if None.

        Raises:
            ValueError: the environment does not run with these parameters.
        """
        if given is None:
            return self.default_params
        try:
            given = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), given)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"env_params: expected a tree of arrays, got {short_repr(given)}; change fields of the default_params "
                f"of {self.name}"
            ) from error
        self.check(given)
        return given

    @property
    def gamma(self) -> float | None:
        """The environment's discount; None if it has none."""
        gamma = self._attribute("gamma")
        return None if gamma is None or callable(gamma) else check_float(f"env: gamma of {self.name}", gamma, 0, 1)

    @cached_property
    def num_actions(self) -> int:
        """P, the number of discrete actions."""
        space = self.space("action_space")
        count = getattr(space, "n", None) if space is not None else self._attribute("num_actions")
        if count is None:
            remedy = "define num_actions, or an action_space(params) with an integer n"
            if self.box is not None:
                remedy = "train primitives that learn to act: primitives='learned'"
            raise ValueError(
                f"env: {self.name} has the action space {space!r}; a society needs discrete actions, one per "
                f"primitive: {remedy}"
            )
        return check_int(f"env: the number of actions of {self.name}", count)

    @cached_property
    def box(self) -> Box | None:
        """The bounds of continuous actions; None if actions are discrete."""
        space = self.space("action_space")
        if space is None or hasattr(space, "n") or not all(hasattr(space, name) for name in ("low", "high", "shape")):
            return None
        shape = tuple(space.shape)
        low, high = (np.broadcast_to(np.asarray(bound, np.float64), shape).ravel() for bound in (space.low, space.high))
        return Box(tuple(low.tolist()), tuple(high.tolist()), shape, getattr(space, "dtype", None) or real())

    @property
    def action(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one action."""
        if self.box is None:
            return jax.ShapeDtypeStruct((), jnp.int32)
        return jax.ShapeDtypeStruct(self.box.shape, jax.dtypes.canonicalize_dtype(self.box.dtype))

    def to_action(self, choice: Array) -> Array:
        """The environment's action for what a policy chose: the number of an action f [], or its entries f [D]."""
        return choice.reshape(self.action.shape).astype(self.action.dtype)

    @property
    def modules(self) -> int | None:
        """The number of modules that the environment is made for (``num_modules``); None if any number is right."""
        count = self._attribute("num_modules")
        return None if count is None else check_int(f"env: num_modules of {self.name}", count)

    @property
    def separates_observations(self) -> bool:
        """Whether each module has an observation of its own (`module_observation`)."""
        return owns(self.env, "module_observation")

    def module_observation(self, obs: Array, module: Array | int) -> Array:
        """The part of an encoded observation that one module observes: f [...].

        Args:
            obs: f [...], encoded observation.
            module: i32 [], number of the module's primitive.
        """
        return jnp.asarray(self.env.module_observation(obs, module)).astype(real())

    @property
    def restricts_modules(self) -> bool:
        """Whether the environment says which modules take part in an auction (`eligible_modules`)."""
        return owns(self.env, "eligible_modules")

    def eligible_modules(self, env_state: PyTree, params: PyTree) -> Array:
        """The modules that take part in the auction of a state: bool [P], as ``num_modules`` says."""
        return jnp.asarray(self.env.eligible_modules(env_state, params), bool)

    def _module_rewards(self, info: Mapping[str, Any]) -> Array | None:
        rewards = info.get("module_rewards")
        if rewards is None:
            return None
        rewards = jnp.asarray(rewards)
        if self.modules is None or rewards.shape != (self.modules,) or not _is_real(rewards.dtype):
            raise ValueError(
                f"env: expected info['module_rewards'] of {self.name} with num_modules = {self.modules} numbers, got "
                f"{rewards.dtype}{list(rewards.shape)}; define num_modules, and return a number for each module"
            )
        return rewards.astype(real())

    def _attribute(self, name: str) -> Any:
        """An optional attribute of the environment; None if it is missing."""
        try:
            return getattr(self.env, name, None)
        except NotImplementedError:  # gymnax's base class defines every attribute
            return None

    def optimal_q(self, gamma: float | None = None) -> np.ndarray | None:
        """Q* for the discount ``gamma`` (by default the environment's own): f [S, P]; None if it is unknown.

        An environment that provides it has one-hot states as observations.
        """
        if not owns(self.env, "optimal_q"):
            return None
        return np.asarray(self.env.optimal_q(gamma))

    def optimal_return(self, gamma: float | None = None) -> float:
        """Expected undiscounted return of an episode under the policy that is optimal for the discount ``gamma``.

        NaN if the environment does not provide it.
        """
        return float(self.env.optimal_return(gamma)) if owns(self.env, "optimal_return") else float("nan")

    def reset(self, key: Array, params: PyTree) -> tuple[Array, PyTree]:
        """The initial ``(obs, env_state)`` of an episode; ``obs`` is encoded."""
        obs, state = self.raw_reset(key, params)
        return self.encode(obs), state

    def step(self, key: Array, env_state: PyTree, action: Array, params: PyTree) -> Step:
        """Take one action, with an encoded observation; the state after the last step of an episode is *not* reset."""
        after = self.raw_step(key, env_state, action, params)
        return after._replace(obs=self.encode(after.obs))

    def raw_reset(self, key: Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """`reset` without the encoding of the observation."""
        reset = self.env.reset_env if owns(self.env, "reset_env") else self.env.reset
        result = reset(key, params)
        if not isinstance(result, Sequence) or len(result) != 2:
            raise ValueError(
                f"env: expected (obs, env_state) from reset of {self.name}, got {_counted(result)}; return two values"
            )
        return tuple(result)

    def raw_step(self, key: Array, env_state: PyTree, action: Array, params: PyTree) -> Step:
        """`step` without the encoding of the observation."""
        if owns(self.env, "step_env"):
            result = self.env.step_env(key, env_state, action, params)
        else:
            result = self.env.step(key, env_state, action, params)
        if not isinstance(result, Sequence) or len(result) not in (5, 6):
            raise ValueError(
                f"env: expected (obs, env_state, reward, terminated, truncated, info) from step of {self.name}, got "
                f"{_counted(result)}; return six values"
            )
        obs, state, reward, terminated = result[:4]
        info = {} if result[-1] is None else result[-1]
        if not isinstance(info, Mapping):
            raise ValueError(f"env: expected info of {self.name} to be a dict, got {short_repr(info)}; return a dict")
        if len(result) == 6:
            truncated = result[4]
        elif owns(self.env, "is_truncated"):
            truncated = self.env.is_truncated(state, params)
        else:
            truncated = self._scalar("truncated", info.get("truncated", False)).astype(bool)
            terminated = self._scalar("terminated", terminated).astype(bool) & ~truncated
        if not owns(self.env, "step_env"):
            # A `step` without `step_env` may reset automatically; gymnax then puts the last observation here.
            obs = info.get("final_observation", obs)
        reward = self._scalar("reward", reward).astype(real())
        terminated = self._scalar("terminated", terminated).astype(bool)
        truncated = self._scalar("truncated", truncated).astype(bool)
        if self.observes_time:
            terminated, truncated = terminated | truncated, jnp.zeros_like(truncated)
        return Step(
            obs=obs,
            env_state=state,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            duration=self._scalar("info['duration']", info.get("duration", 1)).astype(real()),
            undiscounted=self._scalar("info['undiscounted']", info.get("undiscounted", reward)).astype(real()),
            module_rewards=self._module_rewards(info),
        )

    def _scalar(self, what: str, value: Any) -> Array:
        array = jnp.asarray(value)
        if array.size != 1 or not _is_real(array.dtype):
            raise ValueError(
                f"env: expected {what} of {self.name} to be a number, got {array.dtype}{list(array.shape)}; return a "
                "scalar"
            )
        return array.reshape(())

    @property
    def restricts_actions(self) -> bool:
        """Whether the environment says which actions are legal; wrappers have an attribute of this name."""
        return getattr(self.env, "restricts_actions", hasattr(self.env, "legal_actions"))

    def legal(self, env_state: PyTree, params: PyTree) -> Array:
        """Which actions are legal: bool [P]; [True] if actions are continuous.

        After the last step of an episode, the state is that step's final state; for an environment whose ``step``
        resets automatically (without ``step_env``) it is the initial state of the next episode.
        """
        if hasattr(self.env, "legal_actions"):
            return jnp.asarray(self.env.legal_actions(env_state, params), bool)
        return jnp.ones(self.num_actions if self.box is None else 1, bool)

    @cached_property
    def observes_time(self) -> bool:
        """Whether observations show the time since the reset; a time limit then terminates episodes.

        Such a limit is a part of the task. The value of the observation at the limit could not be estimated either: it
        is never acted on, and looks like no other.

        An environment may state it (``observes_time``). Otherwise, it is whether the result of ``get_obs`` depends on
        ``time``, a field of the state, as gymnax's environments call it.
        """
        stated = self._attribute("observes_time")
        if stated is not None:
            return check_bool(f"env: observes_time of {self.name}", stated)
        _, state = self._after_reset
        if not (owns(self.env, "get_obs") and hasattr(state, "time") and hasattr(state, "replace")):
            return False

        def observation(time: Array, state: Any, key: Array) -> PyTree:
            more = {"params": self.default_params, "key": key}
            taken = inspect.signature(self.env.get_obs).parameters
            return self.env.get_obs(state.replace(time=time), **{name: more[name] for name in taken if name in more})

        try:
            program = jax.make_jaxpr(standard_promotion(observation))(state.time, state, _some_key()).jaxpr
        except (TypeError, NotImplementedError):  # another signature, or gymnax's base class
            return False
        _, used = dce_jaxpr(program, [True] * len(program.outvars))
        return any(used[: len(jax.tree.leaves(state.time))])

    def longest_episode(self, params: PyTree) -> int | None:
        """Environment steps after which a time limit ends an episode.

        None if that is traced or unknown, or if something else than the time limit may truncate an episode.
        """
        limit = getattr(params, "max_steps_in_episode", None)
        if limit is None or isinstance(limit, Tracer) or not self._cut_by_clock_only:
            return None
        return int(limit)

    def opens_ahead(self, params: PyTree, steps: int) -> bool:
        """Whether to precompute the initial states of the episodes that may begin after each of ``steps`` steps.

        Precomputing is faster, but its memory grows with steps × state size. Above 2 MiB per instance each state is
        therefore computed in its step. The results are the same.
        """
        shapes = jax.tree.leaves(jax.eval_shape(standard_promotion(self.raw_reset), _some_key(), params))
        return steps * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes) <= _MOST_AHEAD

    def encode(self, obs: PyTree) -> Array:
        """The features of a raw observation: f [...].

        Each leaf is encoded separately: integers with known bounds become one-hot vectors (0/1 arrays are unchanged),
        intensities from 0 to 255 are scaled to [0, 1], arrays with three axes remain images, and all other arrays are
        flattened. Several leaves are concatenated. An entry of a dict or tuple uses the bounds of its entry of the
        space.
        """
        leaves = [code.encode(jnp.asarray(leaf)) for leaf, code in zip(jax.tree.leaves(obs), self._codes, strict=True)]
        if len(leaves) == 1:
            return leaves[0]
        return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

    @cached_property
    def observation(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one encoded observation."""
        obs, _ = jax.eval_shape(self.reset, _some_key(), self.default_params)
        return obs

    @cached_property
    def observation_of_module(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of what one module observes."""
        if not self.separates_observations:
            return self.observation
        module = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.eval_shape(standard_promotion(self.module_observation), self.observation, module)

    def space(self, which: str) -> Any:
        """``action_space`` or ``observation_space`` of the environment; None if it has none."""
        method = self._attribute(which)
        try:
            return method(self.default_params) if callable(method) else method
        except NotImplementedError:
            return None
        except Exception as error:
            raise ValueError(f"env: {which} of {self.name} failed with {_reason(error)}; correct the method") from error

    @cached_property
    def _after_reset(self) -> tuple[PyTree, PyTree]:
        """Shapes of the raw observation and of the state after a reset, with the default parameters."""
        return self._shapes("reset", self.raw_reset, _some_key(), self.default_params)

    @cached_property
    def _codes(self) -> tuple["_Code", ...]:
        """How each leaf of an observation is encoded."""
        obs, _ = self._after_reset
        leaves = jax.tree_util.tree_leaves_with_path(obs)
        if not leaves:
            raise ValueError(f"env: expected an observation from {self.name}, got {short_repr(obs)}; return an array")
        for path, leaf in leaves:
            if not _is_real(leaf.dtype):
                raise ValueError(
                    f"env: expected real numbers in the observation of {self.name}, got "
                    f"{leaf.dtype}{list(leaf.shape)} at {_where(path)}; convert them"
                )
        try:
            spaces = _spaces([path for path, _ in leaves], self.space("observation_space"))
        except LookupError as error:
            raise ValueError(
                f"env: the observation of {self.name} does not fit its observation_space: {error.args[0]}; give both "
                "the same structure"
            ) from error
        return tuple(_code(leaf, space) for (_, leaf), space in zip(leaves, spaces, strict=True))

    def check(self, params: PyTree = None) -> None:
        """Check the contract of ``docs/environments.md`` by shapes.

        Nothing is computed or compiled. `jaxmarket.testing.check_environment` also plays episodes, and checks more.

        Args:
            params: the environment's parameters; ``default_params`` if None.

        Raises:
            ValueError: the environment violates the contract; the message states the required change.
        """
        if inspect.ismethod(self.default_params):
            raise ValueError(f"env: expected a value as default_params of {self.name}, got a method; use a property")
        name = self._attribute("name")
        if name is not None and not isinstance(name, str):
            raise ValueError(
                f"env: expected a string as name of {self.name}, got {short_repr(name)}; use a str property"
            )
        try:
            hash(self.env)
        except TypeError as error:
            raise ValueError(
                f"env: expected a hashable environment, as a static argument of jit, got {self.name} "
                f"({_reason(error)}); keep arrays in default_params, or define __eq__ and __hash__"
            ) from error
        # Evaluated here, because inside jit the bounds of a space would be tracers.
        _ = self.box or self.num_actions, self.gamma, self._codes
        # Training compiles default_params as constants; other parameters are traced.
        own = self.default_params
        with_params = (lambda f: lambda *args: f(*args, own)) if params is None else (lambda f: f)
        args = () if params is None else (params,)
        key, action = _some_key(), self.action
        raw, state = self._shapes("reset", with_params(self.raw_reset), key, *args)
        after = self._shapes("step", with_params(self.raw_step), key, state, action, *args)
        if jax.tree.structure(raw) != jax.tree.structure(after.obs):
            self._same("observation", raw, after.obs)
        self._same("state", state, after.env_state)
        before, encoded = (self._shapes("encoding", self.encode, obs) for obs in (raw, after.obs))
        self._same("observation", before, encoded)
        for member in ("module_observation", "eligible_modules"):
            if owns(self.env, member) and self.modules is None:
                raise ValueError(f"env: {self.name} has {member}; define num_modules, the number of modules, as well")
        if self.separates_observations:
            module = jax.ShapeDtypeStruct((), jnp.int32)
            self._shapes("module_observation", self.module_observation, encoded, module)
        if self.restricts_modules:
            eligible = self._shapes("eligible_modules", with_params(self.eligible_modules), state, *args)
            if eligible.shape != (self.modules,):
                raise ValueError(
                    f"env: expected eligible_modules of {self.name} of shape {(self.modules,)}, got {eligible.shape}; "
                    "return one boolean per module"
                )
        if self.box is not None:
            return
        legal = self._shapes("legal_actions", with_params(self.legal), state, *args)
        if legal.shape != (self.num_actions,):
            raise ValueError(
                f"env: expected legal_actions of {self.name} of shape {(self.num_actions,)}, got {legal.shape}; return "
                "one boolean per action"
            )

    def _same(self, what: str, before: PyTree, after: PyTree) -> None:
        different = mismatch(before, after)
        if different:
            raise ValueError(f"env: the {what} after a step of {self.name} {different}")

    def _shapes(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """`jax.eval_shape`, with errors that name the environment."""
        try:
            return jax.eval_shape(standard_promotion(function), *args)
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith("env: "):
                raise
            raise ValueError(f"env: {what} of {self.name} failed under jit with {_reason(error)}; {_PURE}") from error

    @cached_property
    def one_hot(self) -> bool:
        """Whether an encoded observation is one-hot: a state index, or the state of a known finite process."""
        space = self.space("observation_space")
        return owns(self.env, "optimal_q") or (space is not None and hasattr(space, "n"))

    @property
    def _cut_by_clock_only(self) -> bool:
        return type(self.env).__module__.startswith(("gymnax.environments", "jaxmarket.environments"))


def _some_key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(jax.random.key, 0)


class _Code(NamedTuple):
    """The encoding of one leaf of an observation."""

    categories: tuple[int, int] | None = None  # lowest value and number of values, for one-hot encoding
    scale: float | None = None  # divisor

    def encode(self, leaf: Array) -> Array:
        if self.categories is not None:
            low, count = self.categories
            return jax.nn.one_hot(leaf.astype(jnp.int32) - low, count, dtype=real()).reshape(-1)
        features = leaf.astype(real())
        features = features if self.scale is None else features / self.scale
        return features if leaf.ndim == 3 else features.reshape(-1)


def _code(leaf: jax.ShapeDtypeStruct, space: Any) -> _Code:
    image, integers = len(leaf.shape) == 3, jnp.issubdtype(leaf.dtype, jnp.integer)
    if hasattr(space, "n"):
        return _Code(categories=(int(getattr(space, "start", 0)), int(space.n))) if integers and not image else _Code()
    if space is None:
        return _Code(scale=_WHITE) if image and leaf.dtype == jnp.uint8 else _Code()
    low, high = np.asarray(getattr(space, "low", -np.inf)).min(), np.asarray(getattr(space, "high", np.inf)).max()
    if (low, high) == (0, _WHITE):
        return _Code(scale=_WHITE)
    if integers and not image and np.isfinite(low) and 1 < high - low < _MOST_CATEGORIES:
        return _Code(categories=(int(low), int(high - low) + 1))
    return _Code()


def _spaces(paths: Sequence[tuple[Any, ...]], space: Any) -> list[Any]:
    """The space of each leaf of an observation; None for leaves without a space.

    Args:
        paths: paths of the leaves, in their order.
        space: the space of all leaves.

    Raises:
        LookupError: space and observation have different structures.
    """
    parts = getattr(space, "spaces", None)
    if space is None or (parts is None and len(paths) == 1):
        return [space] * len(paths)
    if parts is None:
        raise LookupError(f"the observation has {len(paths)} arrays, {short_repr(space)} describes one")
    below: dict[Any, list[tuple[Any, ...]]] = {}
    for path in paths:
        if not path:
            raise LookupError(f"the observation is one array, {short_repr(space)} has {len(parts)} parts")
        label = next(getattr(path[0], field) for field in ("key", "idx", "name") if hasattr(path[0], field))
        below.setdefault(label, []).append(path[1:])
    if not isinstance(parts, Mapping) and len(parts) == len(paths) and not any(hasattr(p, "spaces") for p in parts):
        return list(parts)  # matched in order, at any depth of the observation
    named = parts if isinstance(parts, Mapping) else dict(zip(below, parts, strict=False))
    if set(named) != set(below) or len(parts) != len(below):
        has = list(parts) if isinstance(parts, Mapping) else f"{len(parts)} parts"
        raise LookupError(f"the observation has {list(below)}, the space has {has}")
    return [leaf for label, inner in below.items() for leaf in _spaces(inner, named[label])]


def longer(length: Array, duration: Array) -> Array:
    """The sum of a step count i32 and ``duration``; saturates at 2^31 - 1 instead of overflowing."""
    return length + jnp.minimum(duration.astype(jnp.int32), jnp.iinfo(jnp.int32).max - length)


def mismatch(before: PyTree, after: PyTree) -> str | None:
    """Describe how the structures, shapes or dtypes of two pytrees differ, with a remedy; None if they are equal."""
    old, new = jax.tree.structure(before), jax.tree.structure(after)
    if old != new:
        return f"has the structure {shorten(str(new), 200)}, before {shorten(str(old), 200)}; return the same fields"
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            return (
                f"is {new.dtype}{list(new.shape)} at {_where(path)}, before it was {old.dtype}{list(old.shape)}; "
                "keep shapes and dtypes (jnp.asarray(x, dtype))"
            )
    return None


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))


def _where(path: Any) -> str:
    return jax.tree_util.keystr(path) or "its root"


def _counted(result: Any) -> str:
    return f"{len(result)} values" if isinstance(result, Sequence) else f"one value, {short_repr(result)}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error).partition(chr(10))[0], 200)}"


_checked: "weakref.WeakKeyDictionary[Any, None]" = weakref.WeakKeyDictionary()
"""Environments that have passed `Adapter.check` with their default parameters."""


def adapt(env: Any) -> Adapter:
    """The `Adapter` of a gymnax-style environment; an `Adapter` is returned unchanged.

    Raises:
        ValueError: the shapes of the object violate the contract of ``docs/environments.md``.
    """
    if isinstance(env, Adapter):
        return env
    _reject_common_mistakes(env)
    check_backend()
    if not all(owns(env, name) or owns(env, f"{name}_env") for name in ("reset", "step")):
        raise ValueError(
            f"env: {short_repr(env)} is not a gymnax-style environment; "
            "it needs reset(key, params) and step(key, state, action, params)"
        )
    adapter = Adapter(env)
    try:
        known = env in _checked
    except TypeError:  # unhashable, which `check` reports, or without weak references
        known = False
    if not known:
        adapter.check()
        with contextlib.suppress(TypeError):
            _checked[env] = None
    # Evaluated here, because inside jit the bounds of a space would be tracers.
    _ = adapter.box or adapter.num_actions, adapter._codes, adapter.observes_time
    return adapter


def _reject_common_mistakes(env: Any) -> None:
    """Raise an error with a remedy for objects that are often mistaken for environments."""
    if isinstance(env, type) or (callable(env) and not hasattr(env, "reset")):
        name = getattr(env, "__name__", short_repr(env))
        raise ValueError(f"env: expected an environment, got the class or function {name}; call it: {name}()")
    if isinstance(env, tuple):
        raise ValueError("env: expected an environment, got a tuple; give the first value that make() returns")
    if any(base.__module__.partition(".")[0] in ("gymnasium", "gym") for base in inspect.getmro(type(env))):
        raise ValueError(
            f"env: expected a JAX environment, got the Gymnasium environment {short_repr(env)}; give the id of a JAX "
            "environment (`jaxmarket list`), or implement reset(key, params) and step(key, state, action, params)"
        )


def owns(env: Any, name: str) -> bool:
    """Whether ``env`` itself defines the method, rather than delegating it to a wrapped environment."""
    return hasattr(type(env), name) or name in getattr(env, "__dict__", ())
