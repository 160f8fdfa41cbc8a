"""The subjects of the laws: public pure functions with example arguments, and static objects with a change.

A new public function of the modules in `MODULES` gets a `Case` here, or a line in `EXCEPTIONS` that says why not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import (
    MECHANISMS,
    BidPolicy,
    MarketPolicy,
    Mechanism,
    Rules,
    Society,
    accounts,
    auctions,
    collectives,
    deep_market,
    evaluation,
    learners,
    metrics,
    networks,
    rollouts,
    settlement,
    society,
    wide_market,
)
from jaxmarket.environments import FiniteMDP, Multiplexer, Regimes, TMaze, TrainingEnvironment, Vocabulary, Woods1
from jaxmarket.environments import make as make_env
from jaxmarket.environments.blocks import BlocksWorld
from jaxmarket.environments.memory import Memory
from jaxmarket.environments.supply_chain import SupplyChain
from jaxmarket.environments.tabular import Chain
from jaxmarket.environments.targets import Targets
from jaxmarket.learners import ppo, protocol
from jaxmarket.networks import routing
from jaxmarket.policies import BetaHead, KumaraswamyHead, ValueHead, ValueNetwork, cnn, linear, mlp
from jaxmarket.types import real
from jaxmarket.wide_market import welfare

MODULES = (
    accounts,
    auctions,
    collectives,
    deep_market,
    evaluation,
    learners,
    metrics,
    networks,
    ppo,
    protocol,
    rollouts,
    routing,
    settlement,
    society,
    welfare,
    wide_market,
)

EXCEPTIONS = {
    "accounts.check_flows": "raises in programs compiled by `checked`: tests/core/test_checking.py",
    "auctions.mechanism": "looks up a name",
    "collectives.pmax": "needs a mapped axis: tests/runs/test_devices.py",
    "collectives.local_slice": "needs a mapped axis: tests/runs/test_devices.py",
    "collectives.per_shard": "needs a mapped axis: tests/runs/test_devices.py",
    "collectives.psum": "needs a mapped axis: tests/runs/test_devices.py",
    "deep_market.random_population": "called by `init`",
    "evaluation.trace_episode": "a host loop over `step`",
    "metrics.env_steps": "NumPy, in 64-bit integers",
    "networks.from_function": "traces a function, and builds a market from it: tests/networks/test_partition.py",
    "networks.from_linen": "see from_function",
    "networks.from_nnx": "see from_function",
    "networks.from_mlp": "builds a market from parameters on the host",
    "routing.train_routing": "a loop over solutions of a graph: tests/networks/test_routing.py",
    "protocol.adam": "builds the state that `descend` carries",
    "learners.numeric": "declares a field of a learner",
    "protocol.is_large": "reads shapes only",
    "protocol.modules_at_once": "reads shapes only",
    "protocol.numeric_settings": "splits a learner, a static object",
    "protocol.shard": "changes a learner, a static object",
    "protocol.static_part": "splits a learner, a static object",
    "wide_market.per_agent": "turns one function into another",
    "wide_market.init": "checks values on the host",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A pure function, called as ``call(static, *arguments)``.

    ``static`` makes the static argument anew, equal by value; ``arguments`` makes the others from a seed.
    """

    call: Callable[..., Any]
    arguments: Callable[[np.random.Generator, Any], tuple]
    static: Callable[[], Any] = lambda: None
    approximate: float = 1e-5  # relative and absolute difference between two ways to compile it


def plain(function: Callable[..., Any], arguments: Callable[[np.random.Generator], tuple], **options: Any) -> Case:
    """Of a function without static arguments."""
    return Case(lambda _, *args: function(*args), lambda rng, _: arguments(rng), **options)


def key(rng: np.random.Generator) -> jax.Array:
    return jax.random.key(int(rng.integers(1000)))


def small_society(**changes: Any) -> Society:
    settings = {"env": Chain(), "policy": BidPolicy(linear(), KumaraswamyHead()), "clones": 2} | changes
    return Society(**settings)


