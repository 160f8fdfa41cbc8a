"""What holds for every kind of agent: societies, monoliths, wide markets and populations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from thinned import thinned

import jaxmarket
from jaxmarket import TrainConfig, fit, train
from jaxmarket.deep_market import BidTables, Terms
from jaxmarket.environments import SupplyChain
from jaxmarket.keys import key_for
from jaxmarket.runs import comparison, run_folder
from jaxmarket.runs.fitting import compiles, evaluate_both, init_seeds
from jaxmarket.training import transfer
from jaxmarket.training.population import PopulationAgents

KEY = jax.random.key(0)
SMALL = {"seeds": 2, "instances": 4, "horizon": 8, "steps": 256, "log_every": 2}
LINES = SupplyChain(2, 2, 2, joint=True, horizon=8)
TERMS = Terms(wealth_tax=1e-3, rent=0.01, exploration=0.1, birth_rate=0.5, replace_poorest=True)
KINDS = {
    "society": TrainConfig("Bandit-v0", learner="valuation", minibatch=32, **SMALL),
    "monolith": TrainConfig("Bandit-v0", agent="monolith", minibatch=32, hidden=(4,), **SMALL),
    "wide": TrainConfig(LINES, agent="wide", minibatch=32, **SMALL),
    "population": TrainConfig(
        "Bandit-v0", agent=PopulationAgents(BidTables(1, 4), capacity=8, terms=TERMS, max_births=2), **SMALL
    ),
}
COMMON = {"return_mean", "duration", "welfare", "diverged"}


def stop_after(chunk):
    """A logger that stops a run as Ctrl-C does."""

    def log(record):
        if record.chunk == chunk and not record.earlier:
            raise KeyboardInterrupt

    return log


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    """A run of each kind that was never stopped: its configuration, result and folder."""
    config, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param) / "run"
    return config, fit(config, KEY, folder, progress=False), folder


def test_fit_is_train_mapped_over_seeds(finished):
    config, result, _ = finished
    keys = jax.random.split(KEY, config.seeds)
    state, metrics = jax.jit(jax.vmap(lambda key: train(config, key)))(keys)
    jax.tree.map(np.testing.assert_array_equal, state.learner.params, result.networks["policy"])
    assert result.metrics.keys() == metrics.keys() >= COMMON
    for name, values in metrics.items():
        np.testing.assert_allclose(result.metrics[name], np.swapaxes(values, 0, 1), rtol=1e-5, atol=1e-6)


def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path):
    config, result, _ = finished
    fit(config, KEY, tmp_path / "run", progress=False, loggers=[stop_after(2)], checkpoint_every=0)
    resumed = fit(config, KEY, tmp_path / "run", resume=True, progress=False)
    assert resumed.summary["params_sha256"] == result.summary["params_sha256"]
    assert result.summary["interrupted"] is resumed.summary["interrupted"] is False
    for name, values in result.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    thinned(["society", "monolith", "wide", "population", "sampled bids"], lambda kind: kind != "sampled bids"),
)
def test_one_program_evaluates_greedily_and_sampled(kind):
    """It plays the episodes that a greedy and a sampling player play with their own keys."""
    sampling = TrainConfig("Bandit-v0", learner="ppo", bid_low=0, bid_high=1, minibatch=32, **SMALL)
    config = KINDS.get(kind, sampling)
    trainable, hyper, key = config.settings.trainable, config.settings.hyperparameters.as_arrays(), jax.random.key(1)
    params = init_seeds(trainable, jax.random.split(KEY, config.seeds), hyper).learner.params
    both, env_params = evaluate_both(trainable, params, key, config.seeds), trainable.env.default_params
    for keys, (how, episodes) in zip(jax.random.split(key, (2, config.seeds)), both.items(), strict=True):
        player = trainable.player(greedy=how == "greedy")
        expected = jax.jit(jax.vmap(lambda p, k, player=player: player.evaluate(p, k, env_params, 128)))(params, keys)
        jax.tree.map(np.testing.assert_array_equal, episodes, expected)


def test_a_saved_run_is_read_evaluated_and_loaded(finished):
    """Evaluated with the key of `fit`, it earns what the summary says; the policy acts within the environment."""
    config, result, folder = finished
    saved = run_folder.read(folder)
    assert saved.config.settings == config.settings
    jax.tree.map(np.testing.assert_array_equal, saved.networks, result.networks)
    trainable = saved.config.settings.trainable
    episodes = evaluate_both(trainable, saved.params, key_for(KEY, "evaluation"), config.seeds)
    np.testing.assert_array_equal(episodes["greedy"].returns.mean(1), result.summary["return_seeds"])
    assert (folder / "learning_curve.png").exists()
    policy = jaxmarket.load(folder)
    obs, _ = config.adapter.raw_reset(KEY, config.adapter.default_params)
    action = jax.jit(lambda policy, obs: policy(obs))(policy, obs)
    assert action.dtype == jnp.int32 and 0 <= int(action) < config.adapter.num_actions


def test_a_run_begins_with_what_another_one_learned(finished):
    config, result, folder = finished
    keys, settings = jax.random.split(jax.random.key(1), config.seeds), config.settings
    fresh = init_seeds(settings.trainable, keys, settings.hyperparameters.as_arrays()).learner
    started = transfer.networks(transfer.start_from(fresh, result.networks))
    jax.tree.map(np.testing.assert_array_equal, started, result.networks)
    short = dataclasses.replace(config, steps=64)
    run, other = (fit(short, jax.random.key(1), start=start, progress=False) for start in (folder, None))
    assert run.summary["start"] == transfer.fingerprint(result.networks)
    assert run.summary["params_sha256"] != other.summary["params_sha256"]


def _sweep_wide():
    return [dataclasses.replace(KINDS["wide"], learning_rate=rate) for rate in (1e-3, 1e-2)]


def _sweep_population():
    agent = KINDS["population"].agent
    agents = [
        dataclasses.replace(agent, terms=TERMS.replace(rent=rent), wealth=wealth)
        for rent, wealth in [(0.0, 2), (0.5, 1)]
    ]
    return [dataclasses.replace(KINDS["population"], agent=agent) for agent in agents]


@pytest.mark.parametrize("configs", [_sweep_wide, _sweep_population])
def test_numbers_are_traced(configs):
    """Configurations that differ in numbers share a program, and end with other networks."""
    one, two = configs()
    assert one.settings.trainable == two.settings.trainable
    first = fit(one, KEY, progress=False)
    before = compiles()
    second = fit(two, KEY, progress=False)
    assert compiles() == before
    assert first.summary["params_sha256"] != second.summary["params_sha256"]


def test_no_market_loses_money(finished):
    config, result, _ = finished
    if config.agent == "monolith":
        assert "conservation_residual" not in result.metrics
    else:
        assert result.metrics["conservation_residual"].max() < 1e-5
        assert result.summary["auction"] in ("ccv", "bb")


# --- results in memory, read back, and in folders


def forms(finished):
    """The same run in memory, read back, and as its folder."""
    _, result, folder = finished
    return result, run_folder.read(folder), folder, str(folder)


@pytest.mark.slow
def test_every_form_of_a_result_is_a_policy(finished):
    config, result, _ = finished
    adapter = config.adapter
    obs, _ = adapter.reset(KEY, adapter.default_params)
    actions = [jaxmarket.as_policy(run, seed=1)(obs, KEY) for run in forms(finished)]
    np.testing.assert_array_equal(actions, [actions[0]] * 4)
    for wrong in (3, None, config, result.summary):
        with pytest.raises(ValueError, match=r"^source: expected a finished run"):
            jaxmarket.as_policy(wrong)


def test_every_form_of_a_result_has_the_same_outcome(finished):
    first, *others = (
        dataclasses.asdict(run)
        for form in forms(finished)
        for run in comparison.compare({"it": form, "other": dataclasses.replace(finished[1])}).runs[:1]
    )
    for other in others:
        np.testing.assert_equal(other | {"folder": None}, first | {"folder": None})
    assert first["folder"] is None and others[-1]["folder"] == finished[2]


def test_results_of_all_kinds_are_compared_in_one_call(tmp_path):
    kinds = ("society", "monolith", "population")
    society, monolith, population = (
        fit(KINDS[kind], KEY, tmp_path / kind if kind == "population" else None, progress=False) for kind in kinds
    )
    other = fit(KINDS["society"], jax.random.key(1), tmp_path / "saved", progress=False)
    found = comparison.compare([society, run_folder.read(tmp_path / "saved"), monolith, tmp_path / "population"])
    assert len(found.rows()) == 4 and {"agent", "seed"} <= set(found.differing)
    names = [run.name for run in found.runs]
    assert names[1::2] == ["saved", "population"]
    assert names[0].startswith("agent=society,") and names[2].startswith("agent=monolith,")
    np.testing.assert_array_equal(found.runs[3].returns, population.summary["return_seeds"])
    named = comparison.compare({"one": society, "two": tmp_path / "saved", "three": monolith})
    assert [run.name for run in named.runs] == ["one", "two", "three"]
    assert [row["folder"] for row in named.document()["runs"]] == [None, str(tmp_path / "saved"), None]
    alike = comparison.compare([society, dataclasses.replace(society)])
    assert [run.name for run in alike.runs] == ["run 1", "run 2"]
    assert [run.name for run in comparison.compare([society, other]).runs] == ["seed=0", "seed=1"]
    assert comparison.compare([society, other]).figure().axes
    for same in ([society, society], [run_folder.read(tmp_path / "saved"), tmp_path / "saved"]):
        with pytest.raises(ValueError, match="named twice"):
            comparison.compare(same)
