"""Rotating and translating images by resampling them.

Coordinates are normalised: the image is the square [-1, 1]², the first coordinate runs down, the second to the right.
"""

import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from jaxmarket.types import Array

__all__ = ["resample", "rotation", "translation"]


def rotation(angle: float | Array) -> Array:
    """The map that turns an image to the left by ``angle`` in radians: f [2, 3]."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Where a point of the result comes from: turned back. With the first coordinate downwards, left is this way.
    return jnp.stack([jnp.stack([cos, sin, 0 * cos]), jnp.stack([-sin, cos, 0 * cos])])


def translation(down: float, right: float) -> np.ndarray:
    """The map that moves an image by so much: f [2, 3]."""
    return np.array([[1, 0, -down], [0, 1, -right]], np.float32)


def resample(image: Array, source: Array) -> Array:
    """The image whose point p is ``image`` at ``source`` · (p, 1): bilinear, the border going on outside.

    That is what PyTorch calls ``grid_sample`` with border padding and ``align_corners=False``.

    Args:
        image: f [side, side].
        source: f [2, 3], from `rotation` or `translation`.
    """
    side = image.shape[0]
    line = (2 * jnp.arange(side) + 1) / side - 1  # middles of the pixels
    down, right = jnp.meshgrid(line, line, indexing="ij")
    points = jnp.stack([down, right, jnp.ones_like(down)])
    where = jnp.tensordot(jnp.asarray(source, image.dtype), points.astype(image.dtype), 1)
    return map_coordinates(image, list(((where + 1) * side - 1) / 2), order=1, mode="nearest")
