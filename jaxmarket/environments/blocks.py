"""Blocks world (Baum and Durdanovic 2000, "Evolution of Cooperative Problem Solving in an Artificial Economy").

The task is to rearrange three stacks of coloured blocks until the first equals a fourth, the template. Observations
are sensors whose number does not depend on the number of blocks, so a policy that was trained with three blocks can be
evaluated with twelve.
"""

import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Int32

from jaxmarket.environments.base import environment, spaces
from jaxmarket.environments.vocabulary import Vocabulary
from jaxmarket.types import Array, real
from jaxmarket.validation import check_bool, check_int, short_repr

__all__ = ["DONE", "MOVES", "SENSORS", "BlocksParams", "BlocksState", "BlocksWorld"]

MOVES = tuple(itertools.permutations((1, 2, 3), 2))
"""(Source, target) stack of each action, which moves the top block: (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)."""
DONE = len(MOVES)
"""The action that claims success, in environments with ``done=True``."""
SENSORS = (
    "correct",  # number of blocks at the bottom of stack 1 that agree with the template
    "surplus",  # number of blocks of stack 1 above those
    "needed",  # colour of the template's next block; 0 if all are correct
    "top1",  # colour of the top block of stacks 1, 2, 3; 0 if the stack is empty
    "top2",
    "top3",
    "height1",
    "height2",
    "height3",
    "depth1",  # blocks above the highest one of the needed colour (in stack 1: of the surplus); -1 without such a block
    "depth2",
    "depth3",
    "size",  # blocks in the template
    "distance1",  # the depth, or the number of blocks in the template without such a block
    "distance2",
    "distance3",
)
"""The entries of an observation, in order."""

_PAPERS_LIMIT = 10


class BlocksState(struct.PyTreeNode):
    """State of `BlocksWorld`; stack 0 is the template."""

    stacks: Int32[Array, "4 C"]  # colours from the bottom up, 0 above the top
    heights: Int32[Array, "4"]
    time: Int32[Array, ""]  # steps since the reset


class BlocksParams(struct.PyTreeNode):
    """Parameters of `BlocksWorld`.

    There is no ``max_steps_in_episode``: the limit of an episode is proportional to its number of blocks.
    """

    sizes: Int32[Array, " n"]  # equally likely numbers of blocks, from 1 to the capacity
    steps_per_block: Array | int


