"""Functions as primitives: an environment whose actions apply functions to a value (Chang et al. 2020, §6.3).

The state is the current value. Each auction decides which function is applied next, or that the computation ends, so
a society composes a program that depends on the input.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, PyTree, real, tree_select
from jaxmarket.validation import check_float, check_int, short_repr

__all__ = ["STOP", "Composition", "Functions", "FunctionsParams", "FunctionsState", "compose", "search"]

STOP = "stop"
"""The name of the action that ends a computation."""


class FunctionsState(struct.PyTreeNode):
    """State of `Functions`."""

    value: PyTree
    target: PyTree  # not observed; the second argument of the reward function
    applied: Int32[Array, ""]  # number of functions applied


class FunctionsParams(struct.PyTreeNode):
    """Parameters of `Functions`. Replace ``dataset`` to use other inputs, such as held-out ones."""

    dataset: PyTree  # leaves [N, ...]
    price: Array | float
    # Episodes are never truncated, so that rollouts hold a bootstrap auction only at their last step.
    max_steps_in_episode: int = struct.field(pytree_node=False, default=np.iinfo(np.int32).max)


class Composition(struct.PyTreeNode):
    """The program that was composed for one example, and its results."""

    values: PyTree  # leaves [steps + 1, ...]; the final value is repeated after the end
    obs: PyTree  # leaves [steps, ...]: the observation before each action
    choices: Int32[Array, " steps"]  # actions; -1 after the end
    applied: Int32[Array, ""]  # number of functions applied
    reward: Float[Array, ""]  # of the final value, without the price of functions


class Functions(environment.Environment[Any, Any]):
    """An environment in which action p applies function p to the current value.

    An episode begins with an example of the dataset. It terminates after ``steps`` functions, or with the action
    ``stop``, and then pays ``reward(value, target)``. Each application of a function costs ``price``.

    Args:
        functions: P pure functions ``value -> value``; a value is a pytree of fixed shapes and dtypes.
        dataset: examples, a pytree with leaves [N, ...]; each episode draws one at random.
        reward: ``(value, target) -> f []``, paid at the end of the episode.
        start: ``example -> (value, target)``; by default the example is that pair.
        steps: number of functions applied in an episode; the maximum if ``stop`` is True.
        stop: whether an additional last action ends the computation, at no cost.
        price: cost of applying a function.
        observe: ``value -> observation``; by default the value itself. Expensive features, such as those of a frozen
            encoder, belong here: they are computed once per state.
        clock: whether the observation includes the number of remaining steps, one-hot. In general the optimal action
            depends on it.
        names: names of the functions, for tables and figures.
        name: name of the environment.

    Instances compare by identity, because functions do.

    Raises:
        ValueError: there is no function or no example, a function changes the shapes or dtypes of its value, or a
            number is out of range.
    """

    def __init__(
        self,
        functions: Sequence[Callable[[PyTree], PyTree]],
        dataset: PyTree,
        reward: Callable[[PyTree, PyTree], Array],
        *,
        start: Callable[[PyTree], tuple[PyTree, PyTree]] | None = None,
        steps: int,
        stop: bool = False,
        price: float = 0.0,
        observe: Callable[[PyTree], PyTree] | None = None,
        clock: bool = True,
        names: Sequence[str] | None = None,
        name: str = "functions",
    ) -> None:
        super().__init__()
        if not isinstance(functions, Sequence) or not all(callable(function) for function in functions):
            raise ValueError(f"functions: expected a sequence of functions of a value, got {short_repr(functions)}")
        if names is not None and not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"names: expected a sequence of strings, one per function, got {short_repr(names)}")
        self.functions = tuple(functions)
        self.reward = reward
        self.start: Callable[[PyTree], Any] = (lambda example: example) if start is None else start
        self._observe: Callable[[PyTree], PyTree] = (lambda value: value) if observe is None else observe
        self.steps, self.price = check_int("steps", steps), check_float("price", price)
        self.stop, self.clock = stop, clock
        self.dataset = jax.tree.map(np.asarray, dataset)
        if names is None:
            names = [_name(function, i) for i, function in enumerate(self.functions)]
        self.names = (*names, STOP) if stop else tuple(names)
        self._name = name
        if len(self.names) != self.num_actions:
            raise ValueError(f"names: expected {len(self.functions)} names, one per function, got {len(names)}")
        self._check()

    def _check(self) -> None:
        if not self.functions:
            raise ValueError("functions: expected at least one function, got none")
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(self.dataset)}
        if len(sizes) != 1 or sizes & {(), (0,)}:
            raise ValueError(
                f"dataset: expected leaves [N, ...] of the same N >= 1 examples, got leading axes {sorted(sizes)}"
            )
        example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], _dtype(leaf)), self.dataset)
        try:
            value, target = jax.eval_shape(self.start, example)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"start: expected a function example -> (value, target), it failed with {type(error).__name__}: {error}"
            ) from error
        for name, function in zip(self.names, self.functions, strict=False):
            after = jax.eval_shape(function, value)
            if _kind(after) != _kind(value):
                raise ValueError(
                    f"functions: {name} maps {_kind(value)} to {_kind(after)}; return the same shapes and dtypes"
                )
        paid = jax.eval_shape(self.reward, value, target)
        if getattr(paid, "shape", None) != ():
            raise ValueError(f"reward: expected a function that returns a scalar, it returns {paid}")

    @property
    def name(self) -> str:
        """The ``name`` given at construction."""
        return self._name

    @property
    def num_actions(self) -> int:
        """One action per function, plus one if there is ``stop``."""
        return len(self.functions) + self.stop

    @property
    def default_params(self) -> Any:
        """The dataset and the price."""
        return FunctionsParams(dataset=jax.tree.map(jnp.asarray, self.dataset), price=self.price)

    def apply(self, choice: Array, value: PyTree) -> PyTree:
        """Apply function ``choice`` to ``value``."""
        return jax.lax.switch(choice, self.functions, value)

    def reset_env(self, key: Array, params: FunctionsParams) -> tuple[PyTree, FunctionsState]:
        """Draw an example of the dataset."""
        count = jax.tree.leaves(params.dataset)[0].shape[0]
        chosen = jax.random.randint(key, (), 0, count)
        state = self.begin(jax.tree.map(lambda leaf: leaf[chosen], params.dataset))
        return self.observed(state), state

    def begin(self, example: PyTree) -> FunctionsState:
        """The initial state for an example."""
        value, target = self.start(example)
        return FunctionsState(value=value, target=target, applied=jnp.zeros((), jnp.int32))

    def step_env(
        self, key: Array, state: FunctionsState, action: Any, params: FunctionsParams
    ) -> tuple[PyTree, FunctionsState, Array, Array, dict[Any, Any]]:
        """Apply function ``action``, or stop."""
        del key
        action = jnp.asarray(action)
        stopping = action >= len(self.functions)
        changed = self.apply(jnp.minimum(action, len(self.functions) - 1), state.value)
        value = tree_select(stopping, state.value, changed)
        state = state.replace(value=value, applied=state.applied + jnp.where(stopping, 0, 1))
        ended = stopping | (state.applied >= self.steps)
        paid = jnp.where(ended, jnp.asarray(self.reward(value, state.target)).astype(real()), 0)
        cost = jnp.where(stopping, 0, jnp.asarray(params.price, real()))
        return self.observed(state), state, paid - cost, ended, {}

    def is_truncated(self, state: FunctionsState, params: FunctionsParams) -> Array:
        """Always False: episodes are never truncated."""
        return jnp.zeros((), bool)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The actions: functions, and ``stop``."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> Any:
        """Boxes without bounds, one per leaf of the observation."""
        obs, _ = jax.eval_shape(self.reset_env, jax.random.key(0), self.default_params)
        boxes = [spaces.Box(-jnp.inf, jnp.inf, leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(obs)]
        return boxes[0] if len(boxes) == 1 else spaces.Tuple(boxes)

    def observed(self, state: FunctionsState) -> PyTree:
        """The observation of a state."""
        seen = self._observe(state.value)
        if not self.clock:
            return seen
        return seen, jax.nn.one_hot(self.steps - state.applied, self.steps + 1, dtype=real())


def compose(
    env: Functions, policy: Callable[[PyTree, Any], Array], example: PyTree, key: Array | None = None
) -> Composition:
    """The program that a policy composes for one example; ``vmap`` for many.

    Args:
        env: the environment.
        policy: ``(obs, key) -> action``, such as a `MarketPolicy`.
        example: an example with the structure of those in the dataset.
        key: for a policy that samples; without it the policy is called with ``key=None``.
    """
    params = env.default_params
    start = env.begin(_like(example, env.dataset))

    def step(
        carry: tuple[FunctionsState, Array], t: Array
    ) -> tuple[tuple[FunctionsState, Array], tuple[Array, PyTree, PyTree]]:
        state, ended = carry
        obs = env.observed(state)
        choice = jnp.asarray(policy(obs, None if key is None else jax.random.fold_in(key, t)), jnp.int32)
        _, after, _, ends, _ = env.step_env(jax.random.key(0), state, choice, params)  # draws nothing
        after = tree_select(ended, state, after)
        return (after, ended | ends), (jnp.where(ended, -1, choice), obs, after.value)

    (state, _), (choices, obs, values) = jax.lax.scan(step, (start, jnp.zeros((), bool)), jnp.arange(env.steps))
    return Composition(
        values=jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start.value, values),
        obs=obs,
        choices=choices,
        applied=state.applied,
        reward=jnp.asarray(env.reward(state.value, state.target), real()),
    )


def search(env: Functions, example: PyTree, depth: int) -> dict[tuple[int, ...], Array]:
    """The reward of every program of up to ``depth`` functions for one example, by exhaustive search (O(P^depth)).

    Returns:
        A dict from programs (actions in the order of their application) to rewards, f [], without the price of
        functions.
    """
    value, target = env.start(_like(example, env.dataset))
    functions = jnp.arange(len(env.functions))
    rewards = {(): jnp.asarray(env.reward(value, target), real())}
    values = jax.tree.map(lambda leaf: leaf[None], value)  # of all programs of one length, in lexicographic order
    for length in range(1, depth + 1):
        extended = jax.vmap(jax.vmap(env.apply, (0, None)), (None, 0))(functions, values)
        values = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), extended)
        paid = jax.vmap(env.reward, (0, None))(values, target).astype(real())
        rewards |= dict(zip(itertools.product(range(len(functions)), repeat=length), paid, strict=True))
    return rewards


def _like(example: PyTree, dataset: PyTree) -> PyTree:
    """The example as arrays with the dtypes of the dataset; its leaves may be Python numbers."""
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, _dtype(like)), example, dataset)


def _name(function: Callable, number: int) -> str:
    name = getattr(function, "__name__", "<lambda>")
    return f"function {number}" if name == "<lambda>" else name


def _dtype(leaf: np.ndarray) -> Any:
    return jnp.asarray(leaf[:0]).dtype


def _kind(tree: PyTree) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))
