"""Parallel production lines: an environment whose state and reward are sums over independent parts.

It compares deep markets, in which one agent owns the whole state, with wide markets, in which every part has a price
and an owner (Sudhir and Tran-Thanh 2025, Definitions 2.1 and 2.2).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, real
from jaxmarket.validation import check_bool, check_float, check_int, short_repr

__all__ = ["SupplyChain", "SupplyChainParams", "SupplyChainState"]

_MOST_ACTIONS = 2**31 - 1  # an action is an i32


class SupplyChainState(struct.PyTreeNode):
    """State of `SupplyChain`."""

    stages: Int32[Array, " L"]  # stage of the piece on each line; 0 is raw
    time: Int32[Array, ""]  # steps since the reset


class SupplyChainParams(struct.PyTreeNode):
    """Parameters of `SupplyChain`."""

    recipe: Int32[Array, "L K"]  # the correct operation
    material: Float[Array, ""] | float  # price of replacing a spoiled piece
    max_steps_in_episode: int


class SupplyChain(environment.Environment[Any, Any]):
    """L production lines, each with one piece at one of K stages, of which stage 0 is raw material.

    For every line and stage one of M operations is correct (the recipe) and advances the piece. At the last stage it
    completes a product, which is sold for 1 and replaced by a raw piece. Any other operation spoils the piece: it is
    replaced by a raw one at the price ``material``, by default 0. Episodes begin with raw pieces and are truncated
    after ``horizon`` steps.

    There are two forms of the action space:

    - *serial* (the default): an action is a line and an operation, ``line * M + operation``; there are L · M. Each step
      processes one piece, as in a deep market, where one agent owns the whole state.
    - *joint*: an action is an operation for every line; there are M^L, numbered in base M with line 0 first, as by
      `numpy.ravel_multi_index`. Each step processes all pieces.

    Observations are the one-hot stages of all lines: f [L * K].

    Args:
        lines, stages, operations: L, K, M.
        joint: use the joint action space.
        horizon: steps after which an episode is truncated.
        material: price of the raw piece that replaces a spoiled one, at least 0.
        recipe: [L][K] correct operations; by default random with ``seed``, successive operations of a line differ.
        seed: of the random recipe.

    Instances compare and hash by value.

    Raises:
        ValueError: a number is out of range, the recipe has a wrong shape or an unknown operation, or the joint form
            has more than 2^31 - 1 actions.
    """

    def __init__(
        self,
        lines: int = 2,
        stages: int = 4,
        operations: int = 4,
        *,
        joint: bool = False,
        horizon: int = 128,
        material: float = 0.0,
        recipe: Sequence[Sequence[int]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        lines, stages, horizon = check_int("lines", lines), check_int("stages", stages), check_int("horizon", horizon)
        operations = check_int("operations", operations, 2)
        material = check_float("material", material, 0)
        joint = check_bool("joint", joint)
        if joint and operations**lines > _MOST_ACTIONS:
            raise ValueError(
                f"joint: expected at most {_MOST_ACTIONS} actions (int32), got {operations}^{lines} for {operations} "
                f"operations on {lines} lines; use fewer lines, or joint=False"
            )
        self.lines, self.stages, self.operations = lines, stages, operations
        self.joint, self.horizon, self.material = joint, horizon, material
        table = _draw(lines, stages, operations, seed) if recipe is None else recipe
        try:
            rows = tuple(tuple(int(o) for o in row) for row in table)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"recipe: expected {lines} rows of {stages} operations, got {short_repr(recipe)}"
            ) from error
        self.recipe: tuple[tuple[int, ...], ...] = rows
        """The correct operations, [L][K]."""
        if len(self.recipe) != lines or any(len(row) != stages for row in self.recipe):
            raise ValueError(f"recipe: expected {lines} rows of {stages} operations, got {[*map(list, self.recipe)]}")
        for operation in sum(self.recipe, ()):
            if not 0 <= operation < operations:
                raise ValueError(f"recipe: expected operations from 0 to {operations - 1}, got {operation}")
        self._value = (self.recipe, operations, self.joint, horizon, self.material)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SupplyChain) and self._value == other._value

    def __hash__(self) -> int:
        return hash((SupplyChain, self._value))

    @property
    def name(self) -> str:
        """The environment's id, with the suffix ``-joint`` in the joint form."""
        return f"SupplyChain{self.lines}-v0" + "-joint" * self.joint

    @property
    def num_actions(self) -> int:
        """L · M, or M^L in the joint form."""
        return self.operations**self.lines if self.joint else self.lines * self.operations

    @property
    def default_params(self) -> Any:
        """The recipe, the price of material and the limit."""
        return SupplyChainParams(
            recipe=jnp.asarray(self.recipe, jnp.int32), material=self.material, max_steps_in_episode=self.horizon
        )

    def reset_env(self, key: Array, params: SupplyChainParams) -> tuple[Array, SupplyChainState]:
        """Start with a raw piece on every line."""
        del key, params
        state = SupplyChainState(stages=jnp.zeros(self.lines, jnp.int32), time=jnp.zeros((), jnp.int32))
        return self.get_obs(state), state

    def transform(self, line: Array, stage: Array, operation: Array, params: SupplyChainParams) -> tuple[Array, Array]:
        """The result of an operation on a piece, for both forms of the action space.

        Args:
            line, stage, operation: i32 [...], of shapes that broadcast.
            params: the parameters.

        Returns:
            The next stage of the line, i32 [...], and the reward, f [...].
        """
        right = params.recipe[line, stage] == operation
        sold = right & (stage == self.stages - 1)
        reward = jnp.where(right, sold.astype(real()), -jnp.asarray(params.material, real()))
        return jnp.where(right & ~sold, stage + 1, 0).astype(jnp.int32), reward

    def step_env(
        self, key: Array, state: SupplyChainState, action: Any, params: SupplyChainParams
    ) -> tuple[Array, SupplyChainState, Array, Array, dict[Any, Any]]:
        """Process one piece, or all of them in the joint form; `is_truncated` applies the time limit."""
        del key
        lines, operation = jnp.arange(self.lines), self.chosen(jnp.asarray(action))
        stages, rewards = self.transform(lines, state.stages, operation, params)
        worked_on = operation >= 0
        state = SupplyChainState(stages=jnp.where(worked_on, stages, state.stages), time=state.time + 1)
        reward = jnp.sum(jnp.where(worked_on, rewards, 0))
        return self.get_obs(state), state, reward, jnp.zeros((), bool), {}

    def chosen(self, action: Array) -> Array:
        """The operation on each line, i32 [..., L] with -1 for none, for actions i32 [...]."""
        lines, m = jnp.arange(self.lines), self.operations
        action = action[..., None]
        if self.joint:
            return (action // m ** (self.lines - 1 - lines) % m).astype(jnp.int32)
        return jnp.where(lines == action // m, action % m, -1).astype(jnp.int32)

    def get_obs(self, state: SupplyChainState, params: Any = None, key: Any = None) -> Array:
        """The stages, one-hot: f [L * K]."""
        return (state.stages[:, None] == jnp.arange(self.stages)).astype(real()).reshape(-1)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """Pairs of a line and an operation, or joint operations."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """One-hot stages of all lines."""
        return spaces.Box(0, 1, (self.lines * self.stages,), real())

    def optimal_return(self, gamma: float | None = None) -> float:
        """The largest number of products of an episode: ⌊horizon / K⌋ in the serial form, L times as many in the joint.

        A product takes K operations, and the serial form allows one operation per step.
        """
        del gamma
        return float(self.horizon // self.stages * (self.lines if self.joint else 1))

    def worth(self, gamma: float) -> np.ndarray:
        """The value of a piece at each stage on a line that receives the correct operation in every step: f64 [K].

        It is the discounted sum of the line's rewards, γ^(K - 1 - k) / (1 - γ^K), and the price in a wide market of
        optimal agents. An operation that spoils the piece has the value γ · worth[0] - material.

        Raises:
            ValueError: ``gamma`` is not in [0, 1).
        """
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma: expected a discount in [0, 1), got {gamma!r}; the horizon is infinite")
        left = self.stages - 1 - np.arange(self.stages)
        return float(gamma) ** left / (1 - float(gamma) ** self.stages)


def _draw(lines: int, stages: int, operations: int, seed: int) -> list[list[int]]:
    """Random correct operations, [L][K]; successive operations of a line differ."""
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(lines):
        row = [int(rng.integers(operations))]
        while len(row) < stages:
            row.append(int(row[-1] + 1 + rng.integers(operations - 1)) % operations)
        table.append(row)
    return table
