"""Options: an environment whose every choice runs a policy until it stops (Sutton, Precup and Singh 1999).

To a society, or any other agent, it is an environment like any other: a step with a duration k, whose reward is
discounted within. Who learns in it discounts what follows by γ^k.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Bool, Int32

from jaxmarket.environments.adapter import Adapter, Step, adapt
from jaxmarket.types import Array, PyTree, real, tree_select
from jaxmarket.validation import check_float, check_int, short_repr

__all__ = ["Option", "Options", "OptionsParams", "OptionsState"]


class Option(struct.PyTreeNode):
    """A policy and its stop rule; where several are given, whichever comes first.

    Attributes:
        policy: ``(obs, key) -> action`` with one raw observation of the environment: a plain function, or a pytree
            with parameters such as `MarketPolicy` (see `as_policy`). Whether it samples is its own business.
        done: the action by which the policy says that it has finished.
        length: stop after this number of actions (each a step, unless the environment beneath has options itself).
        until: ``obs -> bool []``, asked of the observation reached: stop where it is true.
    """

    policy: PyTree
    done: int | None = struct.field(pytree_node=False, default=None)
    length: int | None = struct.field(pytree_node=False, default=None)
    until: Callable[[PyTree], Array] | None = struct.field(pytree_node=False, default=None)


class OptionsState(struct.PyTreeNode):
    """State of `Options`."""

    env_state: PyTree
    obs: PyTree  # raw, for the policies
    truncated: Bool[Array, ""]  # whether the last option was cut by the end of the episode


class OptionsParams(struct.PyTreeNode):
    """Parameters of `Options`."""

    env: PyTree  # of the environment beneath
    options: tuple[Option, ...]
    discount: Array | float


class _Function(struct.PyTreeNode):
    """A policy without parameters."""

    function: Callable[[PyTree, Array], Array] = struct.field(pytree_node=False)

    def __call__(self, obs: PyTree, key: Array) -> Array:
        return self.function(obs, key)


def _as_pytree(policy: Any) -> PyTree:
    """A pytree as it is; anything else that can be called as one without leaves."""
    leaves = jax.tree.leaves(policy)
    return _Function(policy) if len(leaves) == 1 and leaves[0] is policy else policy


class _Run(struct.PyTreeNode):
    """An option under way."""

    after: Step  # obs raw; reward, duration and undiscounted of the option so far
    taken: Int32[Array, ""]  # actions so far
    stopped: Bool[Array, ""]


class Options(environment.Environment[Any, Any]):
    """An environment in which a choice is an option, run until it stops, or the episode ends, within one step.

    The step's reward is Σ γ^i r_i over the option's steps, ``info["duration"]`` their number, ``info["undiscounted"]``
    their plain sum; observation, ``terminated`` and ``truncated`` are those of the last of them. Under ``vmap`` all
    instances wait for the longest option running (`waste` says how long).

    Args:
        env: the environment beneath, or its `Adapter`.
        options: one per choice.
        discount: γ within an option; give the agents the same.
        bound: most actions of any option; it stops there. The episode goes on.
        executes_done: whether the action by which a policy says that it has finished is also executed, as in Chang
            et al. (2020). If not, the option stops without it and without taking a step, save on its first step:
            an option takes at least one, so that time passes.

    Instances compare and hash by value (functions by identity).

    Raises:
        ValueError: there is no option, one may never stop, or a policy or a stop rule is none.
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
            raise ValueError(f"options: expected at least one option to choose from, got {short_repr(options)}")
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
        """The name of the environment beneath, and that there are options."""
        return f"{self.adapter.name} with {len(self.options)} options"

    @property
    def gamma(self) -> float:
        """The discount, which is also the agents' default."""
        return self.discount_within

    @property
    def num_actions(self) -> int:
        """The number of options."""
        return len(self.options)

    @property
    def default_params(self) -> Any:
        """Those of the environment beneath, and the options' own."""
        return OptionsParams(
            env=self.adapter.default_params,
            options=jax.tree.map(jnp.asarray, self.options),
            discount=self.discount_within,
        )

    def reset_env(self, key: Array, params: OptionsParams) -> tuple[PyTree, OptionsState]:
        """A first state of the environment beneath."""
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
            )
            if not self.executes_done:
                withheld = finished & (run.taken > 0)
                after = tree_select(withheld, before, after)
            return _Run(after=after, taken=taken, stopped=stopped)

        zero, no = jnp.zeros((), real()), jnp.zeros((), bool)
        before = Step(state.obs, state.env_state, zero, no, no, duration=zero, undiscounted=zero)
        run = _Run(after=before, taken=jnp.zeros((), jnp.int32), stopped=no)
        # Under vmap the body runs for all instances until the last has stopped; the others' results are masked out.
        run = jax.lax.while_loop(lambda run: ~run.stopped, one_action, run)
        end = run.after
        info = {"duration": end.duration, "undiscounted": end.undiscounted}
        state = OptionsState(env_state=end.env_state, obs=end.obs, truncated=end.truncated)
        return end.obs, state, end.reward, end.terminated, info

    def is_truncated(self, state: OptionsState, params: OptionsParams) -> Array:
        """Whether the environment beneath was cut."""
        return state.truncated

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """One choice per option."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> Any:
        """That of the environment beneath."""
        return self.adapter.space("observation_space")

    def _rules(self) -> tuple[Array, Array]:
        """Per option the action that ends it (-1: none) and its greatest length: i32 [P] each."""
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
    """Share of the work of vmapped options that is thrown away: instances wait for the longest option running.

    Args:
        durations: [..., B], durations of steps taken side by side, instances (and seeds) along the last axis.
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
        raise ValueError(f"{where}: may never stop; give Options(bound=...), or the option a length")
