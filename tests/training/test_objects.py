"""Objects as settings: resolution, names in saved settings, and what a file may not do."""

import dataclasses
import functools
import inspect
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmarket
from jaxmarket import Mechanism, TrainConfig, fit
from jaxmarket.environments import FiniteMDP
from jaxmarket.learners import LEARNERS, PPO, Reinforce, Valuation, numeric
from jaxmarket.policies import BetaHead, KumaraswamyHead
from jaxmarket.runs import fitting, run_folder, sweeps
from jaxmarket.training import objects
from jaxmarket.training.config import accepts
from jaxmarket.training.monolith import Monolith
from jaxmarket.training.society import SocietyTraining

TINY = {"steps": 128, "instances": 4, "horizon": 8}
HERE = Path("folder")


@dataclasses.dataclass(frozen=True)
class LossAverse(Reinforce):
    """A learner with a numeric setting of its own."""

    aversion: float = numeric(2.0)

    def update(self, state, experience, hyper, update, progress):
        felt = jnp.where(experience.utility < 0, hyper.own["aversion"], 1) * experience.utility
        return super().update(state, experience.replace(utility=felt), hyper, update, progress)


def half_bid(outcome):
    return outcome.winning_bid / 2


half = Mechanism("half", price=half_bid, payout=half_bid)


@pytest.mark.slow
def test_numeric_settings_of_a_learner_share_one_program():
    """Sweeping over them compiles once, and gives what the flat setting gives."""
    before, found = fitting.compiles(), {}
    for entropy in (0.05, 0.2):
        config = TrainConfig("Bandit-v0", learner=PPO(entropy=entropy, minibatch=16), **TINY)
        found[entropy] = fit(config, jax.random.key(0), progress=False).summary["params_sha256"]
    assert fitting.compiles() - before == 1
    assert len(set(found.values())) == 2
    flat = fit(
        TrainConfig("Bandit-v0", learner="ppo", entropy=0.2, minibatch=16, **TINY), jax.random.key(0), progress=False
    )
    assert flat.summary["params_sha256"] == found[0.2]
    assert fitting.compiles() - before == 1
    assert PPO(entropy=0.1) != PPO(entropy=0.2)
    assert hash(PPO(entropy=0.1)) == hash(PPO(entropy=0.2))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"learner": PPO(entropy=0.1), "entropy": 0.2}, "entropy"),
        ({"learner": PPO(), "minibatch": 64}, "minibatch"),
        ({"bids": BetaHead(), "bid_high": 2.0}, "bid_high"),
        ({"learner": Reinforce(), "epochs": 2}, "epochs"),
        ({"learner": "valuation", "entropy": 0.1}, "entropy"),
        ({"learner": "reinforce", "epochs": 2}, "epochs"),
        ({"learner": PPO}, "learner"),
        ({"learner": PPO(entropy=-1.0)}, "entropy"),
        ({"learner": LossAverse(aversion=float("nan"))}, "learner.aversion"),
        ({"learner": "nowhere:Learner"}, "learner"),
        ({"bids": "sys:path"}, "bids"),
        ({"learner": Valuation(), "bids": KumaraswamyHead()}, "bids"),
    ],
)
def test_settings_that_do_not_fit_an_object_are_rejected(settings, field):
    with pytest.raises(ValueError, match=f"^{re.escape(field)}: "):
        TrainConfig("Bandit-v0", **settings)


def test_objects_and_aliases_resolve_to_the_same_settings():
    flat = TrainConfig("Bandit-v0", learner="ppo", entropy=0.3, bids="beta", bid_high=2.0, auction="bb").settings
    made = TrainConfig(
        "Bandit-v0",
        learner=PPO(entropy=0.3),
        bids=BetaHead(0, 2),
        auction=jaxmarket.MECHANISMS["bb"],
        agent=SocietyTraining,
    ).settings
    assert flat == dataclasses.replace(made, agent=flat.agent)
    assert flat.values == made.values
    assert None not in flat.values.values()
    monolith = TrainConfig("Bandit-v0", agent=Monolith)
    assert monolith.settings == TrainConfig("Bandit-v0", agent="monolith").settings


def test_replacing_a_setting_derives_the_others_again():
    config = TrainConfig("Chain-v0", learner="ppo")
    valuation = dataclasses.replace(config, learner="valuation")
    assert valuation.settings == TrainConfig("Chain-v0", learner="valuation").settings
    assert (config.settings.values["bids"], valuation.settings.values["bids"]) == ("kumaraswamy", "value")
    deep = dataclasses.replace(valuation, hidden=(8,))
    assert [each.settings.values["learning_rate"] for each in (valuation, deep)] == [3e-2, 1e-3]
    assert [each.settings.values["epochs"] for each in (valuation, deep)] == [1, 2]


@pytest.mark.parametrize(
    ("agent", "learner", "epochs"),
    [("society", "ppo", 1), ("society", "valuation", 2), ("monolith", "ppo", 4), ("monolith", "valuation", 2)],
)
def test_passes_over_a_rollout(agent, learner, epochs):
    assert TrainConfig("CartPole-v1", agent=agent, learner=learner).settings.values["epochs"] == epochs


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_documented_defaults_are_the_effective_ones(learner):
    text = " ".join(inspect.getdoc(TrainConfig).split())
    values = TrainConfig("CartPole-v1", learner=learner).settings.values
    for field in ("steps", "instances", "horizon", "minibatch", "clones", "trace_decay", "exploration", "dropout"):
        about = re.search(rf" {field}: (.*?) \w+: ", text).group(1)
        numbers = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*(?:e-\d+)?", about)}
        assert values[field] in numbers, field


