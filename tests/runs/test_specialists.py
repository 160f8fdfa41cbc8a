"""Who acts where, for agents whose parts were made to have one regime each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig
from jaxmarket.environments import Regimes
from jaxmarket.metrics import mutual_information
from jaxmarket.policies import UNITS
from jaxmarket.runs.specialists import acting_parts, decisions
from jaxmarket.training.experts import MixtureOfExperts, OptionCritic

ENV, KEY = Regimes(2, 1), jax.random.key(0)
SMALL = {"instances": 2, "horizon": 8, "minibatch": 16, "steps": 16, "hidden": (2,)}
AGENTS = {
    "society": {"primitives": "learned", "modules": 2},
    "mixture": {"agent": MixtureOfExperts(2)},
    "option-critic": {"agent": OptionCritic(2)},
}


def one_regime_each(agent, params):
    """Parameters with which part 1 acts in regime 0 and part 0 in regime 1."""
    network = {"society": "bids", "mixture": "gate", "option-critic": "gate"}[agent]
    torso = jnp.zeros((5, 2)).at[2, 0].set(1).at[3, 1].set(1)  # the regime
    if agent == "society":  # with a normalised layer
        kernel = jnp.array([[[0.0], [1.0], [0.0]], [[1.0], [0.0], [0.0]]])
        torso = jnp.stack([torso, torso])
    else:
        kernel = 50 * jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    layers = dict(params[network]["params"])
    layers |= {"torso": layers["torso"] | {"Affine_0": {"kernel": torso}}, "Affine_0": {"kernel": kernel}}
    made = params | {network: params[network] | {"params": layers}}
    if agent == "society":  # whose bids are 0 before the first revenue
        made["bids"] |= {UNITS: {"location": jnp.zeros(2), "scale": jnp.ones(2)}}
    if agent == "option-critic":  # an option ends in every state
        last = params["endings"]["params"]
        bias = last["Affine_0"]["kernel"].at[-1].set(50.0)
        made |= {"endings": {"params": last | {"Affine_0": {"kernel": bias}}}}
    return made


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_every_part_has_its_own_regime(agent):
    config = TrainConfig(ENV, **SMALL, **AGENTS[agent])
    trainable, hyper = config.settings.trainable, config.settings.hyperparameters.as_arrays()
    state = trainable.init(KEY, trainable.env.default_params, hyper)
    params = one_regime_each(agent, state.learner.params)
    keys = jax.random.split(KEY, (1, 3))
    player = trainable.player(greedy=False)
    counts = decisions(player, jax.tree.map(lambda x: x[None], params), keys, ENV.regime_of, (2, 2), 200)
    assert counts.sum() == 600 and counts[0, 0, 1] > 50 and counts[0, 1, 0] > 50
    assert counts[0, 0, 0] == counts[0, 1, 1] == 0
    assert mutual_information(counts[0]) > 0.8


@pytest.mark.slow
def test_the_mixture_draws_experts_as_often_as_its_gate_says():
    config = TrainConfig(ENV, **SMALL, **AGENTS["mixture"])
    policy = config.settings.trainable.learner.policy
    params = policy.init(KEY, jnp.zeros(4))
    params["gate"]["params"]["Affine_0"]["kernel"] = jnp.zeros((3, 2)).at[-1, 1].set(np.log(3))
    _, part = acting_parts(config.settings.trainable.player(greedy=False), params, KEY, 2000)
    assert abs(np.mean(part) - 0.75) < 0.05


def test_one_network_has_no_parts():
    trainable = TrainConfig(ENV, agent="monolith", **SMALL).settings.trainable
    with pytest.raises(ValueError, match=r"^player: a BidPolicy has no parts"):
        acting_parts(trainable.player(greedy=False), {}, KEY, 3)
