"""What societies learn with no option given: on finite processes against the exact optimum, and on tasks of others."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.scoreboard import COSTLY_CHAIN, MEMORY_CHAIN
from jaxmarket import TrainConfig, fit
from jaxmarket.environments import FiniteMDP
from jaxmarket.evaluation import evaluate


def random_process(number):
    """A finite process with 4 to 12 states, discounts up to .99, and rewards of size 1e-3 to 1e3 of any sign."""
    rng = np.random.default_rng(number)
    states, actions = int(rng.integers(4, 13)), int(rng.integers(2, 5))
    gamma, scale = float(rng.choice([0.5, 0.9, 0.95, 0.99])), 10.0 ** rng.uniform(-3, 3)
    transitions = rng.dirichlet(np.full(states, 0.3), (states, actions))
    rewards = (rng.normal(size=(states, actions)) + rng.choice([-2, 0, 2])) * scale
    return FiniteMDP(transitions, rewards, gamma, np.full(states, 1 / states), 100)


def value_of(env, choices):
    """The exact discounted return of a deterministic policy from the first state on, by policy evaluation."""
    every, gamma = np.arange(env.num_states), env.gamma
    moves, rewards = env.transitions[every, choices], env.rewards[every, choices]
    return env.start @ np.linalg.solve(np.eye(env.num_states) - gamma * moves, rewards)


def value_lost(env, bids):
    """Value that the highest bids lose, relative to the distance of the optimum from the worst constant action."""
    best = value_of(env, env.optimal_q().argmax(1))
    worst = min(value_of(env, np.full(env.num_states, action)) for action in range(env.num_actions))
    return (best - value_of(env, np.asarray(bids).argmax(1))) / (best - worst)


def test_value_lost_by_hand():
    env = FiniteMDP([[[1.0]] * 3], [[1.0, 3.0, 2.0]], 0.5, [1.0])
    assert value_of(env, np.array([2])) == pytest.approx(4)
    assert [value_lost(env, [bids]) for bids in ([0, 1, 0], [1, 0, 0], [0, 0, 1])] == pytest.approx([0, 1, 0.5])


@pytest.mark.slow
def test_bids_approach_q_and_choices_the_optimum():
    """The claim below, for one process."""
    test_claim_bids_are_q_and_choices_are_optimal(0)


@pytest.mark.full
@pytest.mark.parametrize("number", range(20))
def test_claim_bids_are_q_and_choices_are_optimal(number):
    env = random_process(number)
    result = fit(TrainConfig(env, seeds=2), jax.random.key(0), progress=False)
    print(number, env.gamma, result.summary["bid_error_relative"], [value_lost(env, bids) for bids in result.bids])
    assert result.summary["bid_error_relative"] <= 0.05
    assert max(value_lost(env, bids) for bids in result.bids) <= 0.02


@pytest.mark.full
@pytest.mark.parametrize("env", ["Bandit-v0", "Chain-v0", "Duality-v0"])
def test_claim_bids_are_truthful_on_the_papers_tasks(env):
    result = fit(TrainConfig(env, seeds=8), jax.random.key(0), progress=False)
    assert result.summary["bid_error"] <= 0.05


@pytest.mark.full
@pytest.mark.parametrize(
    ("env", "statistic", "target"),
    [
        ("CartPole-v1", min, 475),
        ("Acrobot-v1", np.median, -90),
        ("MountainCar-v0", np.median, -130),
        ("Catch-bsuite", np.median, 0.95),
        ("DiscountingChain-bsuite", np.median, 1.05),
        ("FourRooms-misc", np.median, 0.95),
        ("DeepSea-bsuite", np.median, 0.9),
    ],
)
def test_claim_standard_tasks_are_solved(env, statistic, target):
    result = fit(TrainConfig(env, seeds=8), jax.random.key(0), progress=False)
    print(env, result.summary["return_seeds"])
    assert statistic(result.summary["return_seeds"]) >= target


@pytest.mark.full
def test_claim_umbrella_chain_is_solved():
    """A perfect policy's return has a standard deviation of 3 per episode: 2,000 episodes for each seed."""
    result = fit(TrainConfig("UmbrellaChain-bsuite", seeds=8), jax.random.key(0), progress=False)
    settings = result.config.settings
    society = dataclasses.replace(settings.society, greedy=True)
    play = jax.jit(
        jax.vmap(lambda params, key: evaluate(society, params, key, settings.adapter.default_params, 2000).returns)
    )
    returns = np.asarray(play(result.networks["policy"], jax.random.split(jax.random.key(1), 8)))
    print(returns.mean(1))
    assert returns.mean() >= 0.9


@pytest.mark.full
def test_claim_a_goal_is_reached_though_every_step_costs():
    result = fit(TrainConfig(COSTLY_CHAIN, seeds=8), jax.random.key(0), progress=False)
    assert result.summary["return_seeds"] == pytest.approx([-5] * 8)


@pytest.mark.full
def test_claim_one_bit_of_memory_is_enough_for_memory_chain():
    result = fit(TrainConfig(MEMORY_CHAIN, seeds=8), jax.random.key(0), progress=False)
    print(result.summary["return_seeds"])
    assert np.median(result.summary["return_seeds"]) >= 0.8


@pytest.mark.full
@pytest.mark.parametrize(("env", "target"), [("CartPole-v1", 475), ("Acrobot-v1", -100)])
def test_claim_ppo_societies_solve_standard_tasks(env, target):
    result = fit(TrainConfig(env, learner="ppo", seeds=8), jax.random.key(0), progress=False)
    print(env, result.summary["return_seeds"])
    assert (np.array(result.summary["return_seeds"]) >= target).sum() >= 6
