"""The grid world of targets, compared with a loop over cells in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thinned import thinned

from jaxmarket import make
from jaxmarket.environments import Targets
from jaxmarket.environments.targets import TargetsState
from jaxmarket.testing import check_environment
from jaxmarket.view import pictures

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))


def way(start, end, size):
    """The shortest signed way on a ring, by trying all."""
    return min((d for d in range(-size, size + 1) if (start + d) % size == end), key=abs)


def seen(env, agent, target, present):
    """The observation in plain Python."""
    half = env.size // 2
    rows = [
        [*(way(a, t, env.size) / half for a, t in zip(agent, cell, strict=True)), 1] if there else [0, 0, 0]
        for cell, there in zip(target, present, strict=True)
    ]
    return np.ravel(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "size", "absent"), thinned([(4, 7, ()), (3, 5, (1,))], lambda kinds, size, absent: bool(absent))
)
def test_steps_are_those_of_a_loop_over_cells(kinds, size, absent):
    """Cells, payments and observations; what is random is only checked to be possible."""
    env = Targets(kinds, size, absent)
    params = env.default_params.replace(appears=0.3, vanishes=0.2, pays=jnp.arange(1.0, kinds + 1))
    step = jax.jit(env.step_env)
    obs, state = env.reset_env(jax.random.key(0), params)
    rng, events = np.random.default_rng(0), dict.fromkeys(("paid", "appeared", "vanished"), 0)
    for t in range(300):
        agent, present = np.asarray(state.agent), np.asarray(state.present)
        target = (agent + np.asarray(state.offset)) % size
        np.testing.assert_allclose(obs, seen(env, agent, target, present), atol=1e-6)
        for kind in range(kinds):
            np.testing.assert_array_equal(env.module_observation(obs, kind), obs[3 * kind : 3 * kind + 3])
        action = int(rng.integers(4))
        obs, state, reward, ended, info = step(jax.random.key(t), state, action, params)
        here = (agent + MOVES[action]) % size
        np.testing.assert_array_equal(state.agent, here)
        paid = info["module_rewards"]
        assert not ended and float(reward) == float(paid.sum())
        after = (here + np.asarray(state.offset)) % size
        for kind in range(kinds):
            reached = present[kind] and (target[kind] == here).all()
            assert float(paid[kind]) == (kind + 1 if reached else 0)
            moved = (after[kind] != target[kind]).any()
            if reached:
                assert state.present[kind] and moved
            elif present[kind]:
                assert not moved
            assert not (state.present[kind] and kind in absent)
            if state.present[kind] and not present[kind]:
                assert (after[kind] != here).any()  # it does not appear under the agent
            events["paid"] += reached
            events["appeared"] += bool(state.present[kind] and not present[kind])
            events["vanished"] += bool(present[kind] and not state.present[kind])
    assert min(events.values()) > 3


def test_new_cells_are_uniform_over_all_others():
    """A reached target moves to each of the other 24 cells equally often."""
    env = Targets(1, 5)
    state = TargetsState(
        agent=jnp.array([2, 2]), offset=jnp.array([[0, 1]]), present=jnp.array([True]), time=jnp.zeros((), jnp.int32)
    )
    keys = jax.random.split(jax.random.key(0), 4800)
    _, after, reward, _, _ = jax.jit(jax.vmap(env.step_env, (0, None, None, None)))(keys, state, 1, env.default_params)
    assert reward.min() == 1
    counts = np.bincount(np.asarray(after.offset[:, 0] @ jnp.array([5, 1])), minlength=25)
    assert counts[0] == 0 and ((counts[1:] > 120) & (counts[1:] < 280)).all()  # 200 ± 5.8 standard deviations


def test_kinds_come_and_go_with_the_parameters():
    env = Targets(absent=(3,))
    obs, _ = jax.vmap(env.reset_env, (0, None))(jax.random.split(jax.random.key(0), 64), env.default_params)
    assert not obs[:, 9:].any() and obs[:, :9].any()
    every = env.default_params.replace(kinds=jnp.ones(4, bool))
    obs, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(jax.random.key(0), 64), every)
    share = obs.reshape(64, 4, 3)[..., 2].mean()
    assert abs(float(share) - 2 / 3) < 0.15
    for params in (env.default_params, every):
        np.testing.assert_array_equal(env.eligible_modules(state, params), params.kinds)


def test_the_contract_is_kept():
    env, params = make("Targets-v0")
    assert env == Targets() != Targets(absent=(0,)) and hash(env) == hash(Targets())
    assert env.name == "Targets-v0" and Targets(absent=(3,)).name == "Targets-without-3-v0"
    check_environment(env, params, steps=60, instances=2)  # more than an episode


def test_the_picture_shows_agent_and_targets():
    env, _ = make("Targets-v0")
    state = TargetsState(
        agent=jnp.array([6, 0]),
        offset=jnp.array([[1, 1], [0, 6], [3, 3], [3, 3]]),
        present=jnp.array([True, True, False, False]),
        time=jnp.zeros((), jnp.int32),
    )
    drawn = pictures.picture(pictures.Adapter(env), state, env.get_obs(state))
    cells = drawn[8::16, 8::16]
    assert drawn.shape == (112, 112, 3) and len(np.unique(cells.reshape(-1, 3), axis=0)) == 4
    assert [tuple(x) for x in np.argwhere((cells != cells[3, 3]).any(-1))] == [(0, 1), (6, 0), (6, 6)]


@pytest.mark.parametrize(
    ("options", "field"),
    [({"kinds": 0}, "kinds"), ({"size": 6}, "size"), ({"size": 1}, "size"), ({"absent": (4,)}, "absent")],
)
def test_what_does_not_fit_is_refused_by_name(options, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Targets(**options)
