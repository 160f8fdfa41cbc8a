"""A grid world of targets of several kinds, in which every kind is the objective of one module.

Targets of a kind appear and vanish, and whole kinds come and go with the parameters. A module observes the target of
its own kind, and is paid for it. An agent that is not a society observes all targets and is paid for all.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, real
from jaxmarket.validation import check_int, short_repr

__all__ = ["Targets", "TargetsParams", "TargetsState"]

_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
_FEATURES = 3  # of a target: how far down and right it is, and whether it is there
_PIXELS = 16  # of a cell
_COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167))
_FLOOR, _AGENT = (233, 233, 231), (29, 31, 35)


class TargetsState(struct.PyTreeNode):
    """State of `Targets`."""

    agent: Int32[Array, "2"]  # row and column
    offset: Int32[Array, "kinds 2"]  # of each kind's target from the agent: rows and columns, 0 to size - 1
    present: Bool[Array, " kinds"]  # whether the target is there
    time: Int32[Array, ""]  # steps since the reset


class TargetsParams(struct.PyTreeNode):
    """Parameters of `Targets`."""

    kinds: Bool[Array, " kinds"]  # whose targets appear; those of the others never do
    pays: Float[Array, " kinds"]  # reward for reaching a target
    appears: Float[Array, ""] | float = 0.1  # probability in a step that a target that is not there appears
    vanishes: Float[Array, ""] | float = 0.05  # probability in a step that a target vanishes
    max_steps_in_episode: int = 50


@dataclasses.dataclass(frozen=True)
class Targets(environment.Environment[Any, Any]):
    """An agent on a torus collects targets, of which each kind has at most one at a time.

    A target that is reached pays (`TargetsParams.pays`) and moves to a random cell. Targets also appear and vanish at
    random. Episodes are truncated after 50 steps.

    The observation has three entries for each kind, f [3 · kinds]: how many rows down and columns right its target is,
    by the shorter way and relative to the longest one, and whether it is there; zeros if it is not.
    `module_observation` are the three entries of the module's own kind, and ``info["module_rewards"]`` what each kind
    paid. The bidders of kinds that there are not (`TargetsParams.kinds`) do not take part in auctions.

    Attributes:
        kinds: number of kinds, which is also the number of modules.
        size: rows and columns, an odd number.
        absent: kinds whose targets do not appear under the default parameters; other parameters may add them later.

    Raises:
        ValueError: ``size`` is even or below 3, or ``absent`` names an unknown kind.
    """

    kinds: int = 4
    size: int = 7
    absent: tuple[int, ...] = ()

    names: ClassVar = ("north", "east", "south", "west")

    def __post_init__(self) -> None:
        check_int("kinds", self.kinds)
        if check_int("size", self.size, 3) % 2 == 0:
            raise ValueError(f"size: expected an odd number, got {self.size}; use {self.size + 1}")
        if not isinstance(self.absent, tuple) or not all(kind in range(self.kinds) for kind in self.absent):
            known = f"kinds from 0 to {self.kinds - 1}"
            raise ValueError(f"absent: expected a tuple of {known}, got {short_repr(self.absent)}")

    @property
    def name(self) -> str:
        """``Targets-v0``, or a name with what differs from it."""
        without = f"-without-{'-'.join(map(str, self.absent))}" if self.absent else ""
        if (self.kinds, self.size) == (4, 7):
            return f"Targets{without}-v0"
        return f"Targets{self.kinds}-{self.size}x{self.size}{without}"

    @property
    def num_actions(self) -> int:
        """Four moves: north, east, south, west."""
        return len(_MOVES)

    @property
    def num_modules(self) -> int:
        """The number of kinds."""
        return self.kinds

    @property
    def gamma(self) -> float:
        """0.9: a target is at most a few steps away."""
        return 0.9

    @property
    def default_params(self) -> Any:
        """All kinds but the ``absent`` ones, each of which pays 1."""
        there = np.isin(np.arange(self.kinds), self.absent, invert=True)
        return TargetsParams(kinds=jnp.asarray(there), pays=jnp.ones(self.kinds, real()))

    def reset_env(self, key: Array, params: TargetsParams) -> tuple[Array, TargetsState]:
        """Start with every target at a random cell, and there as often as in a long episode."""
        key_agent, key_cell, key_there = jax.random.split(key, 3)
        share = params.appears / (params.appears + params.vanishes)
        state = TargetsState(
            agent=jax.random.randint(key_agent, (2,), 0, self.size),
            offset=self._elsewhere(key_cell),
            present=params.kinds & (jax.random.uniform(key_there, (self.kinds,)) < share),
            time=jnp.zeros((), jnp.int32),
        )
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: TargetsState, action: Any, params: TargetsParams
    ) -> tuple[Array, TargetsState, Array, Array, dict[Any, Any]]:
        """Move, and collect the targets of the cell; `is_truncated` applies the time limit."""
        key_cell, key_change = jax.random.split(key)
        move = jnp.asarray(_MOVES, jnp.int32)[action]
        offset = (state.offset - move) % self.size
        reached = state.present & (offset == 0).all(-1)
        rewards = jnp.where(reached, params.pays, 0).astype(real())
        changes = jax.random.uniform(key_change, (self.kinds,)) < jnp.where(
            state.present, params.vanishes, params.appears
        )
        present = params.kinds & jnp.where(reached, True, state.present ^ changes)
        moves = reached | (present & ~state.present)
        state = TargetsState(
            agent=(state.agent + move) % self.size,
            offset=jnp.where(moves[:, None], self._elsewhere(key_cell), offset),
            present=present,
            time=state.time + 1,
        )
        return self.get_obs(state), state, rewards.sum(), jnp.zeros((), bool), {"module_rewards": rewards}

    def _elsewhere(self, key: Array) -> Array:
        """Random offsets but 0, of every kind's target: i32 [kinds, 2]."""
        cell = jax.random.randint(key, (self.kinds,), 1, self.size**2)
        return jnp.stack([cell // self.size, cell % self.size], -1)

    def get_obs(self, state: TargetsState, params: Any = None, key: Any = None) -> Array:
        """The observation: f [3 · kinds]."""
        half = self.size // 2
        way = ((state.offset + half) % self.size - half) / half
        there = state.present[:, None]
        return jnp.where(there, jnp.concatenate([way, there], -1), 0).astype(real()).reshape(-1)

    def module_observation(self, obs: Array, module: Array | int) -> Array:
        """What the observation says about the target of one kind: f [3]."""
        return obs.reshape(self.kinds, _FEATURES)[module]

    def eligible_modules(self, state: TargetsState, params: TargetsParams) -> Array:
        """The modules whose kinds there are: bool [kinds]; their targets may be there or not."""
        del state
        return params.kinds

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The four moves."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Entries from -1 to 1."""
        return spaces.Box(-1, 1, (_FEATURES * self.kinds,), real())

    def picture(self, state: TargetsState) -> np.ndarray:
        """The grid as an image, u8 [H, W, 3]: the agent, and the targets that are there."""
        cells = np.full((self.size, self.size, 3), _FLOOR, np.uint8)
        for kind in np.flatnonzero(state.present):
            cells[tuple((state.agent + state.offset[kind]) % self.size)] = _COLOURS[kind % len(_COLOURS)]
        cells[tuple(state.agent)] = _AGENT
        return cells.repeat(_PIXELS, 0).repeat(_PIXELS, 1)
