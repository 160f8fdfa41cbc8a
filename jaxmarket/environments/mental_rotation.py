"""Mental Rotation (Chang et al. 2020, §6.3): undo a transformation of a digit, so that a frozen classifier reads it.

A digit is rotated by ±60° and then translated by .29 of the image's half width, up, down, left or right: eight
combinations. Six primitives apply these rotations and translations. After two primitives the reward is 1 if a
classifier that was trained on upright digits predicts the digit's class, else 0. Inverse primitives in the wrong order
leave the digit off centre.
"""

import functools
import math
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from jaxmarket.environments import digits
from jaxmarket.environments.affine import resample, rotation, translation
from jaxmarket.environments.functions import Functions
from jaxmarket.types import Array, real
from jaxmarket.validation import check_int

__all__ = ["NAMES", "Depth", "MentalRotation", "check_task", "inverse", "needed", "program_name"]

Depth = Literal["fixed", "dynamic"]
"""How many functions an input needs: two, or up to two."""

NAMES = ("rotate left", "rotate right", "move up", "move down", "move left", "move right")
"""Names of the primitives."""
_DONE = ("rotated left", "rotated right", "moved up", "moved down", "moved left", "moved right")
_ANGLE, _SHIFT = math.pi / 3, 0.29
_SMALLEST = 16
_ROTATIONS, _MOVES = (0, 1), (2, 3, 4, 5)
_NOTHING = len(NAMES)
_UNDO = (1, 0, 3, 2, 5, 4, _NOTHING)

# The combinations: a rotation (or none), then a translation (or none), as primitives.
_BOTH = tuple((r, m) for r in _ROTATIONS for m in _MOVES)
_ONE = tuple((r, _NOTHING) for r in _ROTATIONS) + tuple((_NOTHING, m) for m in _MOVES)
_EVERY = (*_BOTH, *_ONE, (_NOTHING, _NOTHING))


def needed(combination: int) -> int:
    """The number of primitives that undo a combination: 2 for the first eight, 1 for the next six, 0 for the last."""
    return sum(part != _NOTHING for part in _EVERY[combination])


def inverse(combination: int) -> tuple[int, ...]:
    """The primitives that undo a combination, in the order of their application."""
    rotated, moved = _EVERY[combination]
    return tuple(_UNDO[part] for part in (moved, rotated) if part != _NOTHING)


def program_name(program: Iterable[int]) -> str:
    """The names of a program's functions, such as "move down, then rotate right"."""
    return ", then ".join(NAMES[function] for function in program) or "nothing"


def _maps() -> np.ndarray:
    """The affine map of each primitive, and the identity: f [7, 2, 3]."""
    moves = [(-_SHIFT, 0), (_SHIFT, 0), (0, -_SHIFT), (0, _SHIFT), (0, 0)]
    return np.stack([rotation(_ANGLE), rotation(-_ANGLE), *(translation(*move) for move in moves)])


def check_task(resolution: int, depth: str) -> int:
    """The resolution, if `MentalRotation` has these settings.

    Raises:
        ValueError: it has not.
    """
    if depth not in ("fixed", "dynamic"):
        raise ValueError(f"depth: unknown depth {depth!r}; choose from fixed, dynamic")
    return check_int("resolution", resolution, _SMALLEST)


