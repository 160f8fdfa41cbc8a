"""What a society sees of an environment: P discrete choices, and no auto-reset.

`adapt` wraps any gymnax-style environment, ours, gymnax's or a user's own. It needs gymnax itself only
where the environment does.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmarket.checking import shown
from jaxmarket.switches import check_backend
from jaxmarket.types import Array, PyTree, real

__all__ = ["Adapter", "Step", "adapt", "owns"]

# An integer observation with at most this many values per entry is one-hot encoded.
_MOST_CATEGORIES = 1024


class Step(NamedTuple):
    """One environment step, before any reset."""

    obs: PyTree  # f [...] encoded; as the environment gives it from `Adapter.raw_step`
    env_state: PyTree
    reward: Array  # f []
    terminated: Array  # bool []
    truncated: Array  # bool []
    duration: Array  # f [] environment steps taken (``info["duration"]``, else 1)
    undiscounted: Array  # f [] the reward without the discount inside a primitive (``info["undiscounted"]``, else it)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A gymnax-style environment with encoded observations; compares and hashes as ``env`` does.

    Taken from ``env``:

    - ``reset_env`` / ``step_env``, or ``reset`` / ``step`` where it has no others; a step returns
      gymnax 1.x's six values (five from ``step_env``, with ``is_truncated`` beside it) or the five
      values of older environments, whose ``done`` counts as terminated unless ``info["truncated"]``
      says otherwise;
    - ``default_params`` and ``action_space(params)``, or ``num_actions``;
    - optionally ``observation_space(params)``, ``legal_actions(state, params) -> bool [P]``,
      ``gamma``, ``optimal_q(gamma)``;
    - where a choice takes several steps, ``info["duration"]``, how many, and ``info["undiscounted"]``, their reward
      for the record, where ``reward`` is discounted within (see `Options`).
    """

    env: Any

    @property
    def name(self) -> str:
        """The environment's name."""
        return str(getattr(self.env, "name", type(self.env).__name__))

    @property
    def default_params(self) -> PyTree:
        """The environment's own parameters; None if it has none."""
        return getattr(self.env, "default_params", None)

    @property
    def gamma(self) -> float | None:
        """The discount the environment names, if it names one."""
        gamma = getattr(self.env, "gamma", None)
        return None if gamma is None or callable(gamma) else float(gamma)

    @functools.cached_property
    def num_actions(self) -> int:
        """P, the number of discrete choices."""
        space = self.space("action_space")
        count = getattr(space, "n", None) if space is not None else getattr(self.env, "num_actions", None)
        if count is None:
            raise ValueError(
                f"env: {self.name} has the action space {space!r}; a society needs discrete actions, one per primitive"
            )
        return int(count)

    def optimal_q(self, gamma: float | None = None) -> np.ndarray | None:
        """Q* [states, P] if the environment knows it (and observes its states one-hot), else None."""
        if not owns(self.env, "optimal_q"):
            return None
        return np.asarray(self.env.optimal_q(gamma))

    def optimal_return(self, gamma: float | None = None) -> float:
        """Expected undiscounted return of an episode under the optimal policy; NaN where it is not known."""
        return float(self.env.optimal_return(gamma)) if owns(self.env, "optimal_return") else float("nan")

    def reset(self, key: Array, params: PyTree) -> tuple[Array, PyTree]:
        """A first ``(obs, env_state)``, obs encoded."""
        obs, state = self.raw_reset(key, params)
        return self.encode(obs), state

    def step(self, key: Array, env_state: PyTree, action: Array, params: PyTree) -> Step:
        """Take one choice; the state after the last step of an episode is *not* reset."""
        after = self.raw_step(key, env_state, action, params)
        return after._replace(obs=self.encode(after.obs))

    def raw_reset(self, key: Array, params: PyTree) -> tuple[PyTree, PyTree]:
        """`reset`, the observation as the environment gives it."""
        reset = self.env.reset_env if owns(self.env, "reset_env") else self.env.reset
        return reset(key, params)

    def raw_step(self, key: Array, env_state: PyTree, action: Array, params: PyTree) -> Step:
        """`step`, the observation as the environment gives it."""
        if owns(self.env, "step_env"):
            result = self.env.step_env(key, env_state, action, params)
        else:
            result = self.env.step(key, env_state, action, params)
        if len(result) not in (5, 6):
            raise ValueError(f"env: a step of {self.name} returned {len(result)} values; expected gymnax's 6 or 5")
        obs, state, reward, terminated = result[:4]
        info = result[-1] or {}
        if len(result) == 6:
            truncated = result[4]
        elif owns(self.env, "is_truncated"):
            truncated = self.env.is_truncated(state, params)
        else:
            truncated = jnp.asarray(info.get("truncated", False), bool)
            terminated = jnp.asarray(terminated, bool) & ~truncated
        if not owns(self.env, "step_env"):
            # A bare `step` may have reset already; gymnax keeps the last observation here.
            obs = info.get("final_observation", obs)
        reward = jnp.asarray(reward).astype(real()).reshape(())
        return Step(
            obs=obs,
            env_state=state,
            reward=reward,
            terminated=jnp.asarray(terminated, bool).reshape(()),
            truncated=jnp.asarray(truncated, bool).reshape(()),
            duration=jnp.asarray(info.get("duration", 1)).astype(real()).reshape(()),
            undiscounted=jnp.asarray(info.get("undiscounted", reward)).astype(real()).reshape(()),
        )

    def legal(self, env_state: PyTree, params: PyTree) -> Array:
        """Which choices are legal: bool [P].

        After the last step of an episode this is asked of the state reached; an environment with only a
        bare ``step`` that resets by itself answers for the next episode's first state instead.
        """
        if hasattr(self.env, "legal_actions"):
            return jnp.asarray(self.env.legal_actions(env_state, params), bool)
        return jnp.ones(self.num_actions, bool)

    def longest_episode(self, params: PyTree) -> int | None:
        """Steps after which an episode is cut, where that is known now and is the only cut there is."""
        limit = getattr(params, "max_steps_in_episode", None)
        if limit is None or isinstance(limit, Tracer) or not self._cut_by_clock_only:
            return None
        return int(limit)

    def encode(self, obs: PyTree) -> Array:
        """The features of a raw observation: f [...].

        Arrays of three axes stay images; other integers with known bounds become one-hot vectors (0/1 arrays
        stay as they are); everything else is flattened; several leaves are joined.
        """
        leaves = [self._encode_leaf(*pair) for pair in zip(jax.tree.leaves(obs), self._categories, strict=True)]
        if len(leaves) == 1:
            return leaves[0]
        return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

    def _encode_leaf(self, leaf: Array, categories: tuple[int, int] | None) -> Array:
        leaf = jnp.asarray(leaf)
        if categories is not None:
            low, count = categories
            return jax.nn.one_hot(leaf.astype(jnp.int32) - low, count, dtype=real()).reshape(-1)
        return leaf.astype(real()) if leaf.ndim == 3 else leaf.astype(real()).reshape(-1)

    def space(self, which: str) -> Any:
        """``action_space`` or ``observation_space`` of the environment; None if it has none."""
        method = getattr(self.env, which, None)
        try:
            return method(self.default_params) if callable(method) else method
        except NotImplementedError:
            return None

    @functools.cached_property
    def _categories(self) -> tuple[tuple[int, int] | None, ...]:
        """Per observation leaf (lowest value, number of values) where it is to be one-hot, else None."""
        shapes, _ = jax.eval_shape(self.raw_reset, jax.random.key(0), self.default_params)
        leaves = jax.tree.leaves(shapes)
        space = self.space("observation_space")
        return tuple(_categories_of(leaf, space if len(leaves) == 1 else None) for leaf in leaves)

    @functools.cached_property
    def one_hot(self) -> bool:
        """Whether an encoded observation is one-hot: a state index, or the state of a known finite process."""
        space = self.space("observation_space")
        return owns(self.env, "optimal_q") or (space is not None and hasattr(space, "n"))

    @property
    def _cut_by_clock_only(self) -> bool:
        return type(self.env).__module__.startswith(("gymnax.environments", "jaxmarket.environments"))


