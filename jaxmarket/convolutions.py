"""A 3 × 3 convolution with ReLU that is fast on a CPU, under `jax.vmap` over images and over networks.

A convolution is the matrix product of a kernel and the patches of an image. `jax.vmap` puts images along the first
axis. In that layout patches are copied in pieces of c numbers, and both factors of the product for the gradient of the
kernel are transposed, which makes it slow. With images along the last axis, patches are copied in long pieces, and
every product has a layout that a CPU multiplies fast (``benchmarks/NOTES.md``). So the convolution is a JAX primitive
with a rule of its own for batches of images. Its derivatives, and all other rules, are those of ordinary functions.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float

from jaxmarket.types import Array

__all__ = ["relu_convolution"]

# Axes to map over for kernel, bias and image, as in `jax.vmap`.
_Axes = tuple[int | None, int | None, int | None]


def relu_convolution(
    kernel: Float[Array, "K C"],
    bias: Float[Array, " C"],
    image: Float[Array, "height width c"],
    *,
    stride: int = 1,
    flat: bool = False,
) -> Float[Array, "..."]:
    """``max(0, convolution + bias)`` of an image with a margin of zeros: f [down, right, C].

    Args:
        kernel: for 3 × 3 places and c channels, in this order: K = 9 c.
        bias: of the channels of the result.
        image: channels last.
        stride: distance of the places at which the kernel is applied. Down is ⌈height / stride⌉, and right
            ⌈width / stride⌉.
        flat: whether the result has one axis, of down · right · C numbers. `jax.numpy.reshape` would put a batch of
            images along the first axis.
    """
    return _convolution.bind(kernel, bias, image, stride=stride, flat=flat, networks=None)


def _windows(image: Array, stride: int, axis: int) -> list[Array]:
    """What each of the nine places of a kernel sees; height and width are ``axis`` and the axis after it."""
    height, width = image.shape[axis : axis + 2]
    padded = jnp.pad(image, [(1, 1) if each in (axis, axis + 1) else (0, 0) for each in range(image.ndim)])
    before = (slice(None),) * axis
    return [
        padded[(*before, slice(i, i + height, stride), slice(j, j + width, stride))] for i in range(3) for j in range(3)
    ]


def _of_image(kernel: Array, bias: Array, image: Array, *, stride: int, flat: bool) -> Array:
    """[height, width, c] -> [down, right, C]."""
    patches = jnp.concatenate(_windows(image, stride, axis=0), -1)
    result = jax.nn.relu(patches.reshape(-1, patches.shape[-1]) @ kernel + bias)
    return result.reshape(-1) if flat else result.reshape(*patches.shape[:2], -1)


def _of_images(kernel: Array, bias: Array, images: Array, *, stride: int, flat: bool) -> Array:
    """[height, width, c, n] -> [down, right, C, n], computed as [c, height, width, n] -> [C, down, right, n]."""
    patches = jnp.concatenate(_windows(images.transpose(2, 0, 1, 3), stride, axis=1), 0)
    # One axis of places and images: a contraction of several axes would be preceded by a transposition. Sum and ReLU
    # have an axis for each, since XLA would divide to find the place of every number.
    product = (kernel.T @ patches.reshape(patches.shape[0], -1)).reshape(-1, *patches.shape[1:])
    result = jax.nn.relu(product + bias[:, None, None, None]).transpose(1, 2, 0, 3)
    return result.reshape(-1, result.shape[-1]) if flat else result


def _evaluate(kernel: Array, bias: Array, image: Array, *, networks: _Axes | None, **parameters: Any) -> Array:
    """The convolution of one image, by one network or by several."""
    of_image = functools.partial(_of_image, **parameters)
    return (of_image if networks is None else jax.vmap(of_image, networks))(kernel, bias, image)


def _batch(
    operands: Sequence[Array], axes: Sequence[int | None], *, networks: _Axes | None, **parameters: Any
) -> tuple[Array, int]:
    """The rule for `jax.vmap`: over images, over networks, or over both or anything else."""
    (kernel, bias, image), (_, _, of_image) = operands, axes
    if axes[0] is axes[1] is None and of_image is not None:
        of_images = functools.partial(_of_images, **parameters)
        if networks is not None:
            of_images = jax.vmap(of_images, networks)
        result = of_images(kernel, bias, jnp.moveaxis(image, of_image, -1))
        return result, result.ndim - 1
    operands = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(operands, axes, strict=True)]
    mapped: Any = tuple(None if axis is None else 0 for axis in axes)
    if networks is None:
        return _convolution.bind(*operands, networks=mapped, **parameters), 0
    return jax.vmap(functools.partial(_evaluate, networks=networks, **parameters), mapped)(*operands), 0


def _differentiate(primals: Sequence[Array], tangents: Sequence[Any], **parameters: Any) -> tuple[Array, Array]:
    evaluate = functools.partial(_evaluate, **parameters)
    return jax.jvp(evaluate, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _shape(*operands: Array, **parameters: Any) -> ShapedArray:
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    result = jax.eval_shape(functools.partial(_evaluate, **parameters), *shapes)
    return ShapedArray(result.shape, result.dtype)


_convolution = Primitive("relu_convolution")
_convolution.def_impl(jax.jit(_evaluate, static_argnames=("stride", "flat", "networks")))
_convolution.def_abstract_eval(_shape)
ad.primitive_jvps[_convolution] = _differentiate
batching.primitive_batchers[_convolution] = _batch
mlir.register_lowering(_convolution, mlir.lower_fun(_evaluate, multiple_results=False))
