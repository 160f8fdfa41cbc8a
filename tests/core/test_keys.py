import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from jaxmarket import TrainConfig, cli, evaluation, fit
from jaxmarket.interop.gymnasium_env import actor
from jaxmarket.keys import PURPOSES, from_words, key_for, key_of, tag_of, to_words
from jaxmarket.runs import fitting


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
    with pytest.raises(ValueError, match=r"purpose: unknown .evaluaton.; choose from evaluation,"):
        key_for(jax.random.key(0), "evaluaton")


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40, 1.5, True, None, "0"])
def test_seeds_outside_32_bits_are_refused(seed):
    with pytest.raises(ValueError, match="seed: expected an integer >= 0"):
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
    with pytest.raises(ValueError, match=r"^key: "):
        from_words(saved)


def descendants(key, generations=3, width=6):
    """The key and all keys split from it, generation by generation."""
    found = words(key)
    for _ in range(generations):
        key = jax.vmap(lambda k: jax.random.split(k, width))(key.reshape(-1)).reshape(-1)
        found |= words(key)
    return found


CONFIG = TrainConfig("Bandit-v0", learner="valuation", steps=64, instances=4, horizon=16, minibatch=64, seeds=2)


def test_fit_evaluates_with_keys_that_training_does_not_use(monkeypatch):
    used = {}

    def spy(player, params, key, *rest):
        used["both"] = key
        raise RuntimeError("seen")

    monkeypatch.setattr(fitting, "evaluate_both", spy)
    key = jax.random.key(0)
    with pytest.raises(RuntimeError, match="seen"):
        fit(CONFIG, key, progress=False)
    training = set.union(*(descendants(one) for one in jax.random.split(key, CONFIG.seeds)))
    assert descendants(used["both"]).isdisjoint(training)


class Row(NamedTuple):
    episode_return: jax.Array
    episode_length: Any = np.int32(0)
    done: Any = np.bool_(True)
    terminated: Any = np.bool_(True)


def test_evaluation_with_the_key_of_training_draws_its_own_numbers():
    key = jax.random.key(0)

    def reset(key):
        return Row(jax.random.key_data(key)[0])

    drawn = evaluation.first_episodes(reset, lambda _, row: (row, row), key, 8, max_steps=0).returns
    training = set.union(*(descendants(one) for one in jax.random.split(key, 4)))
    assert set(np.asarray(drawn).tolist()).isdisjoint(word for word, _ in training)


@pytest.mark.parametrize("command", ["evaluate", "watch"])
def test_commands_do_not_play_with_the_keys_of_training(command, tmp_path, monkeypatch):
    fit(CONFIG, jax.random.key(0), tmp_path / "run", progress=False)
    used = []

    def spy(player, params, key, *_):
        used.append(key)
        raise StopIteration

    monkeypatch.setattr(cli, "evaluate_both", spy)
    monkeypatch.setattr(cli, "watch_episode", spy)
    with pytest.raises(StopIteration):
        getattr(cli, command)(tmp_path / "run", seed=0)
    training = set.union(*(descendants(one) for one in jax.random.split(jax.random.key(0), CONFIG.seeds)))
    assert descendants(used[0]).isdisjoint(training | words(jax.random.key(0)))


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_every_seed_argument_is_checked(seed, tmp_path):
    calls = {
        "train": lambda: cli.train(CONFIG, seed=seed),
        "evaluate": lambda: cli.evaluate(tmp_path, seed=seed),
        "watch": lambda: cli.watch(tmp_path, seed=seed),
        "sweep": lambda: cli.sweep(CONFIG, vary=("clones=1,2",), seed=seed, out=tmp_path),
        "reproduce": lambda: cli.reproduce("identities", seed=seed, out=tmp_path / "new", quick=True),
        "actor": lambda: actor(lambda obs, key: 0, seed),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="seed: expected an integer >= 0"):
            call()
    assert not list(tmp_path.iterdir())