def test_saved_settings_name_objects_and_restore_them():
    env = jaxmarket.environments.Chain()
    config = TrainConfig("Bandit-v0", learner=LossAverse(aversion=3.0, entropy=0.2), auction=half, bids=BetaHead(0, 2))
    saved = run_folder.config_to_dict(config)
    assert saved["learner"]["object"] == f"{__name__}:LossAverse"
    assert saved["learner"]["fields"]["aversion"] == 3.0
    assert (saved["entropy"], saved["bids"], saved["bid_high"]) == (0.2, "beta", 2.0)
    assert saved["auction"]["object"] == f"{__name__}:half"
    restored = run_folder.config_from_dict(HERE, saved)
    assert restored.settings == config.settings
    assert run_folder.config_to_dict(restored) == saved
    assert env is not None


def unnamed(outcome):
    return outcome.winning_bid


@pytest.mark.parametrize(
    ("field", "entry"),
    [
        ("auction", {"object": "os:system"}),
        ("auction", {"object": "antigravity:anything"}),
        ("learner", {"object": "jaxmarket.learners.ppo:PPO"}),
        ("learner", {"object": "subprocess:Popen", "fields": {"args": "true"}}),
        ("learner", {"object": "jaxmarket.policies:BetaHead", "fields": {}}),
        ("learner", {"object": "jaxmarket.learners.ppo:PPO", "fields": {"colour": "red"}}),
        ("learner", "jaxmarket.learners.ppo:PPO"),
        ("bids", {"object": "jaxmarket.policies:BetaHead.__init__"}),
        ("env", {"object": "nowhere:Environment", "sha256": "0"}),
        ("agent", {"object": "jaxmarket.learners.ppo:PPO"}),
        ("learner", ["ppo"]),
        (
            "auction",
            {
                "object": "jaxmarket.auctions:Mechanism",
                "fields": {"name": "a", "price": {"object": "os:system"}, "payout": {"object": "os:system"}},
            },
        ),
    ],
)
def test_a_file_imports_and_calls_nothing(field, entry):
    saved = run_folder.config_to_dict(TrainConfig("Bandit-v0")) | {field: entry}
    modules = set(sys.modules)
    with pytest.raises(ValueError, match=rf"{field}") as refused:
        run_folder.config_from_dict(HERE, saved)
    assert "\n" not in str(refused.value)
    assert "antigravity" not in set(sys.modules) - modules


def test_an_object_without_a_global_name_is_passed_back():
    own = Mechanism("own", price=lambda o: o.winning_bid, payout=lambda o: o.winning_bid)
    config = TrainConfig("Bandit-v0", auction=own)
    saved = run_folder.config_to_dict(config)
    with pytest.raises(ValueError, match=r"^folder: auction.*--import .*objects=\{'auction': \.\.\.\}"):
        run_folder.config_from_dict(HERE, saved)
    assert run_folder.config_from_dict(HERE, saved, {"auction": own}).settings == config.settings
    assert objects.name_of(half) == f"{__name__}:half"


class Plain(FiniteMDP):
    """Not a dataclass."""


def test_a_folder_that_cannot_be_read_back_says_why(tmp_path):
    """The error names the object, the reason, and the argument with which the folder can be read."""
    env = Plain(P=np.ones((1, 2, 1)), R=np.array([[0.0, 1.0]]), gamma=0.5, start=np.ones(1), horizon=4)
    fit(TrainConfig(env, **TINY, minibatch=16), jax.random.key(0), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"Plain, which is of a class that is no frozen dataclass.*objects=\{'env'"):
        run_folder.read(tmp_path / "run")
    assert run_folder.read(tmp_path / "run", {"env": env}).config.env is env
    script = {"object": "__main__:env"}
    with pytest.raises(objects.MissingObjectError, match=r"__main__:env, which was defined in a script"):
        objects.restore("env", script, functools.partial(accepts, "env"), {}, {})


@pytest.mark.slow  # the tests above share a program, save and restore
def test_learners_of_ones_own_are_swept_saved_and_read(tmp_path):
    learners = [LossAverse(aversion=1.0, minibatch=16), LossAverse(aversion=3.0, minibatch=16)]
    before = fitting.compiles()
    found = sweeps.sweep("Bandit-v0", {"learner": learners}, tmp_path, progress=False, **TINY)
    assert fitting.compiles() - before == 1
    assert sorted(found.settings) == [f"learner=LossAverse(minibatch=16,aversion={a})" for a in (1.0, 3.0)]
    run = run_folder.read(tmp_path / sorted(found.settings)[1])
    assert run.config.learner == learners[1]
    assert np.isfinite(jax.tree.leaves(run.policy().params)[0]).all()


@pytest.mark.parametrize(
    ("part", "name"),
    [("representation", "jaxmarket.learners.ppo:PPO"), ("terms", "jaxmarket.deep_market.representations:BidTables")],
)
def test_a_file_cannot_put_other_objects_into_an_agent(part, name):
    """Only the kinds that `PopulationAgents.parts` declares are constructed."""
    fields = {part: {"object": name, "fields": {"states": 1, "actions": 1}}}
    entry = {"object": "jaxmarket.training.population:PopulationAgents", "fields": fields}
    with pytest.raises(objects.MissingObjectError, match=rf"^agent\.{part}: the run used the object {name}, which"):
        objects.restore("agent", entry, functools.partial(accepts, "agent"), {}, {})
