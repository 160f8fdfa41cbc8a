"""Gymnasium: JAX environments as Gymnasium environments, and policies as functions of NumPy observations.

The wrapper of gymnax 1.0.1, `gymnax.wrappers.gym.GymnaxToGymWrapper`, fails Gymnasium's ``check_env``
(``reset(seed=...)`` does not seed), returns JAX arrays, and resets automatically: the last step of an episode returns
the first observation of the next one. `GymnasiumEnv` passes ``check_env``, returns NumPy arrays and does not reset.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from jaxmarket.environments import make
from jaxmarket.environments.adapter import Adapter, Step
from jaxmarket.environments.base import spaces as gymnax_spaces
from jaxmarket.keys import key_for, key_of
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import short_repr

__all__ = ["GymnasiumEnv", "actor"]


class GymnasiumEnv(gymnasium.Env[Any, Any]):
    """A gymnax-style environment as a `gymnasium.Env`: NumPy observations, compiled steps, no automatic reset.

    >>> env = GymnasiumEnv("Chain-v0")
    >>> obs, info = env.reset(seed=0)
    >>> obs, reward, terminated, truncated, info = env.step(1)
    >>> obs.tolist(), reward, terminated, truncated
    ([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 0.0, False, False)

    It accepts all gymnax-style environments: the library's, gymnax's, your own, or a `jaxmarket.interop.bidder`
    environment (one bidder of a market), also with continuous actions. Each step is one call of a compiled JAX function
    and takes tenths of a millisecond on a CPU, so use JAX environments directly where speed matters.

    ``reset(seed=n)`` starts a new stream of random numbers from the low 32 bits of n; otherwise the stream continues.
    ``info`` has ``duration``, the number of environment steps of an action (more than 1 for `Options`), and
    ``undiscounted``, the sum of their rewards.

    Args:
        env: an environment, its `Adapter`, or an id that `jaxmarket.make` accepts.
        env_params: the environment's parameters; by default its ``default_params``.

    Raises:
        ValueError: the id is unknown, or the environment has no ``observation_space`` and no single-array observation.
    """

    def __init__(self, env: Any, env_params: PyTree = None) -> None:
        env = make(env)[0] if isinstance(env, str) else env
        self.adapter = env if isinstance(env, Adapter) else Adapter(env)
        self.env_params = self.adapter.parameters(env_params)
        self.action_space = _action_space(self.adapter, self.env_params)
        self.observation_space = _observation_space(self.adapter, self.env_params)
        self._key: Array | None = None
        self._env_state: PyTree = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: ``(obs, info)``. ``options={"env_params": ...}`` changes the parameters permanently."""
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            number = self.np_random.integers(2**32, dtype=np.uint32) if seed is None else seed & 0xFFFFFFFF
            self._key = key_for(jax.random.key(np.uint32(number)), "gymnasium")
        self.env_params = (options or {}).get("env_params", self.env_params)
        self._key, obs, self._env_state = _reset(self.adapter, self._key, self.env_params)
        return _to_numpy(self.observation_space, obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one action: ``(obs, reward, terminated, truncated, info)``. The state after an episode is not reset.

        Raises:
            ValueError: the action is not in the action space.
            gymnasium.error.ResetNeeded: ``reset`` was not called.
        """
        if self._key is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        if isinstance(self.action_space, spaces.Discrete) and not self.action_space.contains(action):
            raise ValueError(
                f"action: expected an integer from 0 to {self.action_space.n - 1}, got {short_repr(action)}"
            )
        if isinstance(self.action_space, spaces.Box):
            given = np.asarray(action)
            if given.shape != self.action_space.shape or not np.isfinite(given).all():
                raise ValueError(
                    f"action: expected finite numbers of shape {self.action_space.shape}, got {short_repr(action)}"
                )
        self._key, after = _step(self.adapter, self._key, self._env_state, action, self.env_params)
        self._env_state = after.env_state
        now: Step = jax.device_get(after._replace(env_state=None))
        info = {"duration": now.duration.item(), "undiscounted": now.undiscounted.item()}
        obs = _to_numpy(self.observation_space, now.obs)
        return obs, now.reward.item(), now.terminated.item(), now.truncated.item(), info

    def action_masks(self) -> np.ndarray:
        """The legal actions in the current state: bool [P]. sb3-contrib's MaskablePPO calls this method.

        Raises:
            gymnasium.error.ResetNeeded: ``reset`` was not called.
        """
        if self._key is None:
            raise gymnasium.error.ResetNeeded("call reset() before action_masks()")
        return np.asarray(self.adapter.legal(self._env_state, self.env_params))


def actor(policy: Callable[..., Array], seed: int = 0) -> Callable[..., Any]:
    """A function from NumPy observations to actions: ``act(obs) -> int``, or an array if actions are continuous.

    The policy is compiled once. A stochastic policy receives a key made from ``seed`` and the number of the call.

    >>> act = actor(lambda obs, key: jax.random.randint(key, (), 0, 2) + 10 * obs.argmax())
    >>> act(np.array([0.0, 1.0])) in (10, 11)
    True

    Args:
        policy: ``(obs, key) -> action``, for example from `jaxmarket.as_policy` or `jaxmarket.load`.
        seed: random seed of the actions.

    Returns:
        ``act(obs, legal=None)``, where ``obs`` is one observation and ``legal`` the mask of legal actions, bool [P],
        by default all.
    """
    base = key_for(key_of(seed), "actor")

    @jax.jit
    def choose(obs: PyTree, call: int, legal: Array | None) -> Array:
        key = jax.random.fold_in(base, call)
        return policy(obs, key) if legal is None else policy(obs, key, legal)

    calls = itertools.count()

    def act(obs: PyTree, legal: Array | None = None) -> Any:
        chosen = np.asarray(choose(obs, np.uint32(next(calls) & 0xFFFFFFFF), legal))
        return int(chosen) if np.issubdtype(chosen.dtype, np.integer) else chosen

    return act


@functools.partial(jax.jit, static_argnums=0)
def _reset(adapter: Adapter, key: Array, env_params: PyTree) -> tuple[Array, PyTree, PyTree]:
    key, key_reset = jax.random.split(key)
    return key, *adapter.raw_reset(key_reset, env_params)


@functools.partial(jax.jit, static_argnums=0)
def _step(adapter: Adapter, key: Array, env_state: PyTree, action: Array, env_params: PyTree) -> tuple[Array, Step]:
    key, key_step = jax.random.split(key)
    return key, adapter.raw_step(key_step, env_state, action, env_params)


def _action_space(adapter: Adapter, env_params: PyTree) -> spaces.Space[Any]:
    if callable(getattr(adapter.env, "action_space", None)):
        return gymnax_spaces.gymnax_space_to_gym_space(adapter.env.action_space(env_params))
    return spaces.Discrete(adapter.num_actions)


def _observation_space(adapter: Adapter, env_params: PyTree) -> spaces.Space[Any]:
    """The declared observation space, or an unbounded box with the shape of an initial observation."""
    if callable(getattr(adapter.env, "observation_space", None)):
        return gymnax_spaces.gymnax_space_to_gym_space(adapter.env.observation_space(env_params))
    obs, _ = jax.eval_shape(adapter.raw_reset, jax.random.key(0), env_params)
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(
            f"env: {adapter.name} has no observation_space(params), and its observation is not a single array "
            f"({jax.tree.structure(obs)}); define observation_space"
        )
    return spaces.Box(-np.inf, np.inf, obs.shape, obs.dtype)


def _to_numpy(space: spaces.Space[Any], obs: Any) -> Any:
    """The observation with the space's dtype and shape, which may differ from those of gymnax's observations."""
    if isinstance(space, spaces.Dict):
        return {name: _to_numpy(space[name], leaf) for name, leaf in obs.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_to_numpy(*pair) for pair in zip(space, obs, strict=True))
    obs = np.asarray(obs, space.dtype).reshape(space.shape)
    return obs[()] if isinstance(space, spaces.Discrete) else obs
