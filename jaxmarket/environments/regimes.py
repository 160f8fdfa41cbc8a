"""A plane in which the actions change their meaning: tasks for agents with parts that can specialise."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.types import Array, real
from jaxmarket.validation import check_int

__all__ = ["Regimes", "RegimesParams", "RegimesState"]

_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # each is the previous one, turned by a right angle
_COLOURS = ((63, 144, 218), (255, 169, 14), (189, 31, 1), (131, 45, 182))  # of the goal in each regime
_PAPER, _POINT, _PIXELS = 244, 30, 16
_MOST_RADIUS = 1000  # cells are numbered by an i32
_MOST_LASTING = 2**28


class RegimesState(struct.PyTreeNode):
    """State of `Regimes`."""

    offset: Int32[Array, "2"]  # from the point to the goal, each from -radius to radius
    regime: Int32[Array, ""]
    time: Int32[Array, ""]  # steps since the reset


class RegimesParams(struct.PyTreeNode):
    """Parameters of `Regimes`."""

    max_steps_in_episode: int = 50


@dataclasses.dataclass(frozen=True)
class Regimes(environment.Environment[Any, Any]):
    """A point looks for one goal after the other, in regimes in which the actions have different meanings.

    The plane is a torus of (2 · radius + 1)² cells. In regime g, one of K, action a moves the point by one cell in
    direction (a + g) mod 4, so that what is right in one regime is wrong in all others: no action has the same meaning
    in two regimes. The step that reaches the goal pays 1; then the next goal is on any other cell with equal
    probability. All other rewards are 0.

    By default every goal that is reached changes the regime, to any other one with equal probability, and episodes are
    truncated after 50 steps. Regimes that are ``lasting`` follow each other in the same order in every episode, and one
    episode contains all of them. Instances that start together are then in the same regime at the same time, so that
    an agent learns in one regime for a long time, and may forget the others.

    Observations are the offset to the goal, divided by the radius, and the regime, one-hot: f [2 + K]. The right
    actions of one regime are a linear classification of the offset. Those of two regimes are not one of the
    observation, because a linear function adds offset and regime where the task multiplies them.

    Attributes:
        regimes: K, from 1 to 4.
        radius: of the plane, from 1 to 1000.
        lasting: steps of a regime; None for regimes that last until the next goal.

    Raises:
        ValueError: a number is out of range.
    """

    regimes: int = 4
    radius: int = 2
    lasting: int | None = None

    gamma: ClassVar[float] = 0.95

    def __post_init__(self) -> None:
        check_int("regimes", self.regimes, 1, len(_DIRECTIONS))
        check_int("radius", self.radius, 1, _MOST_RADIUS)
        if self.lasting is not None:
            check_int("lasting", self.lasting, 1, _MOST_LASTING)

    @property
    def name(self) -> str:
        """The environment's id; with other arguments, its class and these."""
        lasting = "" if self.lasting is None else f", lasting={self.lasting}"
        return "Regimes-v0" if self == Regimes() else f"Regimes({self.regimes}, {self.radius}{lasting})"

    @property
    def num_actions(self) -> int:
        """Four."""
        return len(_DIRECTIONS)

    @property
    def default_params(self) -> Any:
        """The limit of 50 steps; of as many as all regimes last, if they are lasting."""
        return RegimesParams() if self.lasting is None else RegimesParams(self.regimes * self.lasting)

    def reset_env(self, key: Array, params: RegimesParams) -> tuple[Array, RegimesState]:
        """Draw a goal, and a regime; regimes that are lasting begin with the first one."""
        key_offset, key_regime = jax.random.split(key)
        first = self.regimes if self.lasting is None else 1
        regime = jax.random.randint(key_regime, (), 0, first, jnp.int32)
        state = RegimesState(offset=self._draw_offset(key_offset), regime=regime, time=jnp.zeros((), jnp.int32))
        return self.get_obs(state), state

    def step_env(
        self, key: Array, state: RegimesState, action: Any, params: RegimesParams
    ) -> tuple[Array, RegimesState, Array, Array, dict[Any, Any]]:
        """Move the point; `is_truncated` applies the time limit."""
        size = 2 * self.radius + 1
        move = jnp.asarray(_DIRECTIONS, jnp.int32)[(jnp.asarray(action) + state.regime) % len(_DIRECTIONS)]
        offset = (state.offset - move + self.radius) % size - self.radius
        reached = (offset == 0).all()
        key_offset, key_regime = jax.random.split(key)
        if self.lasting is not None:
            regime = (state.time + 1) // self.lasting % self.regimes
        else:
            turn = 0 if self.regimes == 1 else jax.random.randint(key_regime, (), 1, self.regimes, jnp.int32)
            regime = jnp.where(reached, (state.regime + turn) % self.regimes, state.regime)
        offset = jnp.where(reached, self._draw_offset(key_offset), offset)
        state = RegimesState(offset=offset, regime=regime, time=state.time + 1)
        return self.get_obs(state), state, reached.astype(real()), jnp.zeros((), bool), {}

    def _draw_offset(self, key: Array) -> Array:
        """Of a goal on any cell but that of the point: i32 [2]."""
        size = 2 * self.radius + 1
        middle = size**2 // 2  # the number of the point's own cell, which is left out
        cell = jax.random.randint(key, (), 0, size**2 - 1, jnp.int32)
        cell = cell + (cell >= middle)
        return jnp.stack([cell // size, cell % size]) - self.radius

    def get_obs(self, state: RegimesState, params: Any = None, key: Any = None) -> Array:
        """The offset and the regime: f [2 + K]."""
        regime = jax.nn.one_hot(state.regime, self.regimes, dtype=real())
        return jnp.concatenate([state.offset.astype(real()) / self.radius, regime])

    def regime_of(self, obs: Float[Array, "... F"]) -> Int32[Array, "..."]:
        """The regime that an observation shows; more features may follow."""
        return jnp.argmax(obs[..., 2 : 2 + self.regimes], -1).astype(jnp.int32)

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """The four actions."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Offsets and one-hot regimes."""
        return spaces.Box(-1, 1, (2 + self.regimes,), real())

    def picture(self, state: RegimesState) -> np.ndarray:
        """The plane with the point in its middle, and the goal in the colour of the regime: u8 [H, W, 3]."""
        cells = np.full((2 * self.radius + 1,) * 2 + (3,), _PAPER, np.uint8)
        cells[self.radius, self.radius] = _POINT
        x, y = np.asarray(state.offset) + self.radius
        cells[cells.shape[0] - 1 - y, x] = _COLOURS[int(state.regime)]
        return cells.repeat(_PIXELS, 0).repeat(_PIXELS, 1)

    def optimal_return(self, gamma: float | None = None) -> float:
        """The expected number of goals that shortest paths reach in an episode.

        Shortest paths are optimal under every discount, because neither the next goal nor its regime depends on the
        path. With V(0) = 0 and the length d of a random shortest path, V(t) = E[1 + V(t - d); d <= t].
        """
        del gamma
        side = np.abs(np.arange(-self.radius, self.radius + 1))
        lengths = (side[:, None] + side).ravel()
        probability = np.bincount(lengths[lengths > 0]) / (len(lengths) - 1)
        values = np.zeros(1 + self.default_params.max_steps_in_episode)
        for t in range(1, len(values)):
            d = np.arange(1, min(t, len(probability) - 1) + 1)
            values[t] = probability[d] @ (1 + values[t - d])
        return float(values[-1])
