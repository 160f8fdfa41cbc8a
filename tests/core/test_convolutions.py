"""Convolutions of images by networks, under all orders of `jax.vmap` and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmarket.policies import Convolution, Torso, cnn, relu_convolution

NETWORKS, IMAGES = 2, 5
SHAPES = [((6, 6), 1), ((5, 8), 1), ((6, 6), 2), ((7, 7), 2), ((5, 8), 2), ((6, 7), 3), ((8, 5), 3), ((1, 2), 3)]


def drawn(size, networks=NETWORKS, images=IMAGES):
    """Kernels, biases and images."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(networks, 27, 4), (networks, 4), (images, *size, 3)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def of_flax(kernel, bias, image, stride):
    layer = nn.Conv(4, (3, 3), strides=stride, padding=((1, 1), (1, 1)))
    return nn.relu(layer.apply({"params": {"kernel": kernel.reshape(3, 3, 3, 4), "bias": bias}}, image))


def one_by_one(kernels, biases, images, stride):
    """[networks, images, ...], without `jax.vmap`."""
    return jnp.stack(
        [
            jnp.stack([of_flax(kernel, bias, image, stride) for image in images])
            for kernel, bias in zip(kernels, biases, strict=True)
        ]
    )


def all_pairs(order, stride, flat=False):
    """``(kernels, biases, images) -> [networks, images, ...]`` with the batch of images inside, or outside."""

    def convolution(kernel, bias, image):
        return relu_convolution(kernel, bias, image, stride=stride, flat=flat)

    if order == "images inside":
        return jax.vmap(jax.vmap(convolution, (None, None, 0)), (0, 0, None))
    return jax.vmap(jax.vmap(convolution, (0, 0, None)), (None, None, 0), 1)


@pytest.mark.parametrize("order", ["images inside", "networks inside"])
@pytest.mark.parametrize(("size", "stride"), SHAPES, ids=str)
def test_maps_and_gradients_are_those_of_flax(size, stride, order):
    given = drawn(size)

    def loss(function, *given):
        maps = function(*given)
        return jnp.sin(maps).sum(), maps

    slope = jax.jit(jax.grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)
    gradients, maps = slope(all_pairs(order, stride), *given)
    their_gradients, their_maps = slope(lambda *given: one_by_one(*given, stride), *given)
    assert maps.shape == (NETWORKS, IMAGES, -(-size[0] // stride), -(-size[1] // stride), 4)
    np.testing.assert_allclose(maps, their_maps, atol=1e-4)
    for ours, theirs in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", ["images inside", "networks inside"])
def test_a_flat_result_has_the_same_numbers(order):
    given = drawn((5, 4))
    maps, flat = (all_pairs(order, 2, flat)(*given) for flat in (False, True))
    np.testing.assert_array_equal(flat, maps.reshape(NETWORKS, IMAGES, -1))
    single = [x[0] for x in given]
    np.testing.assert_allclose(relu_convolution(*single, stride=2, flat=True), flat[0, 0], atol=1e-5)


def test_every_network_may_have_images_of_its_own():
    kernels, biases, images = drawn((5, 4), images=6)
    images = images.reshape(3, NETWORKS, *images.shape[1:])  # [batches, networks, ...]
    own = jax.vmap(jax.vmap(relu_convolution), (None, None, 0))(kernels, biases, images)
    outside = jax.vmap(jax.vmap(relu_convolution, (None, None, 0)), (0, 0, 1), 1)(kernels, biases, images)
    for i in range(NETWORKS):
        expected = one_by_one(kernels[i : i + 1], biases[i : i + 1], images[:, i], 1)[0]
        np.testing.assert_allclose(own[:, i], expected, atol=1e-4)
        np.testing.assert_allclose(outside[:, i], expected, atol=1e-4)


def test_a_third_axis_of_networks_and_images():
    kernels, biases, images = drawn((4, 4))
    seeds = jax.vmap(all_pairs("networks inside", 1))(*(jnp.stack([x, 2 * x]) for x in (kernels, biases, images)))
    for i, scale in enumerate((1, 2)):
        expected = one_by_one(*(scale * x for x in (kernels, biases, images)), 1)
        np.testing.assert_allclose(seeds[i], expected, rtol=1e-4, atol=1e-4)


def test_derivatives_inside_a_batch_and_of_one_image():
    """The gradient for each image, and forward and reverse derivatives without any batch."""
    kernels, biases, images = drawn((5, 4))

    def loss(convolution, kernel, image):
        return jnp.sin(convolution(kernel, biases[0], image, stride=2)).sum()

    for i, each in enumerate(jax.vmap(jax.grad(loss, 1), (None, None, 0))(relu_convolution, kernels[0], images)):
        expected = jax.grad(loss, 1)(of_flax, kernels[0], images[i])
        np.testing.assert_allclose(each, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(jax.grad(loss, 1)(relu_convolution, kernels[0], images[i]), expected, atol=1e-3)
    ours, theirs = (
        jax.jvp(lambda kernel, f=f: loss(f, kernel, images[0]), (kernels[0],), (kernels[1],))
        for f in (relu_convolution, of_flax)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_there_may_be_no_images():
    kernels, biases, images = drawn((5, 4), images=0)
    for flat, shape in ((False, (3, 2, 4)), (True, (24,))):
        assert all_pairs("images inside", 2, flat)(kernels, biases, images).shape == (NETWORKS, 0, *shape)


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        given = [x.astype(jnp.float64) for x in drawn((5, 4))]
        maps = all_pairs("images inside", 1)(*given)
        assert maps.dtype == jnp.float64
        np.testing.assert_allclose(maps, one_by_one(*given, 1), rtol=1e-9, atol=1e-12)


def test_a_torso_of_several_convolutions_is_its_layers_in_turn():
    torso, images = cnn(6, convolutions=(4, 5), stride=2), drawn((7, 6))[2]
    params = torso.init(jax.random.key(1), images[0])
    features = jax.vmap(torso.apply, (None, 0))(params, images)

    def in_turn(image):
        layers = params["params"]
        for name, channels in (("Convolution_0", 4), ("Convolution_1", 5)):
            image = Convolution(channels, 2).apply({"params": layers[name]}, image)
        return nn.relu(layers["Affine_0"]["kernel"].T @ jnp.append(image.reshape(-1), 1))

    np.testing.assert_allclose(features, jnp.stack([in_turn(image) for image in images]), rtol=1e-4, atol=1e-5)
    assert Torso(convolutions=(4,)).init_with_output(jax.random.key(0), images[0])[0].shape == (7 * 6 * 4,)
