"""Random keys: one registry of what they are used for, and a form that files can hold.

A run derives everything from one key. Seed i trains with ``jax.random.split(key, seeds)[i]``; every other use takes
`key_for`, so that no two uses share a stream::

    >>> import jax
    >>> from jaxmarket.keys import key_for
    >>> key = jax.random.key(0)
    >>> training, evaluation = jax.random.split(key, 4), key_for(key, "evaluation")

In JAX ``fold_in(key, i)`` is ``split(key, n)[i]``: a small number folded in gives the key of a seed. The tags here are
hashes of names with the highest bit set, at least 2^31, which no ``split`` reaches.
"""

import zlib
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.checking import shown, whole
from jaxmarket.switches import check_backend
from jaxmarket.types import Array

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
"""What `key_for` derives keys for. A new use of a key that is also used for something else gets an entry."""


def key_for(key: Array, purpose: str) -> Array:
    """The key for one purpose: another one for each, and none of ``jax.random.split(key, n)`` for n up to 2^31.

    Args:
        key: a typed PRNG key, scalar; it may still be split, and given to other purposes.
        purpose: one of `PURPOSES`.

    Raises:
        ValueError: ``purpose`` is not in `PURPOSES`.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose: unknown {shown(purpose)}; choose from {', '.join(PURPOSES)}, or add it to PURPOSES")
    return jax.random.fold_in(key, tag_of(purpose))


def tag_of(purpose: str) -> np.uint32:
    """What `key_for` folds in: a hash of the name, with the highest bit set."""
    return np.uint32(zlib.crc32(purpose.encode()) | 1 << 31)


def key_of(seed: Any, field: str = "seed") -> Array:
    """The typed PRNG key of a seed, of JAX's default implementation.

    Args:
        seed: a whole number from 0 to 2^32 - 1. `jax.random.key` drops higher bits, so that 2^32 would repeat seed 0.
        field: what the argument is called in messages.

    Raises:
        ValueError: ``seed`` is not such a number, or JAX has no device.
    """
    check_backend()
    return jax.random.key(np.uint32(whole(field, seed, 0, 2**32 - 1)))


def to_words(key: Array) -> dict[str, Any]:
    """A key as JSON can hold it: ``{"impl": "threefry2x32", "words": [0, 0]}``."""
    return {"impl": str(jax.random.key_impl(key)), "words": np.asarray(jax.random.key_data(key)).tolist()}


def from_words(saved: Any, field: str = "key") -> Array:
    """The key that `to_words` described.

    Raises:
        ValueError: it is not of that form, the implementation is unknown, or the words do not fit it.
    """
    expected = f'{field}: expected {{"impl": "threefry2x32", "words": [...]}}'
    match saved:
        case {"impl": str(impl), "words": list(words), **rest} if not rest:
            pass
        case _:
            raise ValueError(f"{expected}, got {shown(saved)}")
    words = [whole(f"{field}: words", word, 0, 2**32 - 1) for word in words]
    try:
        return jax.random.wrap_key_data(jnp.asarray(np.array(words, np.uint32)), impl=impl)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, got {shown(saved)} ({shown(str(error), 100)})") from error
