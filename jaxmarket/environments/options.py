"""Options: an environment in which each action runs a policy until it stops (Sutton, Precup and Singh 1999).

The result is an ordinary environment whose steps have a duration k and a reward that is discounted within the option.
Learners discount the proceeds of a step by γ^k.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Int32

from jaxmarket.environments.adapter import Adapter, Step, adapt
from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, PyTree, real, tree_select
from jaxmarket.validation import check_float, check_int, short_repr

__all__ = ["Option", "Options", "OptionsParams", "OptionsState"]


class Option(struct.PyTreeNode):
    """A policy and its stop rules; the option stops when the first of them applies.

    Attributes:
        policy: ``(obs, key) -> action`` for one raw observation of the environment: a function, or a callable pytree
            with parameters such as `MarketPolicy` (see `as_policy`). It may be deterministic or stochastic.
        done: stop when the policy takes this action.
        length: stop after this number of actions (each is one step, unless the wrapped environment has options, too).
        until: ``obs -> bool []``: stop where it is True for the observation after a step.
    """

    policy: PyTree
    done: int | None = struct.field(pytree_node=False, default=None)
    length: int | None = struct.field(pytree_node=False, default=None)
    until: Callable[[PyTree], Array] | None = struct.field(pytree_node=False, default=None)


class OptionsState(struct.PyTreeNode):
    """State of `Options`."""

    env_state: PyTree
    obs: PyTree  # raw, input of the policies
    truncated: Bool[Array, ""]  # whether the wrapped environment was truncated during the last option


class OptionsParams(struct.PyTreeNode):
    """Parameters of `Options`."""

    env: PyTree  # parameters of the wrapped environment
    options: tuple[Option, ...]
    discount: Array | float


class _Function(struct.PyTreeNode):
    """A policy without parameters."""

    function: Callable[[PyTree, Array], Array] = struct.field(pytree_node=False)

    def __call__(self, obs: PyTree, key: Array) -> Array:
        return self.function(obs, key)


def _as_pytree(policy: Any) -> PyTree:
    """The policy as a pytree: a plain function becomes a pytree without leaves."""
    leaves = jax.tree.leaves(policy)
    return _Function(policy) if len(leaves) == 1 and leaves[0] is policy else policy


class _Run(struct.PyTreeNode):
    """The progress of a running option."""

    after: Step  # the last step, obs raw; reward, duration and undiscounted are totals since the option's start
    taken: Int32[Array, ""]  # number of actions taken
    stopped: Bool[Array, ""]


class Options(environment.Environment[Any, Any]):
    """An environment whose actions are options: one step runs an option until it stops or the episode ends.

    The reward of a step is Σ γ^i r_i over the option's steps, ``info["duration"]`` is their number, and
    ``info["undiscounted"]`` the sum of their rewards; observation, ``terminated`` and ``truncated`` are those of the
    last one. Under ``vmap`` all instances wait for the longest running option (`waste` measures the loss).

    Args:
        env: the environment to wrap, or its `Adapter`.
        options: one per action.
        discount: γ within an option; use the same value for the agents.
        bound: the largest number of actions of any option. An option that reaches it stops; the episode continues.
        executes_done: whether the action ``Option.done`` is also executed in the environment, as in Chang et al.
            (2020). If False, the option stops without that step, except on its first action: every option takes at
            least one step.

    Instances compare and hash by value (functions by identity).

    Raises:
        ValueError: there is no option, an option has no stop rule, or a policy or stop rule is invalid.
    """

    def __init__(
        self,
        env: Any,
        options: Sequence[Option],
        *,
        discount: float = 0.99,
        bound: int | None = None,
        executes_done: bool = True,
    ) -> None:
        super().__init__()
        self.adapter: Adapter = adapt(env)
        if not isinstance(options, Sequence) or not options:
            raise ValueError(f"options: expected a sequence of at least one Option, got {short_repr(options)}")
        for i, option in enumerate(options):
            _check(f"options[{i}]", option, self.adapter.num_actions, bound)
        self.options = tuple(option.replace(policy=_as_pytree(option.policy)) for option in options)
        self.discount_within = check_float("discount", discount, 0, 1)
        self.bound = bound = None if bound is None else check_int("bound", bound)
        self.executes_done = executes_done
        leaves, tree = jax.tree.flatten(self.options)
        numbers = tuple((np.shape(x), str(np.asarray(x).dtype), np.asarray(x).tobytes()) for x in leaves)
        self._value = (self.adapter, tree, numbers, self.discount_within, bound, executes_done)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    @property
    def name(self) -> str:
        """The name of the wrapped environment and the number of options."""
        return f"{self.adapter.name} with {len(self.options)} options"

    @property
    def gamma(self) -> float:
        """The discount within an option, which is also the default discount of agents."""
        return self.discount_within

    @property
    def num_actions(self) -> int:
        """The number of options."""
        return len(self.options)

    @property
    def default_params(self) -> Any:
        """The default parameters of the wrapped environment, the options and the discount."""
        return OptionsParams(
            env=self.adapter.default_params,
            options=jax.tree.map(jnp.asarray, self.options),
            discount=self.discount_within,
        )

    def reset_env(self, key: Array, params: OptionsParams) -> tuple[PyTree, OptionsState]:
        """Reset the wrapped environment."""
        obs, env_state = self.adapter.raw_reset(key, params.env)
        return obs, OptionsState(env_state=env_state, obs=obs, truncated=jnp.zeros((), bool))

    def step_env(
        self, key: Array, state: OptionsState, action: Any, params: OptionsParams
    ) -> tuple[PyTree, OptionsState, Array, Array, dict[Any, Any]]:
        """Run option ``action`` until it stops."""
        discount = jnp.asarray(params.discount, real())
        done, length = self._rules()
        done, length = done[action], length[action]

        def one_action(run: _Run) -> _Run:
            before = run.after
            key_act, key_env = jax.random.split(jax.random.fold_in(key, run.taken))
            act = self._act(params.options, action, before.obs, key_act)
            after = self.adapter.raw_step(key_env, before.env_state, act, params.env)
            finished, taken = act == done, run.taken + 1
            stopped = finished | (taken >= length) | after.terminated | after.truncated
            stopped |= self._reached(action, after.obs)
            after = after._replace(
                reward=before.reward + discount**before.duration * after.reward,
                duration=before.duration + after.duration,
                undiscounted=before.undiscounted + after.undiscounted,
                module_rewards=None,  # an option belongs to no module
            )
            if not self.executes_done:
                withheld = finished & (run.taken > 0)
                after = tree_select(withheld, before, after)
            return _Run(after=after, taken=taken, stopped=stopped)

        zero, no = jnp.zeros((), real()), jnp.zeros((), bool)
        before = Step(state.obs, state.env_state, zero, no, no, duration=zero, undiscounted=zero)
        run = _Run(after=before, taken=jnp.zeros((), jnp.int32), stopped=no)
        # Under vmap the body runs for all instances until the last one stops; results after an instance's own stop are
        # discarded.
        run = jax.lax.while_loop(lambda run: ~run.stopped, one_action, run)
        end = run.after
        info = {"duration": end.duration, "undiscounted": end.undiscounted}
        state = OptionsState(env_state=end.env_state, obs=end.obs, truncated=end.truncated)
        return end.obs, state, end.reward, end.terminated, info

    def is_truncated(self, state: OptionsState, params: OptionsParams) -> Array:
        """Whether the wrapped environment was truncated."""
        return state.truncated

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """One action per option."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> Any:
        """The observation space of the wrapped environment."""
        return self.adapter.space("observation_space")

    def _rules(self) -> tuple[Array, Array]:
        """The action that stops each option (-1: none) and its maximal length: i32 [P] each."""
        done = [-1 if option.done is None else option.done for option in self.options]
        lengths = [[n for n in (option.length, self.bound) if n is not None] for option in self.options]
        most = np.iinfo(np.int32).max
        return jnp.asarray(done, jnp.int32), jnp.asarray([min(n, default=most) for n in lengths], jnp.int32)

    def _act(self, options: tuple[Option, ...], choice: Array, obs: PyTree, key: Array) -> Array:
        branches = [lambda o, k, option=option: jnp.asarray(option.policy(o, k), jnp.int32) for option in options]
        return jax.lax.switch(choice, branches, obs, key)

    def _reached(self, choice: Array, obs: PyTree) -> Array:
        if all(option.until is None for option in self.options):
            return jnp.zeros((), bool)
        there = [
            jnp.zeros((), bool) if option.until is None else jnp.asarray(option.until(obs), bool)
            for option in self.options
        ]
        return jnp.stack(there)[choice]


def waste(durations: Any) -> float:
    """The fraction of the computation of vmapped options that is discarded while instances wait for the longest option.

    Args:
        durations: [..., B], durations of the steps that are computed together, instances (and seeds) on the last axis.
    """
    durations = np.asarray(durations, np.float64)
    return float(1 - durations.sum() / (durations.max(-1).sum() * durations.shape[-1]))


def _check(where: str, option: Option, actions: int, bound: int | None) -> None:
    if not isinstance(option, Option):
        raise ValueError(
            f"{where}: expected an Option, got {short_repr(option)}; write Option(policy, done=..., length=...)"
        )
    if not callable(option.policy):
        raise ValueError(f"{where}.policy: expected a callable (obs, key) -> action, got {short_repr(option.policy)}")
    if option.done is not None:
        check_int(f"{where}.done", option.done, 0, actions - 1)
    if option.until is not None and not callable(option.until):
        raise ValueError(f"{where}.until: expected a function of the observation, got {short_repr(option.until)}")
    if option.length is not None:
        check_int(f"{where}.length", option.length)
    if option.length is None and bound is None:
        raise ValueError(f"{where}: the option may never stop; set Option(length=...) or Options(bound=...)")
