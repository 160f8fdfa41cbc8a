"""Random keys: a registry of their purposes, and their serialization to JSON.

A run derives all its keys from one key. Seed i trains with ``jax.random.split(key, seeds)[i]``; every other use calls
`key_for`, so that no two uses share a stream::

    >>> import jax
    >>> from jaxmarket.keys import key_for
    >>> key = jax.random.key(0)
    >>> training, evaluation = jax.random.split(key, 4), key_for(key, "evaluation")

In JAX ``fold_in(key, i)`` equals ``split(key, n)[i]``, so folding in a small number would give the key of a seed. The
tags here are hashes of names with the highest bit set, and therefore at least 2^31, which no ``split`` reaches.
"""

import zlib
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.switches import check_backend
from jaxmarket.types import Array
from jaxmarket.validation import check_int, short_repr, shorten

__all__ = ["PURPOSES", "from_words", "key_for", "key_of", "tag_of", "to_words"]

PURPOSES: Final = {
    "evaluation": "greedy and sampled episodes at the end of a run",
    "evaluate": "fresh episodes of a finished run",
    "watch": "the episode that is shown",
    "episodes": "first states and steps of evaluation episodes",
    "actor": "calls of a policy outside of JAX",
    "gymnasium": "episodes behind Gymnasium's interface",
    "measurement": "what an experiment measures after training",
    "structure": "the random structure of a network whose weights take the key itself",
}
"""The purposes that `key_for` accepts. Add an entry for each new use of a key that already has another use."""


def key_for(key: Array, purpose: str) -> Array:
    """The key for one purpose. It differs between purposes, and from ``jax.random.split(key, n)`` for n up to 2^31.

    Args:
        key: a scalar typed PRNG key; it may also be split, and used for other purposes.
        purpose: one of `PURPOSES`.

    Raises:
        ValueError: ``purpose`` is not in `PURPOSES`.
    """
    if purpose not in PURPOSES:
        raise ValueError(
            f"purpose: unknown {short_repr(purpose)}; choose from {', '.join(PURPOSES)}, or add it to PURPOSES"
        )
    return _fold_in(key, tag_of(purpose))


_fold_in = jax.jit(jax.random.fold_in)


def tag_of(purpose: str) -> np.uint32:
    """The number that `key_for` folds in: a hash of the name with the highest bit set."""
    return np.uint32(zlib.crc32(purpose.encode()) | 1 << 31)


def key_of(seed: Any, field: str = "seed") -> Array:
    """The typed PRNG key of a seed, in JAX's default implementation.

    Args:
        seed: an integer from 0 to 2^32 - 1. `jax.random.key` drops higher bits, so 2^32 would repeat seed 0.
        field: name of the argument in error messages.

    Raises:
        ValueError: ``seed`` is not an integer in this range, or JAX has no device.
    """
    check_backend()
    return _key(np.uint32(check_int(field, seed, 0, 2**32 - 1)))


_key = jax.jit(jax.random.key)


def to_words(key: Array) -> dict[str, Any]:
    """A key as a JSON object: ``{"impl": "threefry2x32", "words": [0, 0]}``."""
    return {"impl": str(jax.random.key_impl(key)), "words": np.asarray(jax.random.key_data(key)).tolist()}


def from_words(saved: Any, field: str = "key") -> Array:
    """The key that `to_words` serialized.

    Raises:
        ValueError: ``saved`` does not have this form, the implementation is unknown, or the words do not fit it.
    """
    expected = f'{field}: expected {{"impl": "threefry2x32", "words": [...]}}'
    match saved:
        case {"impl": str(impl), "words": list(words), **rest} if not rest:
            pass
        case _:
            raise ValueError(f"{expected}, got {short_repr(saved)}")
    words = [check_int(f"{field}: words", word, 0, 2**32 - 1) for word in words]
    try:
        return jax.random.wrap_key_data(jnp.asarray(np.array(words, np.uint32)), impl=impl)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, got {short_repr(saved)} ({shorten(str(error), 100)})") from error
