import itertools

import jax
import numpy as np
import pytest

from jaxmarket.keys import PURPOSES, from_words, key_for, key_of, tag_of, to_words


def words(keys):
    return {
        tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, jax.random.key_data(keys).shape[-1])
    }


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_purposes_share_no_key_with_each_other_or_with_split(impl):
    key = jax.random.key(0, impl=impl)
    ours = [words(key_for(key, purpose)) for purpose in PURPOSES]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(ours, 2))
    assert set.union(*ours).isdisjoint(words(jax.random.split(key, 5000)) | words(key))


def test_tags_are_beyond_every_split():
    tags = [int(tag_of(purpose)) for purpose in PURPOSES]
    assert len(set(tags)) == len(tags)
    assert min(tags) >= 2**31


def test_an_unknown_purpose_is_named():
    with pytest.raises(ValueError, match="purpose: unknown evaluaton; choose from evaluation,"):
        key_for(jax.random.key(0), "evaluaton")


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, 1.5, True, None, "0"])
def test_seeds_outside_32_bits_are_refused(seed):
    with pytest.raises(ValueError, match="seed: expected a whole number from 0 to 4294967295, got"):
        key_of(seed)


def test_seeds_of_32_bits_are_jaxs_own():
    for seed in (0, 1, 2**31, 2**32 - 1):
        assert words(key_of(seed)) == words(jax.random.key(np.uint32(seed)))
    assert words(key_of(np.int64(3))) == words(jax.random.key(3))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_words_give_back_the_key(impl):
    key = jax.random.key(7, impl=impl)
    back = from_words(to_words(key))
    assert jax.random.key_impl(back) == jax.random.key_impl(key)
    assert words(back) == words(key)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [0, 0],
        {"impl": "threefry2x32"},
        {"impl": "threefry2x32", "words": [0]},
        {"impl": "threefry2x32", "words": [0, 2**32]},
        {"impl": "threefry2x32", "words": [0, -1]},
        {"impl": "threefry2x32", "words": [0, 0.5]},
        {"impl": "threefry2x32", "words": [[0, 0]]},
        {"impl": "threefry2x32", "words": [0, 0, 0, 0]},
        {"impl": "nonsense", "words": [0, 0]},
        {"impl": None, "words": [0, 0]},
        {"impl": {}, "words": [0, 0]},
        {"impl": "threefry2x32", "words": "00"},
    ],
)
def test_words_of_no_key_are_refused(saved):
    with pytest.raises(ValueError, match="^key: "):
        from_words(saved)
