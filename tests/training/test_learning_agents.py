"""Agents of a population that learn while they live: what they learn from, and whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import TrainConfig, fit
from jaxmarket.auctions import VICKREY
from jaxmarket.deep_market import DeepMarket, Purchases, Terms, experience, init, money, run
from jaxmarket.environments import make
from jaxmarket.training.learning_agents import LearningNetworks
from jaxmarket.training.population import PopulationAgents
from jaxmarket.types import Outcome

STEPS, INSTANCES, AGENTS = 7, 3, 4
NETWORKS = LearningNetworks(actions=2, hidden=(4,))


def purchases_of(seed, owned=0.8):
    """Random purchases of a round, most of which end in a sale; a fifth of the steps end an episode."""
    rng = np.random.default_rng(seed)
    shape = (STEPS, INSTANCES)
    bids = rng.random((*shape, AGENTS)).astype(np.float32)
    winner = np.where(rng.random(shape) < 0.1, -1, bids.argmax(-1))
    end = rng.random(shape)
    ordered = np.sort(bids, -1)
    sold = winner >= 0
    return Purchases(
        obs=jnp.asarray(rng.random((*shape, 3)), jnp.float32),
        outcome=Outcome(
            winner=jnp.asarray(winner, jnp.int32),
            winning_bid=jnp.asarray(np.where(sold, ordered[..., -1], 0)),
            highest_other_bid=jnp.asarray(np.where(sold, ordered[..., -2], 0)),
            bids=jnp.asarray(bids),
            eligible=jnp.ones(bids.shape, bool),
        ),
        action=jnp.asarray(rng.integers(2, size=shape), jnp.int32),
        price=jnp.asarray(np.where(sold, ordered[..., -2], 0)),
        payout=jnp.asarray(np.where(sold, ordered[..., -2] + 0.1, 0), jnp.float32),
        income=jnp.asarray(rng.normal(size=shape), jnp.float32),
        kept=jnp.asarray(rng.random(shape) < owned),
        terminated=jnp.asarray(end < 0.1),
        truncated=jnp.asarray((end > 0.1) & (end < 0.2)),
    )


def profits(purchases, discount, trace_decay):
    """Each purchase whose proceeds are known, in plain Python: {(t, b): (agent, profit)}."""
    p = jax.tree.map(np.asarray, purchases)
    found = {}
    for b in range(INSTANCES):
        revenue = {}
        for t in reversed(range(STEPS)):
            if not p.terminated[t, b] and (p.truncated[t, b] or t == STEPS - 1):
                continue  # not known
            value = p.income[t, b]
            if not p.terminated[t, b] and p.kept[t, b]:
                proceeds, following = p.payout[t + 1, b], revenue.get(t + 1)
                if following is not None and p.outcome.winner[t + 1, b] >= 0:
                    proceeds = (1 - trace_decay) * proceeds + trace_decay * following
                value += discount * proceeds
            revenue[t] = value
            if (winner := int(p.outcome.winner[t, b])) >= 0:
                found[t, b] = winner, value - p.price[t, b]
    return found


@pytest.mark.parametrize("trace_decay", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_utilities_are_the_agents_own_profits(seed, trace_decay):
    purchases = purchases_of(seed)
    rows = experience(purchases, 0.9, trace_decay, AGENTS)
    utility, won = np.zeros((AGENTS, STEPS * INSTANCES)), np.zeros((AGENTS, STEPS * INSTANCES), bool)
    for (t, b), (agent, profit) in profits(purchases, 0.9, trace_decay).items():
        utility[agent, t * INSTANCES + b], won[agent, t * INSTANCES + b] = profit, True
    assert won.sum() > 5
    np.testing.assert_array_equal(rows.won[:, 0], won)
    np.testing.assert_allclose(rows.utility[:, 0], utility, atol=1e-6)


def test_an_agent_learns_from_its_own_purchases_only():
    """What others earned changes nothing, to the bit; agents without a purchase stay as they are."""
    purchases = purchases_of(0)
    winner = purchases.outcome.winner
    purchases = purchases.replace(outcome=purchases.outcome.replace(winner=jnp.where(winner == 3, 2, winner)))
    agents = jax.vmap(NETWORKS.init, (0, None))(jax.random.split(jax.random.key(0), AGENTS), purchases.obs[0, 0])

    def moved(first, second, agent):
        pairs = zip(*map(jax.tree.leaves, (first, second)), strict=True)
        return any((np.asarray(a[agent]) != np.asarray(b[agent])).any() for a, b in pairs)

    others = purchases.outcome.winner != 0
    # With λ, the proceeds of a state depend on what its buyer earns, as if both had a contract.
    alone = dataclasses.replace(NETWORKS, trace_decay=0.0)
    learn = jax.jit(alone.learn)
    after = learn(agents, purchases)
    other = learn(agents, purchases.replace(income=jnp.where(others, 3 * purchases.income, purchases.income)))
    assert not moved(after.params, other.params, 0)
    assert moved(after.params, other.params, 1)
    assert moved(agents.params, after.params, 0)
    assert not moved(agents.params, after.params, 3)


def test_children_inherit_weights_and_new_optimizers():
    obs = jnp.ones(3)
    parent = NETWORKS.init(jax.random.key(0), obs)
    parent = parent.replace(bids=parent.bids.replace(opt=jax.tree.map(lambda x: x + 1, parent.bids.opt)))
    child = NETWORKS.mutate(jax.random.key(1), parent, parent)
    change = jax.tree.map(lambda a, b: np.asarray(a - b), child.params, parent.params)
    noise = np.concatenate([x.ravel() for part in ("bids", "actions") for x in jax.tree.leaves(change[part]["params"])])
    assert 0.5 * NETWORKS.mutation < noise.std() < 2 * NETWORKS.mutation
    assert all((x == 0).all() for x in jax.tree.leaves(change["bids"]["units"]))
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(child.bids.opt))
    with_rate_0 = dataclasses.replace(NETWORKS, mutation=0.0).mutate(jax.random.key(1), parent, parent)
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (with_rate_0.params, parent.params)), strict=True))


@pytest.mark.slow
def test_money_is_conserved_while_agents_learn():
    env, env_params = make("CartPole-v1")
    market = DeepMarket(env, NETWORKS, capacity=6, instances=4, mechanism=VICKREY)
    terms = Terms(wealth_tax=1e-3, exploration=0.2, birth_rate=0.5, replace_poorest=True)
    start = init(market, jax.random.key(0), env_params)
    after, rounds = jax.jit(run, static_argnums=0, static_argnames=("rounds", "period", "max_births"))(
        market, jax.random.key(1), start, env_params, terms, rounds=6, period=16, max_births=2
    )
    residual = rounds.residual(money(start))
    assert float(np.abs(residual)) < 1e-5
    assert int(after.population.count) > 6
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), after.population.agents.params, start.population.agents.params
    )
    assert all(jax.tree.leaves(moved))


def config_of(**options):
    agent = PopulationAgents(LearningNetworks(3, hidden=(8,)), capacity=8, terms=Terms(exploration=0.2))
    return TrainConfig("Acrobot-v1", agent=agent, auction="vickrey", instances=4, horizon=16, seeds=2, **options)


@pytest.mark.full
def test_a_run_that_was_cut_short_ends_with_the_same_bits(tmp_path):
    config = config_of(steps=512, log_every=2)
    whole = fit(config, jax.random.key(0), tmp_path / "whole", progress=False)

    def stop(record):
        if record.chunk == 1 and not record.earlier:
            raise KeyboardInterrupt

    fit(config, jax.random.key(0), tmp_path / "cut", loggers=[stop], checkpoint_every=1, progress=False)
    again = fit(config, jax.random.key(0), tmp_path / "cut", resume=True, progress=False)
    assert again.summary["params_sha256"] == whole.summary["params_sha256"]


@pytest.mark.full
def test_a_population_that_learns_solves_what_mutation_does_not():
    """Blocks world after 20,000 steps, in which random play solves about a third of the instances."""
    returns = {}
    for rate in (1e-3, 0.0):
        agent = PopulationAgents(
            LearningNetworks(6, learning_rate=rate, action_learning_rate=rate),
            capacity=32,
            terms=Terms(exploration=0.1, wealth_tax=1e-3, birth_rate=0.3, inheritance=0.1, replace_poorest=True),
        )
        config = TrainConfig("BlocksWorld3-v0", agent=agent, auction="vickrey", horizon=64, steps=20_480, seeds=2)
        returns[rate] = fit(config, jax.random.key(0), progress=False).summary["return_seeds"]
    assert min(returns[1e-3]) > 0.5 > max(returns[0.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actions", 0),
        ("hidden", (0,)),
        ("learning_rate", -1.0),
        ("action_learning_rate", np.nan),
        ("action_entropy", "high"),
        ("epochs", 1.5),
        ("discount", 1.1),
        ("trace_decay", -0.1),
        ("mutation", np.inf),
    ],
)
def test_fields_that_are_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        LearningNetworks(**({"actions": 2} | {field: value}))