def owns(env: Any, name: str) -> bool:
    """Whether ``env`` itself has the method; a wrapper that passes on its inner environment's has not."""
    return hasattr(type(env), name) or name in getattr(env, "__dict__", ())


def _categories_of(leaf: jax.ShapeDtypeStruct, space: Any) -> tuple[int, int] | None:
    if not jnp.issubdtype(leaf.dtype, jnp.integer) or space is None or len(leaf.shape) == 3:
        return None
    if hasattr(space, "n"):
        return 0, int(space.n)
    low, high = np.min(getattr(space, "low", -np.inf)), np.max(getattr(space, "high", np.inf))
    if not np.isfinite(low) or not 1 < high - low < _MOST_CATEGORIES:
        return None
    return int(low), int(high - low) + 1


def adapt(env: Any) -> Adapter:
    """The society's view of a gymnax-style environment (an `Adapter` is returned as it is).

    Raises:
        ValueError: the object has no ``reset``/``step``, or its actions are not discrete.
    """
    if isinstance(env, Adapter):
        return env
    _refuse_strangers(env)
    check_backend()
    if not all(owns(env, name) or owns(env, f"{name}_env") for name in ("reset", "step")):
        raise ValueError(
            f"env: {env!r} is not a gymnax-style environment; "
            "it needs reset(key, params) and step(key, state, action, params)"
        )
    adapter = Adapter(env)
    # Now rather than inside jit, where a space's bounds would be tracers: refuse continuous actions, and
    # find out how to encode observations.
    _ = adapter.num_actions, adapter._categories
    return adapter


def _refuse_strangers(env: Any) -> None:
    """Refuse what is often taken for an environment, with what to do instead."""
    if isinstance(env, type) or (callable(env) and not hasattr(env, "reset")):
        name = getattr(env, "__name__", shown(env))
        raise ValueError(f"env: expected an environment, got the class or function {name}; call it: {name}()")
    if isinstance(env, tuple):
        raise ValueError("env: expected an environment, got a tuple; of what make() returns, give the first value")
    if any(base.__module__.partition(".")[0] in ("gymnasium", "gym") for base in type(env).mro()):
        raise ValueError(
            f"env: {shown(env)} is a Gymnasium environment, which JAX cannot compile; give the id of one written in "
            "JAX (`jaxmarket list`), or write it with reset(key, params) and step(key, state, action, params)"
        )
