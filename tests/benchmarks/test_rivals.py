"""The PyTorch program that training is compared with: the same algorithm, to rounding; and the benchmark itself."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import rivals
from benchmarks.step import scrambled
from jaxmarket.environments import make
from jaxmarket.learners import Experience
from jaxmarket.learners.protocol import EXPERIENCE_AXES
from jaxmarket.training.config import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed; it is in the extra baselines")


def vector(params, value_params):
    """jaxmarket's parameters, leaves [M, ...], as the vector of the PyTorch program."""
    policy, value = (p["params"] for p in (params, value_params))
    first = np.concatenate([p["torso"]["Affine_0"]["kernel"] for p in (policy, value)])  # [K, I + 1, H]
    padded = np.pad(value["Affine_0"]["kernel"], ((0, 0), (0, 0), (0, 1)))  # an unused second output
    second = np.concatenate([policy["Affine_0"]["kernel"], padded]).swapaxes(1, 2)  # [K, 2, H + 1]
    return np.concatenate([first.swapaxes(1, 2).ravel(), second[..., :-1].ravel(), second[..., -1].ravel()])


@pytest.mark.slow
def test_an_update_agrees_with_jaxmarkets(torch):
    """Eight gradient steps on equal data from equal parameters, with clipped gradients and decayed rates."""
    from benchmarks._torch_society import TorchSociety  # noqa: PLC0415

    rates = {"learning_rate": 1e-2, "value_learning_rate": 2e-2}
    learner = dataclasses.replace(PRESETS["paper"]["learner"], max_norm=0.05, **rates)
    config = rivals.config(1, learner=learner)
    learner, hyper = config.settings.learner, config.settings.hyperparameters.as_arrays()
    society = TorchSociety(config)
    keys = jax.random.split(jax.random.key(0), society.modules)
    state = jax.vmap(learner.init, (0, None))(keys, jnp.zeros(6))
    state = scrambled(state.replace(opt=None), jax.random.key(1)).replace(opt=state.opt)
    start = vector(state.params, state.value_params)
    with torch.no_grad():
        society.theta.copy_(torch.from_numpy(start))
    society.updates = 1050  # five decays

    batch = society.rollout()
    batch = batch._replace(**{name: getattr(batch, name)[:8] for name in batch._fields})

    def rows(values):  # [C, M, R, N] -> [M, R, C N]
        return np.moveaxis(values, 0, 2).reshape(*values.shape[1:3], -1)

    bid, utility = rows(batch.bids), rows(batch.utility)
    everyone = np.ones(bid.shape, bool)
    experience = Experience(
        obs=np.moveaxis(batch.inputs[:, :-1], 1, 2).reshape(-1, 6),
        bid=bid, eligible=everyone, won=everyone, price=np.zeros_like(bid), utility=utility,
    )  # fmt: skip
    ours = jax.jit(jax.vmap(lambda s, e: learner.update(s, e, hyper, 1050, 0.0)[0], in_axes=(0, EXPERIENCE_AXES)))
    expected = ours(state, experience)
    expected = vector(expected.params, expected.value_params)
    society.learn(batch)
    assert np.abs(expected - start).max() > 0.05  # the tolerance is a small part of the change
    np.testing.assert_allclose(society.theta.numpy(), expected, atol=1e-4)


@pytest.mark.slow
def test_a_rollout_is_one_of_chain(torch):
    """Each instance, auction by auction: the winner acts, pays the next bid, and earns the next price."""
    from benchmarks._torch_society import TorchSociety  # noqa: PLC0415

    config = rivals.config(1)
    society, env = TorchSociety(config), make("Chain-v0")[0]
    society.generator = np.random.default_rng(1)
    batch = society.rollout()
    count, steps = len(batch.bids), config.settings.minibatch // config.settings.instances

    def rows(values):  # [C, ..., N] -> [T, B, ...]
        values = np.moveaxis(values, -1, 1).reshape(count, steps, society.instances, *values.shape[1:-1])
        return values.reshape(-1, *values.shape[2:])

    states, bids, utility = (rows(values) for values in batch)
    assert (states[..., -1] == 1).all()
    states, bids = states[..., :-1].argmax(-1), bids.reshape(*bids.shape[:2], -1)
    utility = utility.reshape(bids.shape)
    ended = 0
    for i in range(society.instances):
        state, time = 0, 0
        for t in range(society.horizon):
            assert states[t, i] == state
            price = np.sort(bids[t, i])[-2]
            winner = int(np.argmax(bids[t, i]))
            action = winner // 2
            after, time = int(env.transitions[state, action].argmax()), time + 1
            done = bool(env.terminal[after]) or time == env.horizon
            proceeds = 0.0 if done or t == society.horizon - 1 else np.sort(bids[t + 1, i])[-2]
            expected = np.zeros(4)
            expected[winner] = env.rewards[state, action] + env.gamma * proceeds - price
            np.testing.assert_allclose(utility[t, i], expected, atol=1e-6)
            state, time, ended = (0, 0, ended + 1) if done else (after, time, ended)
    assert ended > society.instances
    assert society.state.shape == (society.instances,)


@pytest.mark.slow
def test_restored_training_repeats_itself_and_learns(torch):
    from benchmarks._torch_society import TorchSociety  # noqa: PLC0415

    society = TorchSociety(rivals.config(1, **rivals.LEARNING))
    assert society.greedy_return() == 0  # equal bids: the first primitive, left, acts
    initial = society.snapshot()
    society.train(2)
    after = society.theta.clone()
    society.restore(initial)
    society.train(2)
    np.testing.assert_array_equal(society.theta.numpy(), after.numpy())
    society.train(rivals.LEARNED)
    assert society.greedy_return() == pytest.approx(0.8)


@pytest.mark.full
def test_the_quick_benchmark_runs(torch, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "rivals", "--quick", "--json", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for field in ("torch_steps_per_second", "beta_over_torch", "kumaraswamy_over_torch"):
        assert 0 < found[field] < math.inf, field
    assert found["lowest_greedy_return"] == pytest.approx(0.8)
    kept = json.loads((tmp_path / "rivals.json").read_text())["timings"]
    assert {len(timing["seconds"]) for timing in kept.values()} == {10}


def test_without_pytorch_the_remedy_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert rivals.main(["--quick"]) == 1
    assert capsys.readouterr().err == rivals.MISSING + "\n"