RULES = Rules(exploration=0.3, reserve=0.1, dropout=0.2)


@functools.partial(jax.jit, static_argnums=0)
def opened(market: Society, key: jax.Array) -> tuple:
    """Parameters, the state of a market, the draws of a step, and some rows."""
    keys, env_params = jax.random.split(key, 4), market.env.default_params
    params = market.init(keys[0])
    state, _ = society.reset(market, keys[1], env_params, RULES)
    _, rows = rollouts.rollout(market, keys[3], params, state, env_params, 6, RULES)
    return params, state, society.draw(market, keys[2]), rows


def of_society(call: Callable[..., Any], *names: str) -> Case:
    """``call(society, env_params, *those of key, params, state, draws, rows)``."""

    def arguments(rng: np.random.Generator, market: Society) -> tuple:
        made = dict(zip(("params", "state", "draws", "rows"), opened(market, key(rng)), strict=True), key=key(rng))
        return tuple(made[name] for name in names)

    return Case(lambda s, *args: call(s, s.env.default_params, *args), arguments, small_society)


def without_market(call: Callable[..., Any]) -> Case:
    """``call(env, env_params, running, key)``, with an environment that was just reset."""

    def started(market: Society, env_params: Any, key: jax.Array) -> Any:
        key_start, key = jax.random.split(key)
        return call(market.env, env_params, rollouts.start(market.env, key_start, env_params), key)

    return of_society(started, "key")


def deep() -> deep_market.DeepMarket:
    return deep_market.DeepMarket(Chain(), deep_market.BidTables(6, 2), capacity=4, instances=2)


TERMS = deep_market.Terms(rent=0.01, compute_tax=0.001, exploration=0.1)


@functools.partial(jax.jit, static_argnums=0)
def founded(market: deep_market.DeepMarket, key: jax.Array) -> deep_market.DeepMarketState:
    return deep_market.init(market, key, market.env.default_params, num_agents=3)


def of_deep_market(call: Callable[..., Any]) -> Case:
    """``call(market, env_params, key, state)``."""
    return Case(
        lambda m, *args: call(m, m.env.default_params, *args),
        lambda rng, m: (key(rng), founded(m, key(rng))),
        deep,
    )


def quadratic(rng: np.random.Generator) -> wide_market.Quadratic:
    """Three agents, two goods."""
    return wide_market.Quadratic(rng.uniform(1, 2, (3, 2)), rng.uniform(1, 2, (3, 2)))


def wide() -> wide_market.WideMarket:
    return wide_market.WideMarket(_valuation, PRODUCTION, wide_market.Tatonnement())


def _valuation(agent: Any, world: Any) -> Any:
    return agent


PRODUCTION = wide_market.per_agent(lambda agent, bundle: bundle * 0.5, lambda agent, bundle, left: bundle.sum())


def an_state(rng: np.random.Generator) -> wide_market.WideMarketState:
    return wide_market.init(quadratic(rng), rng.uniform(0.5, 1, (3, 2)), 5.0)


def bids(rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-1, 0, 0.25, 0.5, 1, np.nan, np.inf], 5)  # ties are common


def sold(rng: np.random.Generator) -> auctions.Outcome:
    return auctions.award(jnp.asarray(bids(rng)), jnp.int32(rng.integers(-1, 5)), jnp.asarray(rng.random(5) < 0.7))


