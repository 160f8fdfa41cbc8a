"""Affine maps of images: rotation and translation by resampling.

Coordinates are normalised: the image is the square [-1, 1]²; the first coordinate points down, the second right.
"""

import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from jaxmarket.types import Array

__all__ = ["resample", "rotation", "translation"]


def rotation(angle: float | Array) -> Array:
    """The map that rotates an image counter-clockwise by ``angle`` radians: f [2, 3]."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # The inverse rotation: it maps a point of the result to its source. The first coordinate points down.
    return jnp.stack([jnp.stack([cos, sin, 0 * cos]), jnp.stack([-sin, cos, 0 * cos])])


def translation(down: float, right: float) -> np.ndarray:
    """The map that translates an image by (``down``, ``right``), in half widths of the image: f [2, 3]."""
    return np.array([[1, 0, -down], [0, 1, -right]], np.float32)


def resample(image: Array, source: Array) -> Array:
    """The image whose value at p is ``image`` at ``source`` · (p, 1), with bilinear interpolation.

    Points outside the image take the nearest border value. PyTorch's ``grid_sample`` with border padding and
    ``align_corners=False`` computes the same.

    Args:
        image: f [side, side].
        source: f [2, 3], from `rotation` or `translation`.

    Returns:
        f [side, side].
    """
    side = image.shape[0]
    line = (2 * jnp.arange(side) + 1) / side - 1  # centres of the pixels
    down, right = jnp.meshgrid(line, line, indexing="ij")
    points = jnp.stack([down, right, jnp.ones_like(down)])
    where = jnp.tensordot(jnp.asarray(source, image.dtype), points.astype(image.dtype), 1)
    return map_coordinates(image, list(((where + 1) * side - 1) / 2), order=1, mode="nearest")
