"""Workshops side by side: a world that is a sum of parts, and what can be done to all of them at once.

It is made to compare deep markets, in which one agent at a time owns the whole world, with wide ones, in which every
part of it has a price and an owner of its own (Sudhir and Tran-Thanh 2025, Definitions 2.1 and 2.2).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Float, Int32

from jaxmarket.types import Array, real
from jaxmarket.validation import check_bool, check_float, check_int, short_repr

__all__ = ["SupplyChain", "SupplyChainParams", "SupplyChainState"]

_MOST_ACTIONS = 2**31 - 1  # an action is an i32


class SupplyChainState(struct.PyTreeNode):
    """State of `SupplyChain`."""

    stages: Int32[Array, " L"]  # of the piece in each workshop: 0 is raw
    time: Int32[Array, ""]  # steps since the reset


class SupplyChainParams(struct.PyTreeNode):
    """Parameters of `SupplyChain`."""

    recipe: Int32[Array, "L K"]  # the right operation
    material: Float[Array, ""] | float  # paid for a spoiled piece
    max_steps_in_episode: int


class SupplyChain(environment.Environment[Any, Any]):
    """L workshops ("lines"), each with one piece of work at one of K stages, of which 0 is raw.

    For every line and stage one of M operations is right (the recipe). It moves the piece on; at the last stage it
    makes the product, which is sold for 1, and a raw piece comes in. Any other operation spoils the piece: a raw one
    takes its place, for which ``material`` is paid. By default that is 0: what is lost is the work, and time. (The raw
    piece after a sale is paid for by the 1.) Episodes begin with raw pieces and are truncated after ``horizon`` steps.

    Two views of the same world:

    - *serial* (the default): an action is a line and an operation, ``line * M + operation``, L · M of them. One piece
      is worked on in a step, as in a market whose owner of the moment owns the whole world.
    - *joint*: an action is an operation for every line at once, M^L of them: a number in base M, line 0 first, as
      `numpy.ravel_multi_index` counts. All pieces are worked on in every step.

    Observations are the stages, one-hot, line by line: f [L * K].

    Args:
        lines, stages, operations: L, K, M.
        joint: the joint view.
        horizon: steps after which an episode is truncated.
        material: price of what a spoiled piece is replaced by, at least 0.
        recipe: [L][K] right operations; by default drawn with ``seed``, no two successive ones of a line equal.
        seed: of that.

    Instances compare and hash by value.

    Raises:
        ValueError: a number is out of range, the recipe has another shape or names an operation there is not, or the
            joint view has more actions than an int32 can count.
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
                f"joint: {operations} operations on {lines} lines are {operations}^{lines} actions, more than an int32 "
                "can count; use fewer lines, or the serial view"
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
        """The right operations, [L][K]."""
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
        """Its id, and ``-joint`` in that view."""
        return f"SupplyChain{self.lines}-v0" + "-joint" * self.joint

    @property
    def num_actions(self) -> int:
        """L · M, or M^L in the joint view."""
        return self.operations**self.lines if self.joint else self.lines * self.operations

    @property
    def default_params(self) -> Any:
        """The recipe, the price of material, and the limit."""
        return SupplyChainParams(
            recipe=jnp.asarray(self.recipe, jnp.int32), material=self.material, max_steps_in_episode=self.horizon
        )

    def reset_env(self, key: Array, params: SupplyChainParams) -> tuple[Array, SupplyChainState]:
        """Raw pieces."""
        del key, params
        state = SupplyChainState(stages=jnp.zeros(self.lines, jnp.int32), time=jnp.zeros((), jnp.int32))
        return self.get_obs(state), state

    def transform(self, line: Array, stage: Array, operation: Array, params: SupplyChainParams) -> tuple[Array, Array]:
        """What an operation makes of a piece, and what it earns: both views are made of this.

        Args:
            line, stage, operation: i32 [...], of the same shape or broadcast to it.
            params: the parameters.

        Returns:
            The stage of the piece the line has then, i32 [...], and the reward, f [...].
        """
        right = params.recipe[line, stage] == operation
        sold = right & (stage == self.stages - 1)
        reward = jnp.where(right, sold.astype(real()), -jnp.asarray(params.material, real()))
        return jnp.where(right & ~sold, stage + 1, 0).astype(jnp.int32), reward

    def step_env(
        self, key: Array, state: SupplyChainState, action: Any, params: SupplyChainParams
    ) -> tuple[Array, SupplyChainState, Array, Array, dict[Any, Any]]:
        """One piece is worked on, or all; time limits are `is_truncated`'s business."""
        del key
        lines, operation = jnp.arange(self.lines), self.chosen(jnp.asarray(action))
        stages, rewards = self.transform(lines, state.stages, operation, params)
        worked_on = operation >= 0
        state = SupplyChainState(stages=jnp.where(worked_on, stages, state.stages), time=state.time + 1)
        reward = jnp.sum(jnp.where(worked_on, rewards, 0))
        return self.get_obs(state), state, reward, jnp.zeros((), bool), {}

    def chosen(self, action: Array) -> Array:
        """Which operation an action does on each line, -1 for none: i32 [..., L] of i32 [...]."""
        lines, m = jnp.arange(self.lines), self.operations
        action = action[..., None]
        if self.joint:
            return (action // m ** (self.lines - 1 - lines) % m).astype(jnp.int32)
        return jnp.where(lines == action // m, action % m, -1).astype(jnp.int32)

    def get_obs(self, state: SupplyChainState, params: Any = None, key: Any = None) -> Array:
        """The stages, one-hot: f [L * K]."""
        return (state.stages[:, None] == jnp.arange(self.stages)).astype(real()).reshape(-1)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """What can be done."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Bits."""
        return spaces.Box(0, 1, (self.lines * self.stages,), real())

    def optimal_return(self, gamma: float | None = None) -> float:
        """Most products of an episode: ⌊horizon / K⌋ of one line, by which one line at a time is all that is possible.

        In the serial view that is the optimum, since a product takes K steps on whichever line; in the joint view every
        line makes as many.
        """
        del gamma
        return float(self.horizon // self.stages * (self.lines if self.joint else 1))

    def worth(self, gamma: float) -> np.ndarray:
        """What a piece at each stage is worth on a line that is worked on in every step without a fault: f64 [K].

        The discounted rewards of that line, γ^(K - 1 - k) / (1 - γ^K): the prices of a wide market whose agents know
        what they do. A spoiled piece is worth γ · worth[0] - material.

        Raises:
            ValueError: ``gamma`` is not in [0, 1).
        """
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma: a line that works for ever has a worth for discounts in [0, 1), got {gamma!r}")
        left = self.stages - 1 - np.arange(self.stages)
        return float(gamma) ** left / (1 - float(gamma) ** self.stages)


def _draw(lines: int, stages: int, operations: int, seed: int) -> list[list[int]]:
    """Random operations, none of them right twice in a row."""
    rng = np.random.default_rng(seed)
    table = []
    for _ in range(lines):
        row = [int(rng.integers(operations))]
        while len(row) < stages:
            row.append(int(row[-1] + 1 + rng.integers(operations - 1)) % operations)
        table.append(row)
    return table