class BlocksWorld(environment.Environment[Any, Any]):
    """Four stacks of blocks; the goal is that stack 1 equals the template, stack 0, which no action changes.

    An instance of size n has a template of n blocks of uniformly random colours. Stacks 1, 2 and 3 hold the same
    blocks: every order of the n blocks and every three heights are equally likely, except for solved arrangements.
    A move (`MOVES`) from an empty stack has no effect. Success pays ``reward`` and terminates the episode; an
    instance is truncated after ``limit`` · n steps. Observations are f [K], the chosen sensors.

    Args:
        sizes: numbers of blocks, drawn uniformly.
        colours: k; colours are 1 to k.
        capacity: C, the largest number of blocks that a state can hold; by default the largest size.
        limit: steps per block; by default the paper's 10 log₃ k, at least 10.
        done: whether a seventh action claims success; a wrong claim terminates the episode without a reward. If
            False, the episode ends as soon as stack 1 equals the template.
        reward: reward of success: "one" (1), or the paper's "size" (n).
        sensors: the observed `SENSORS`, in this order; all but the distances by default.

    Instances compare and hash by value.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (1, 2, 3),
        colours: int = 3,
        *,
        capacity: int | None = None,
        limit: int | None = None,
        done: bool = False,
        reward: Literal["one", "size"] = "one",
        sensors: Sequence[str] = SENSORS[:-3],
    ) -> None:
        super().__init__()
        if not isinstance(sizes, Sequence) or not sizes:
            raise ValueError(f"sizes: expected at least one number of blocks, got {short_repr(sizes)}")
        self.sizes = tuple(check_int("sizes", size) for size in sizes)
        self.colours = colours = check_int("colours", colours)
        self.capacity = check_int("capacity", max(self.sizes) if capacity is None else capacity)
        if self.capacity < max(self.sizes):
            raise ValueError(
                f"capacity: expected at least {max(self.sizes)}, the largest of sizes, got {capacity}; "
                "omit it or increase it"
            )
        papers = math.ceil(_PAPERS_LIMIT * max(1.0, math.log(colours, 3)))
        self.limit = check_int("limit", papers if limit is None else limit)
        if not isinstance(sensors, Sequence) or not all(isinstance(name, str) for name in sensors):
            raise ValueError(f"sensors: expected a sequence of names, got {short_repr(sensors)}")
        if not isinstance(reward, str) or reward not in ("one", "size"):
            raise ValueError(f"reward: expected 'one' or 'size', got {short_repr(reward)}")
        self.done, self.reward, self.sensors = check_bool("done", done), reward, tuple(sensors)
        unknown = [name for name in self.sensors if name not in SENSORS]
        if unknown or not self.sensors:
            raise ValueError(f"sensors: expected some of {', '.join(SENSORS)}, got {unknown or 'none'}")
        self._value = (self.sizes, colours, self.capacity, self.limit, self.done, reward, self.sensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlocksWorld) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    @property
    def name(self) -> str:
        """The id, with the largest size."""
        return f"BlocksWorld{max(self.sizes)}-v0"

    @property
    def num_actions(self) -> int:
        """Six moves, and ``done``."""
        return len(MOVES) + self.done

    @property
    def vocabulary(self) -> Vocabulary:
        """The sensors by stack, for `jaxmarket.deep_market.Expressions`.

        Raises:
            ValueError: ``sensors`` are not numbers followed by sensors of all stacks in order, or there is ``done``.
        """
        numbers = tuple(itertools.takewhile(lambda name: name[-1] not in "123", self.sensors))
        by_stack = self.sensors[len(numbers) :]
        features = tuple(name[:-1] for name in by_stack[::3])
        if by_stack != tuple(f"{name}{stack}" for name in features for stack in (1, 2, 3)):
            raise ValueError(
                f"sensors: expected numbers, then each sensor of stacks 1, 2 and 3, got {', '.join(self.sensors)}; "
                "reorder them"
            )
        if self.done:
            raise ValueError("done: expected False, got True; done applies to no stack")
        pairs = [[MOVES.index((i, j)) if i != j else -1 for j in (1, 2, 3)] for i in (1, 2, 3)]
        return Vocabulary(numbers, ("s1", "s2", "s3"), features, tuple(map(tuple, pairs)))

    @property
    def default_params(self) -> Any:
        """The sizes and the limit given at construction."""
        return BlocksParams(sizes=jnp.asarray(self.sizes, jnp.int32), steps_per_block=self.limit)

    def reset_env(self, key: Array, params: BlocksParams) -> tuple[Array, BlocksState]:
        """A random instance of a random size."""
        key_size, key_instance = jax.random.split(key)
        size = params.sizes[jax.random.randint(key_size, (), 0, params.sizes.shape[0])]
        state = self.initial(key_instance, size)
        return self.get_obs(state), state

    def initial(self, key: Array, size: Array | int) -> BlocksState:
        """A random instance of ``size`` blocks, i32 [], from 1 to the capacity."""
        size = jnp.asarray(size, jnp.int32)
        key_template, key_deal = jax.random.split(key)
        colours = jax.random.randint(key_template, (self.capacity,), 1, self.colours + 1, jnp.int32)
        template = jnp.where(jnp.arange(self.capacity) < size, colours, 0)

        def deal_again(dealt: BlocksState) -> BlocksState:
            return self._deal(jax.random.fold_in(key_deal, dealt.time), template, size).replace(time=dealt.time + 1)

        # `time` counts the attempts. At most one arrangement in three is solved, so there are few attempts.
        solved = jnp.stack([template] * 4)
        zero = jnp.zeros((), jnp.int32)
        dealt = BlocksState(stacks=solved, heights=jnp.full(4, size), time=zero)
        return jax.lax.while_loop(self.solved, deal_again, dealt).replace(time=zero)

    def _deal(self, key: Array, template: Array, size: Array) -> BlocksState:
        """The template's blocks in random order, in stacks of random heights."""
        # The blocks and two separators between the stacks, in the order of random scores. Counting ranks is faster than
        # sorting.
        scores = jax.random.uniform(key, (self.capacity + 2,))
        blocks, bars = scores[:-2], scores[-2:]
        number = jnp.arange(self.capacity)
        present = number < size
        stack = 1 + jnp.sum(bars < blocks[:, None], 1, dtype=jnp.int32)
        # Equal scores are rare, but without a tie-break two blocks would get the same place.
        lower = (blocks < blocks[:, None]) | ((blocks == blocks[:, None]) & (number < number[:, None]))
        place = jnp.sum(present & (stack == stack[:, None]) & lower, 1, dtype=jnp.int32)
        stack = jnp.where(present, stack, 0)
        stacks = jnp.zeros((4, self.capacity), jnp.int32).at[stack, place].set(template).at[0].set(template)
        heights = jnp.zeros(4, jnp.int32).at[stack].add(1).at[0].set(size)
        return BlocksState(stacks=stacks, heights=heights, time=jnp.zeros((), jnp.int32))

    def step_env(
        self, key: Array, state: BlocksState, action: Any, params: BlocksParams
    ) -> tuple[Array, BlocksState, Array, Array, dict[Any, Any]]:
        """Take one action; `is_truncated` applies the time limit."""
        del key
        action = jnp.asarray(action, jnp.int32)
        source, target = jnp.asarray((*MOVES, (0, 0)), jnp.int32)[action]
        top = state.heights[source] - 1
        moved = (action != DONE) & (top >= 0)
        stacks = state.stacks.at[source, top].set(0)
        stacks = stacks.at[target, state.heights[target]].set(state.stacks[source, top])
        heights = state.heights.at[source].add(-1).at[target].add(1)
        state = BlocksState(
            stacks=jnp.where(moved, stacks, state.stacks),
            heights=jnp.where(moved, heights, state.heights),
            time=state.time + 1,
        )
        terminated = action == DONE if self.done else self.solved(state)
        amount = state.heights[0] if self.reward == "size" else 1
        reward = jnp.where(terminated & self.solved(state), amount, 0).astype(real())
        return self.get_obs(state), state, reward, terminated, {}

    def solved(self, state: BlocksState) -> Array:
        """Whether stack 1 equals the template: bool []."""
        return (state.stacks[0] == state.stacks[1]).all()

    def is_truncated(self, state: BlocksState, params: BlocksParams) -> Array:
        """Whether ``limit`` · n steps have passed."""
        return state.time >= params.steps_per_block * state.heights[0]

    def get_obs(self, state: BlocksState, params: Any = None, key: Any = None) -> Array:
        """The sensors: f [K]."""
        stacks, heights = state.stacks, state.heights
        place = jnp.arange(self.capacity)
        alike = (stacks[0] == stacks[1]) & (place < heights[0])
        correct = jnp.cumprod(alike.astype(jnp.int32)).sum()
        needed = jnp.where(correct < heights[0], stacks[0, jnp.minimum(correct, self.capacity - 1)], 0)
        tops = jnp.where(heights[1:] > 0, stacks[jnp.arange(1, 4), heights[1:] - 1], 0)
        lowest = jnp.stack([correct, jnp.zeros_like(correct), jnp.zeros_like(correct)])
        wanted = (stacks[1:] == needed) & (needed > 0) & (place >= lowest[:, None])
        uppermost = jnp.where(wanted, place, -1).max(1)
        depths = jnp.where(uppermost >= 0, heights[1:] - 1 - uppermost, -1)
        head = jnp.stack([correct, heights[1] - correct, needed])
        distances = jnp.where(depths < 0, heights[0], depths)
        everything = jnp.concatenate([head, tops, heights[1:], depths, heights[:1], distances])
        chosen = [SENSORS.index(name) for name in self.sensors]
        return everything[jnp.asarray(chosen)].astype(real())

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """`MOVES`, and ``done``."""
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Box:
        """Sensors: integers >= -1, without an upper bound."""
        return spaces.Box(-1, jnp.inf, (len(self.sensors),), real())

    def instance(self, stacks: Sequence[Sequence[int]]) -> BlocksState:
        """The state with these four stacks, the template first, each a list of colours from the bottom up.

        Raises:
            ValueError: there are not four stacks, a colour is unknown, the capacity is exceeded, or stacks 1 to 3 do
                not hold the template's blocks.
        """
        self._check_stacks(stacks)
        rows = np.zeros((4, self.capacity), np.int32)
        for row, stack in zip(rows, stacks, strict=True):
            row[: len(stack)] = stack
        return BlocksState(
            stacks=jnp.asarray(rows),
            heights=jnp.asarray([len(stack) for stack in stacks], jnp.int32),
            time=jnp.zeros((), jnp.int32),
        )

    @staticmethod
    def stacks_of(state: BlocksState) -> tuple[tuple[int, ...], ...]:
        """The stacks of a state, as arguments of `instance`; not for use inside ``jit``."""
        return tuple(
            tuple(int(colour) for colour in stack[:height])
            for stack, height in zip(np.asarray(state.stacks), np.asarray(state.heights), strict=True)
        )

    def solve(self, stacks: Sequence[Sequence[int]]) -> list[int]:
        """The shortest list of actions that ends in success, including ``done`` if the environment has it.

        Breadth-first search over all arrangements, in Python; feasible up to about six blocks. The limit is ignored.
        If stack 1 already equals the template, no move is needed.

        Raises:
            ValueError: the stacks are invalid, see `instance`.
        """
        self._check_stacks(stacks)
        template, *rest = (tuple(stack) for stack in stacks)
        start, claim = tuple(rest), [DONE] if self.done else []
        plans: dict[tuple[tuple[int, ...], ...], list[int]] = {start: []}
        queue = deque([start])
        while queue:
            here = queue.popleft()
            if here[0] == template:
                return plans[here] + claim
            for action, (source, target) in enumerate(MOVES):
                there = list(here)
                if there[source - 1]:
                    there[target - 1] += there[source - 1][-1:]
                    there[source - 1] = there[source - 1][:-1]
                if tuple(there) not in plans:
                    plans[tuple(there)] = [*plans[here], action]
                    queue.append(tuple(there))
        raise AssertionError("unreachable: every arrangement can be reached from every other")

    def shortest(self, stacks: Sequence[Sequence[int]]) -> int:
        """The number of actions of `solve`."""
        return len(self.solve(stacks))

    def optimal_return(self, gamma: float | None = None) -> float:
        """Mean reward of success; NaN if the limit may be too short for it.

        The limit suffices if it allows n moves to clear stack 1 and n (n + 1) / 2 moves to uncover each needed block.
        """
        del gamma
        if any(self.limit * n < n + n * (n + 1) // 2 + self.done for n in self.sizes):
            return float("nan")
        return float(np.mean(self.sizes)) if self.reward == "size" else 1.0

    def _check_stacks(self, stacks: Sequence[Sequence[int]]) -> None:
        if len(stacks) != 4:
            raise ValueError(f"stacks: expected four stacks, the template first, got {len(stacks)}")
        template, *rest = stacks
        if not 1 <= len(template) <= self.capacity:
            raise ValueError(f"stacks: expected a template of 1 to {self.capacity} blocks, got {len(template)}")
        for colour in template:
            if colour not in range(1, self.colours + 1):
                raise ValueError(f"stacks: expected colours from 1 to {self.colours}, got {colour!r}")
        if sorted(template) != sorted(itertools.chain(*rest)):
            raise ValueError(
                f"stacks: expected the blocks of the template {list(template)} in stacks 1 to 3, got {rest}"
            )