def routed(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of three agents in two goods, outputs and prices."""
    return rng.dirichlet(np.ones(3), (3, 2)).transpose(0, 2, 1), money(rng, 3, 2), money(rng, 3, 2)


def money(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def rows_of(rng: np.random.Generator) -> Any:
    return opened(small_society(), key(rng))[3]


def purchases_of(rng: np.random.Generator) -> deep_market.Purchases:
    """Of four steps of two instances with the bids of three agents."""
    outcome = jax.vmap(jax.vmap(auctions.clear))(jnp.asarray(rng.random((4, 2, 3)), real()))
    price, ends = outcome.highest_other_bid, rng.random((4, 2))
    return deep_market.Purchases(
        obs=rng.random((4, 2, 5)),
        outcome=outcome,
        action=rng.integers(0, 2, (4, 2)),
        price=price,
        payout=price,
        income=rng.random((4, 2)),
        kept=rng.random((4, 2)) < 0.8,
        terminated=ends < 0.2,
        truncated=ends > 0.8,
    )


def a_sale(rng: np.random.Generator) -> tuple:
    row = jax.tree.map(lambda x: x[3], rows_of(rng))
    return row.accounts, row


def wide_rounds(rng: np.random.Generator) -> tuple:
    state = an_state(rng)
    return state.wealth, _run_wide(key(rng), state)


@jax.jit
def _run_wide(key: jax.Array, state: wide_market.WideMarketState) -> tuple:
    closing, rounds = wide_market.run(wide(), key, state, rounds=2, income=0.1, rent=0.1)
    return closing.wealth, rounds.flows


def minibatch_step(carry: jax.Array, obs: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
    return carry + obs.sum() * batch.sum(), batch.sum()


def _descend(params: jax.Array, gradient: jax.Array) -> Any:
    return protocol.descend(params, protocol.adam(params), gradient, 0.1)


CASES = {
    "auctions.pick": plain(auctions.pick, lambda rng: (rng.random(), rng.random(5) < 0.5), approximate=0),
    "auctions.choose": plain(
        auctions.choose, lambda rng: (bids(rng), rng.random(), rng.random(5) < 0.7), approximate=0
    ),
    "auctions.award": plain(
        auctions.award, lambda rng: (bids(rng), rng.integers(-1, 5), rng.random(5) < 0.7, 0.25), approximate=0
    ),
    "auctions.clear": plain(
        lambda bids, key, eligible: auctions.clear(bids, key, eligible, reserve=0.1),
        lambda rng: (bids(rng), key(rng), rng.random(5) < 0.7),
        approximate=0,
    ),
    "settlement.flows": plain(settlement.flows, lambda rng: (rows_of(rng),)),
    "settlement.per_bidder": Case(
        lambda bidders, amount, bidder: settlement.per_bidder(amount, bidder, bidders),
        lambda rng, bidders: (money(rng, 6), rng.integers(-1, bidders, 6)),
        lambda: 4,
    ),
    "settlement.proceeds": Case(
        lambda limits, rows: settlement.proceeds(rows, limits),
        lambda rng, _: (rows_of(rng),),
        lambda: "terminal",
    ),
    "settlement.lambda_returns": plain(
        lambda *rows: settlement.lambda_returns(rows[0], discount=rows[1], value=rows[2], trace_decay=rows[3]),
        lambda rng: (money(rng, 6), rng.random(6), money(rng, 6), rng.integers(0, 2, 6) * 0.5),
    ),
    "settlement.settle": plain(
        lambda rows, discount, decay: (
            settlement.settle(rows, discount),
            settlement.settle(rows, discount, trace_decay=decay),
        ),
        lambda rng: (rows_of(rng), 0.9, 0.5),
    ),
    "accounts.pay_sale": plain(
        lambda state, row: accounts.pay_sale(
            state, buyer=row.outcome.winner, seller=row.owner, price=row.price, payout=row.payout, reward=row.reward
        ),
        a_sale,
    ),
    "accounts.withdraw": plain(
        accounts.withdraw, lambda rng: (1 + rng.random(4), rng.integers(0, 4, 3), rng.random(3) / 3)
    ),
    "society.draw": of_society(lambda s, _, key: society.draw(s, key, (3,)), "key"),
    "society.auction": of_society(
        lambda s, _, draws, params, state: society.auction(s, draws, params, state.obs, state.active, RULES),
        "draws",
        "params",
        "state",
    ),
    "society.reset": of_society(lambda s, env, key: society.reset(s, key, env, RULES), "key"),
    "society.step": of_society(
        lambda s, env, key, params, state: society.step(s, key, params, state, env, RULES),
        "key",
        "params",
        "state",
    ),
    "society.step_with": of_society(
        lambda s, env, draws, params, state: society.step_with(s, draws, params, state, state, env, RULES),
        "draws",
        "params",
        "state",
    ),
    "society.advance": of_society(
        lambda s, env, draws, params, state: society.advance(s, draws, params, state, env, RULES),
        "draws",
        "params",
        "state",
    ),
    "rollouts.rollout": of_society(
        lambda s, env, key, params, state: rollouts.rollout(s, key, params, state, env, 5, RULES),
        "key",
        "params",
        "state",
    ),
    "rollouts.fresh_rollout": of_society(
        lambda s, env, key, params: rollouts.fresh_rollout(s, key, params, env, 5, RULES), "key", "params"
    ),
    "rollouts.cut_rows": Case(
        lambda limit, ended, cut: rollouts.cut_rows(ended, cut, limit),
        lambda rng, _: (rng.random(12) < 0.2, np.arange(12) % 5 == 4),
        lambda: 5,
    ),
    "rollouts.persistent": plain(
        rollouts.persistent, lambda rng: (rng.random((12, 2)), jax.random.key(0), rng.random())
    ),
    "rollouts.start": without_market(lambda env, params, running, _: running),
    "rollouts.rollout_policy": without_market(
        lambda env, params, running, key: rollouts.rollout_policy(
            env, lambda draw, _: (draw, draw), key, running, params, jnp.array([1, 0, 1, 1, 1, 1, 1, 1], jnp.int32)
        )
    ),
    "rollouts.advance": without_market(
        lambda env, params, running, key: rollouts.advance(
            running, (), env.step(key, running.env_state, jnp.int32(1), params), running
        )
    ),
    "evaluation.evaluate": of_society(
        lambda s, env, key, params: evaluation.evaluate(s, params, key, env, 2, 30),
        "key",
        "params",
    ),
    "evaluation.first_episodes": of_society(
        lambda s, env, key, params: evaluation.first_episodes(
            lambda k: society.reset(s, k, env)[0], lambda k, state: society.step(s, k, params, state, env), key, 2, 30
        ),
        "key",
        "params",
    ),
    "evaluation.play_episodes": without_market(
        lambda env, params, _, key: evaluation.play_episodes(env, lambda key, _: jnp.int32(1), key, params, 2, 30)
    ),
    "evaluation.action_rates": of_society(
        lambda s, _, key, params: evaluation.action_rates(MarketPolicy(params, s), jnp.eye(6), key, 2, draws=5),
        "key",
        "params",
    ),
    "evaluation.step_durations": of_society(
        lambda s, _, key, params: evaluation.step_durations(
            s, jax.tree.map(lambda x: x[None], params), jax.random.split(key, (1, 2)), 5
        ),
        "key",
        "params",
    ),
    "evaluation.bids_by_state": of_society(lambda s, _, params: evaluation.bids_by_state(s, params, 6), "params"),
    "metrics.totals": plain(metrics.totals, lambda rng: (rows_of(rng),)),
    "metrics.summarize": plain(
        lambda rows: metrics.summarize(rows, settlement.settle(rows, 0.9)).means(), lambda rng: (rows_of(rng),)
    ),
    "metrics.gini": plain(metrics.gini, lambda rng: (money(rng, 5), rng.random(5) < 0.9)),
    "metrics.conservation_residual": plain(metrics.conservation_residual, lambda rng: (rows_of(rng),)),
    "metrics.saturation": plain(
        lambda rows: metrics.saturation(rows.outcome, jnp.zeros(2), jnp.ones(2)), lambda rng: (rows_of(rng),)
    ),
    "metrics.ledger": plain(metrics.ledger, lambda rng: (rows_of(rng),)),
    "metrics.wins_by_region": Case(
        lambda shape, primitive, region: metrics.wins_by_region(primitive, region, *shape),
        lambda rng, shape: (jnp.asarray(rng.integers(-1, shape[1], 9)), jnp.asarray(rng.integers(0, shape[0], 9))),
        lambda: (3, 2),
    ),
    "metrics.mutual_information": plain(
        lambda counts: (metrics.mutual_information(counts), metrics.mutual_information(counts, corrected=True)),
        lambda rng: (rng.integers(0, 5, (3, 4)).astype(float),),
    ),
    "metrics.bid_error": plain(
        metrics.bid_error, lambda rng: (money(rng, 3, 4), money(rng, 3, 4), rng.random(3) < 0.9)
    ),
    "ppo.clipped_gain": plain(ppo.clipped_gain, lambda rng: (money(rng, 4), money(rng, 4), 0.2)),
    "protocol.clip": plain(lambda g: protocol.clip(g, 0.5), lambda rng: ({"a": money(rng, 3), "b": money(rng, 2)},)),
    "protocol.descend": plain(_descend, lambda rng: (money(rng, 3), money(rng, 3))),
    "protocol.mean_where": plain(protocol.mean_where, lambda rng: (money(rng, 4), rng.random(4) < 0.5)),
    "protocol.standardized": plain(protocol.standardized, lambda rng: (money(rng, 4), rng.random(4) < 0.9)),
    "protocol.in_blocks": plain(
        lambda obs, batch: protocol.in_blocks(lambda obs, batch: (obs.sum(1), obs[:, 0] * batch), obs, batch, 2, 17),
        lambda rng: (money(rng, 6, 3), money(rng, 4, 6)),
    ),
    "protocol.over_minibatches": plain(
        lambda carry, obs, batch: protocol.over_minibatches(minibatch_step, carry, obs, batch, 2, 2),
        lambda rng: (money(rng), money(rng, 6, 3), money(rng, 6)),
    ),
    "deep_market.init": Case(
        lambda m, key: deep_market.init(m, key, m.env.default_params, num_agents=3),
        lambda rng, _: (key(rng),),
        deep,
    ),
    "deep_market.money": of_deep_market(lambda m, env, key, state: deep_market.money(state)),
    "deep_market.make_population": plain(
        deep_market.make_population,
        lambda rng: (money(rng, 4, 2), rng.random(4), rng.random(4) < 0.7),
    ),
    "deep_market.forward": of_deep_market(
        lambda m, env, key, e: deep_market.forward(m, key, e.population, e.obs, e.env_state, env, TERMS),
    ),
    "deep_market.turnover": of_deep_market(
        lambda m, env, key, e: deep_market.turnover(m.representation, key, e.population, e.obs, e.time, TERMS, 2),
    ),
    "deep_market.step": of_deep_market(lambda m, env, key, state: deep_market.step(m, key, state, env, TERMS)),
    "deep_market.experience": plain(
        lambda *args: deep_market.experience(*args, 3), lambda rng: (purchases_of(rng), 0.9, 0.5)
    ),
    "deep_market.run": of_deep_market(
        lambda m, env, key, state: deep_market.run(m, key, state, env, TERMS, rounds=2, period=2),
    ),
    "wide_market.capped_values": plain(
        wide_market.capped_values, lambda rng: (quadratic(rng), rng.random(3), rng.random((3, 2)))
    ),
    "wide_market.capped_demand": plain(
        wide_market.capped_demand,
        lambda rng: (jax.tree.map(lambda x: x[0], quadratic(rng)), rng.random(), rng.uniform(0.1, 1, 2)),
        approximate=1e-3,
    ),
    "wide_market.ration": plain(wide_market.ration, lambda rng: (rng.random((3, 2)), rng.random((3, 2)))),
    "wide_market.best_response_gain": plain(
        wide_market.best_response_gain,
        lambda rng: (quadratic(rng), rng.random(3), rng.uniform(0.1, 1, 2), rng.random((3, 2))),
        approximate=1e-3,
    ),
    "wide_market.step": Case(
        lambda market, key, state: wide_market.step(market, key, state, income=0.1, rent=0.1),
        lambda rng, _: (key(rng), an_state(rng)),
        wide,
        approximate=1e-3,
    ),
    "wide_market.run": Case(
        lambda market, key, state: wide_market.run(market, key, state, rounds=2, income=0.1, rent=0.1),
        lambda rng, _: (key(rng), an_state(rng)),
        wide,
        approximate=1e-3,
    ),
    "welfare.total_welfare": plain(
        welfare.total_welfare, lambda rng: (quadratic(rng), rng.random(3), rng.random((3, 2)))
    ),
    "welfare.welfare_bound": plain(
        welfare.welfare_bound,
        lambda rng: (quadratic(rng), rng.random(3), rng.random(2), rng.uniform(0.1, 1, 2)),
        approximate=1e-3,
    ),
    "welfare.efficiency": plain(
        welfare.efficiency,
        lambda rng: (quadratic(rng), rng.random(3), rng.random((3, 2)), rng.uniform(0.1, 1, 2)),
        approximate=1e-3,
    ),
    "welfare.price_dispersion": plain(welfare.price_dispersion, lambda rng: (1 + rng.random((3, 2)),)),
    "welfare.price_stability": plain(
        lambda v, wealth, holdings, present: welfare.price_stability(
            wide_market.Tatonnement(), v, wealth, holdings, present
        ),
        lambda rng: (quadratic(rng), 5 + rng.random(3), rng.uniform(0.5, 1, (3, 2)), rng.random((2, 3)) < 0.9),
        approximate=1e-3,
    ),
    "welfare.money_supply": plain(
        lambda opening, rounds: welfare.money_supply(opening, rounds[1]), wide_rounds, approximate=1e-3
    ),
    "welfare.wealth_history": plain(
        lambda opening, rounds: welfare.wealth_history(opening, rounds[1]), wide_rounds, approximate=1e-3
    ),
    "networks.neuron_quote": plain(networks.neuron_quote, lambda rng: (money(rng), money(rng, 3), money(rng, 2))),
    "routing.routing_gradient": plain(routing.routing_gradient, routed),
    "routing.replicator": plain(routing.replicator, lambda rng: routed(rng)[::2]),
    "routing.reroute": plain(routing.reroute, lambda rng: routed(rng)[::2]),
    "routing.welfare_rate": plain(routing.welfare_rate, routed),
    "routing.attention_gradient": plain(
        routing.attention_gradient, lambda rng: (rng.dirichlet(np.ones(3), 2).T, money(rng, 3, 2), money(rng, 2, 2))
    ),
    "routing.settle_bets": plain(
        routing.settle_bets, lambda rng: (rng.random(3), rng.dirichlet(np.ones(2), 3), jnp.int32(rng.integers(2)))
    ),
} | {
    f"Mechanism.{name}.{part}": plain(getattr(mechanism, part), lambda rng: (sold(rng),), approximate=0)
    for name, mechanism in MECHANISMS.items()
    for part in ("price", "payout")
}


def other_mdp(gamma: float = 0.9) -> FiniteMDP:
    return FiniteMDP([[[0.5, 0.5], [1, 0]], [[0, 1], [1, 0]]], [[1, 0], [0, 0.2]], gamma=gamma, start=[1, 0], horizon=5)


def half(outcome: Any) -> Any:
    return outcome.winning_bid / 2


STATIC = {
    # name: (makes the object, makes the object with one change)
    "Society": (small_society, lambda: small_society(clones=3)),
    "Society, mechanism": (small_society, lambda: small_society(mechanism=MECHANISMS["bb"])),
    "Society, environment": (small_society, lambda: small_society(env=other_mdp())),
    "Mechanism": (lambda: Mechanism("half", half, half), lambda: Mechanism("other", half, half)),
    "BidPolicy": (lambda: BidPolicy(linear(4), ValueHead()), lambda: BidPolicy(linear(5), ValueHead())),
    "KumaraswamyHead": (KumaraswamyHead, lambda: KumaraswamyHead(high=2.0)),
    "BetaHead": (BetaHead, lambda: BetaHead(low=-1.0)),
    "ValueHead": (ValueHead, BetaHead),
    "ValueNetwork": (lambda: ValueNetwork(mlp(4)), lambda: ValueNetwork(mlp(4, layer_norm=True))),
    "cnn": (lambda: cnn(4), lambda: cnn(4, stride=2)),
    "PPO": (
        lambda: learners.PPO(BidPolicy(linear(), KumaraswamyHead()), ValueNetwork(linear())),
        lambda: learners.PPO(BidPolicy(linear(), KumaraswamyHead()), ValueNetwork(linear(3))),
    ),
    "Reinforce": (
        lambda: learners.Reinforce(BidPolicy(linear(), KumaraswamyHead()), minibatch=8),
        lambda: learners.Reinforce(BidPolicy(linear(), KumaraswamyHead()), minibatch=16),
    ),
    "Valuation": (
        lambda: learners.Valuation(BidPolicy(linear(), ValueHead()), minibatch=8),
        lambda: learners.Valuation(BidPolicy(linear(), ValueHead()), minibatch=16),
    ),
    "DeepMarket": (deep, lambda: dataclasses.replace(deep(), capacity=5)),
    "BidTables": (lambda: deep_market.BidTables(6, 2), lambda: deep_market.BidTables(6, 3)),
    "ClassifierRules": (
        lambda: deep_market.ClassifierRules(bits=4, actions=2),
        lambda: deep_market.ClassifierRules(bits=5, actions=2),
    ),
    "Expressions": (
        lambda: deep_market.Expressions(Vocabulary(("x",))),
        lambda: deep_market.Expressions(Vocabulary(("x",)), depth=4),
    ),
    "EstimatingExpressions": (
        lambda: deep_market.EstimatingExpressions(Vocabulary(("x",))),
        lambda: deep_market.EstimatingExpressions(Vocabulary(("x",)), cap=3),
    ),
    "Vocabulary": (lambda: Vocabulary(("x",)), lambda: Vocabulary(("y",))),
    "RiskAverseRules": (
        lambda: deep_market.RiskAverseRules(bits=4, actions=2),
        lambda: deep_market.RiskAverseRules(bits=4, actions=2, margin=0.1),
    ),
    "DeepMarket, mechanism": (deep, lambda: dataclasses.replace(deep(), mechanism=MECHANISMS["vickrey"])),
    "WideMarket": (wide, lambda: dataclasses.replace(wide(), solver=wide_market.ConvexProgram())),
    "Tatonnement": (wide_market.Tatonnement, wide_market.ConvexProgram),
    "ProportionalResponse": (wide_market.ProportionalResponse, wide_market.SealedBids),
    "FiniteMDP": (other_mdp, lambda: other_mdp(0.8)),
    "Chain": (Chain, other_mdp),
    "Multiplexer": (lambda: Multiplexer(2), lambda: Multiplexer(3)),
    "TMaze": (lambda: TMaze(5), lambda: TMaze(6)),
    "Maze": (Woods1, lambda: make_env("Woods101-v0")[0]),
    "BlocksWorld": (BlocksWorld, lambda: BlocksWorld((1, 2))),
    "Memory": (lambda: Memory(Chain(), registers=1), lambda: Memory(Chain(), registers=2)),
    "SupplyChain": (lambda: SupplyChain(2), lambda: SupplyChain(3)),
    "Targets": (Targets, lambda: Targets(absent=(3,))),
    "Regimes": (lambda: Regimes(2), lambda: Regimes(2, lasting=3)),
    "TrainingEnvironment": (TrainingEnvironment, lambda: TrainingEnvironment(period=2)),
    "TwoRooms": (lambda: make_env("TwoRooms-GreenTask-v0")[0], lambda: make_env("TwoRooms-BlueTask-v0")[0]),
}
