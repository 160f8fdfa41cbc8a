"""PPO on extreme bids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.learners import PPO, Experience, Hyperparameters
from jaxmarket.learners.protocol import in_blocks
from jaxmarket.policies import BidPolicy, KumaraswamyHead, ValueNetwork, linear


def test_a_ratio_of_densities_that_overflows_leaves_the_parameters_finite():
    """The second bid lies in the tail of a peaked density, which the step for the first bid makes wide."""
    policy = BidPolicy(linear(), KumaraswamyHead(0.0, 1.0))
    learner = PPO(policy, ValueNetwork(linear(1)), minibatch=1)
    state = learner.init(jax.random.key(0), jnp.ones(1))
    peaked = jax.tree.map(lambda x: x.at[0].set(jnp.array([2.0, 300.0])), state.params)
    bids = jnp.array([[0.01, 0.01]])
    ratio = policy.apply(state.params, jnp.ones(1)).log_prob(bids) - policy.apply(peaked, jnp.ones(1)).log_prob(bids)
    assert float(ratio.min()) > 100, "otherwise nothing overflows"
    experience = Experience(
        obs=jnp.ones((2, 1)),
        bid=bids,
        eligible=jnp.ones((1, 2), bool),
        won=jnp.ones((1, 2), bool),
        price=jnp.zeros((1, 2)),
        utility=jnp.array([[9.0, -9.0]]),
    )
    hyper = Hyperparameters(learning_rate=300.0).as_arrays()
    after, _ = jax.jit(learner.update)(state.replace(params=peaked), experience, hyper, jnp.int32(0), jnp.float32(0))
    for leaf in jax.tree.leaves(after.params):
        assert np.isfinite(leaf).all()


def test_blocks_of_auctions_give_what_all_auctions_give_at_once():
    rng = np.random.default_rng(0)
    obs, batch = rng.normal(size=(12, 3, 3)), (rng.normal(size=12), rng.normal(size=(2, 12)))
    sizes = []

    def outputs(obs, batch):
        sizes.append(obs.shape[0])
        return obs.sum((1, 2)) * batch[0], batch[1] + batch[0]

    whole, parts = (in_blocks(outputs, jnp.asarray(obs), batch, 4, largest) for largest in (obs.size, obs.size - 1))
    assert sizes == [12, 4]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), whole, parts)