class MentalRotation(Functions):
    """The Mental Rotation environment; instances compare and hash by value.

    An example of the dataset is a pair of integers (digit, combination); the value is the image, f [resolution,
    resolution].

    Args:
        resolution: side of the image in pixels; 64 in the paper.
        depth: "fixed" applies two functions to the eight combinations of rotation and translation. "dynamic" applies
            up to four functions and has the action ``stop``; one third of its examples each needs two functions, one,
            and none.
        price: cost of a function in the dynamic task.
        components: number of principal components of the image to observe instead of its pixels, as a frozen encoder
            that all bidders share. They are fitted to training digits at all stages of the computation.
        source: data set of digits, see `digits.load`.

    Raises:
        ValueError: no digits are installed, or a number is out of range.
    """

    def __init__(
        self,
        resolution: int = 32,
        depth: Depth = "fixed",
        *,
        price: float = 0.05,
        components: int | None = None,
        source: digits.Source | None = None,
    ) -> None:
        resolution = check_task(resolution, depth)
        if components is not None:
            components = check_int("components", components, 1, resolution**2)
        self.digits = digits.load(source)
        self.resolution, self.depth, self.components = resolution, depth, components
        self.images = np.round(255 * digits.on_canvas(self.digits.images, resolution)).astype(np.uint8)
        self.reader = digits.reader(self.digits, resolution)
        maps = _maps()
        self._maps = jnp.asarray(maps)
        dynamic = depth == "dynamic"
        super().__init__(
            [functools.partial(resample, source=source) for source in maps[:_NOTHING]],
            self.examples(np.arange(self.digits.train), balanced=True),
            self._is_read,
            start=self._scrambled,
            steps=4 if dynamic else 2,
            stop=dynamic,
            price=price if dynamic else 0.0,
            clock=False,
            names=NAMES,
            name="Mental Rotation" + (", dynamic depth" if dynamic else ""),
        )
        self._observe = self._pixels
        if components is not None:
            self._fit_components(components)
            self._observe = self._features
        self._value = (resolution, depth, price, components, self.digits.source)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MentalRotation) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    @property
    def combinations(self) -> tuple[int, ...]:
        """The combinations of the task."""
        return tuple(range(len(_BOTH) if self.depth == "fixed" else len(_EVERY)))

    @property
    def held_out(self) -> np.ndarray:
        """Indices of the held-out digits."""
        return np.arange(self.digits.train, len(self.images))

    def examples(self, which: np.ndarray, *, balanced: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """All combinations of the given digits: (digit, combination), i [N] each, digit by digit.

        Args:
            which: indices of digits.
            balanced: repeat combinations so that each number of needed functions is equally frequent.
        """
        counts = np.bincount([needed(c) for c in self.combinations])
        common = math.lcm(*counts[counts > 0].tolist())
        repeated = [c for c in self.combinations for _ in range(common // counts[needed(c)] if balanced else 1)]
        return np.repeat(which, len(repeated)).astype(np.int32), np.tile(repeated, len(which)).astype(np.int32)

    def describe(self, combination: int) -> str:
        """A description of the combination, such as "rotated left, moved up"."""
        return ", ".join(_DONE[part] for part in _EVERY[combination] if part != _NOTHING) or "nothing"

    def apply(self, choice: Array, value: Array) -> Array:
        """Apply function ``choice`` to the image, by one resampling with that function's affine map."""
        return resample(value, self._maps[choice])

    def _scrambled(self, example: tuple[Array, Array]) -> tuple[Array, Array]:
        digit, combination = example
        image = jnp.asarray(self.images)[digit].astype(real()) / 255
        for part in jnp.asarray(_EVERY)[combination]:
            image = jnp.where(part == _NOTHING, image, self.apply(part, image))
        return image, jnp.asarray(self.digits.labels)[digit]

    def _is_read(self, image: Array, label: Array) -> Array:
        return (self.reader(image).argmax() == label).astype(real())

    def _pixels(self, image: Array) -> Array:
        return image[..., None]

    def _features(self, image: Array) -> Array:
        return (image.reshape(-1) - self._mean) @ self._directions

    def _fit_components(self, count: int) -> None:
        rng = np.random.default_rng(0)
        digit, combination = (rng.choice(n, 2000) for n in (self.digits.train, len(self.combinations)))

        def stages(digit: Array, combination: Array, choice: Array) -> Array:
            image, _ = self._scrambled((digit, combination))
            return jnp.stack([image, self.apply(choice, image)])

        images = jax.jit(jax.vmap(stages))(digit, combination, rng.choice(_NOTHING, 2000))
        # In float64 and with a fixed sign convention, so that saved networks see the same features on other machines:
        # the signs that an eigendecomposition returns depend on the machine and on its number of threads.
        images = np.asarray(images, np.float64).reshape(len(images) * 2, -1)
        mean, pixels = images.mean(0), images.shape[1]
        variances, directions = linalg.eigh(np.cov(images.T), subset_by_index=(pixels - count, pixels - 1))
        directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(count)])
        # Largest first, and scaled to equal variance; directions without variance remain small.
        scaled = directions / np.sqrt(np.maximum(variances, 1e-6 * variances[-1]))
        self._mean, self._directions = jnp.asarray(mean, real()), jnp.asarray(scaled[:, ::-1], real())
