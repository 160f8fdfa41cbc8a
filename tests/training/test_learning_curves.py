"""Learning curves: the same training as chunk by chunk, evaluated in between."""

import jax
import numpy as np
import pytest

from jaxmarket import TrainConfig
from jaxmarket.training.learning_curves import evaluation_times, learning_curves


@pytest.mark.parametrize(("chunks", "count"), [(1, 8), (7, 3), (3200, 96)])
def test_times_are_whole_chunks_from_the_first_to_the_last(chunks, count):
    times = evaluation_times(chunks, count)
    assert times[0] == 1 and times[-1] == chunks and len(times) <= count
    assert (np.diff(times) > 0).all() and (np.diff(np.diff(times)) >= -1).all()  # rounded


@pytest.mark.slow
def test_a_curve_is_that_of_training_chunk_by_chunk():
    """Two settings and two seeds, evaluated after one chunk and after three: the states and returns of each alone."""
    settings = {
        "learner": "valuation",
        "hidden": (),
        "steps": 48,
        "instances": 2,
        "horizon": 8,
        "minibatch": 16,
        "log_every": 1,
    }
    config = TrainConfig("Chain-v0", **settings)
    program, hyper = config.settings.trainable, config.settings.hyperparameters
    tried, keys = [hyper, hyper.replace(learning_rate=0.3)], jax.random.split(jax.random.key(0), 2)
    returns, states = learning_curves(program, [1, 3], keys, tried)
    assert returns.shape == (2, 2, 2) and returns.dtype == np.float64
    env_params, player = program.env.default_params, program.player(greedy=True)
    init, chunk = jax.jit(program.init), jax.jit(program.chunk)
    for h, values in enumerate(each.as_arrays() for each in tried):
        for s, key in enumerate(keys):
            key_init, key_play = jax.random.split(key)
            state = init(key_init, env_params, values)
            for p, (chunks, key_look) in enumerate(zip((1, 2), jax.random.split(key_play, 2), strict=True)):
                for _ in range(chunks):
                    state, _ = chunk(state, env_params, values)
                played = player.evaluate(state.learner.params, key_look, env_params, 1)
                assert returns[h, s, p] == played.returns[0]
            found = jax.tree.map(lambda x: x[h, s], states.learner.params)  # noqa: B023
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, state.learner.params)
    assert (states.update == 3).all()
