"""The public checkers accept all objects of the library, and reject objects with planted faults."""

import dataclasses
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmarket import MECHANISMS, BidPolicy, Mechanism, make
from jaxmarket.learners import PPO, Reinforce, Valuation
from jaxmarket.policies import KumaraswamyHead, ValueHead, ValueNetwork, linear, mlp
from jaxmarket.testing import check_environment, check_learner, check_mechanism

OTHER = MECHANISMS["ccv"].price


def fails(message):
    return pytest.raises(AssertionError, match=re.escape(message))


# --- mechanisms


@pytest.mark.parametrize(
    ("name", "conserving", "truthful"),
    [("bb", True, False), ("vickrey", False, True), ("ccv", True, True), ("env", True, False)],
)
def test_our_mechanisms_are_what_the_paper_says(name, conserving, truthful):
    check_mechanism(MECHANISMS[name], conserving=conserving, truthful=truthful)
    with fails(f"but conserving={not conserving}"):
        check_mechanism(MECHANISMS[name], conserving=not conserving)
    if not truthful:
        with fails("not truthful"):
            check_mechanism(MECHANISMS[name], truthful=True)


def test_a_third_price_auction_passes_and_is_not_truthful():
    def third(outcome):
        return jnp.sort(jnp.where(outcome.eligible, outcome.bids, 0.0))[-3]

    check_mechanism(Mechanism("third", price=third, payout=third), conserving=True)
    with fails("not truthful"):
        check_mechanism(Mechanism("third", price=third, payout=third), truthful=True)


@pytest.mark.parametrize("field", ["price", "payout"])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda o: jnp.log(o.winning_bid - 0.5), "NaN or infinite"),
        (lambda o: o.bids, "a scalar of the bids' dtype"),
        (lambda o: o.winner, "a scalar of the bids' dtype"),
        (lambda o: o.winning_bid.astype(jnp.float16), "a scalar of the bids' dtype"),
        (lambda o: (o.winning_bid, o.winning_bid), "a scalar of the bids' dtype"),
        (lambda o: o.winning_bid if o.winning_bid > 0.5 else 0.5, "under jit failed with TracerBool"),
        (lambda o: o.winning_bid * random.random(), "eager differs from jit(vmap)"),
        (lambda o: jnp.nanmax(o.bids), "ineligible"),
        (lambda o: jnp.sort(o.bids)[-2], "ineligible"),
    ],
)
def test_broken_mechanisms_are_refused(field, rule, message):
    rules = {"price": OTHER, "payout": OTHER} | {field: rule}
    with fails(message) as error:
        check_mechanism(Mechanism("mine", **rules))
    assert f"mine.{field}" in str(error.value)


# --- environments


@pytest.mark.parametrize("env", ["Chain-v0", "Duality-v0", "Bandit-v0", "CartPole-v1"])
def test_our_environments_pass(env):
    check_environment(make(env)[0])


class Walk:
    """A random walk that ends at distance 2 or after 6 steps; ``spoil`` breaks what a step returns."""

    num_actions = 2

    def __init__(self, spoil=None):
        self.spoil = spoil

    def reset(self, key, params):
        state = {"x": jnp.zeros((), jnp.int32), "time": jnp.zeros((), jnp.int32), "key": key}
        return jnp.zeros(2), state

    def step(self, key, state, action, params):
        state = {"x": state["x"] + 2 * action - 1, "time": state["time"] + 1, "key": key}
        result = {
            "obs": jnp.stack([state["x"], state["time"]]),
            "state": state,
            "reward": jnp.ones(()),
            "terminated": jnp.abs(state["x"]) >= 2,
            "truncated": state["time"] >= 6,
            "info": {},
        }
        return tuple((result | (self.spoil(result) if self.spoil else {})).values())


def auto_reset(r, info):
    done = r["terminated"] | r["truncated"]
    state = jax.tree.map(lambda x: jnp.where(done, jnp.zeros_like(x), x), r["state"] | {"key": 0})
    return {"obs": jnp.where(done, 0, r["obs"]), "state": r["state"] | state | {"key": r["state"]["key"]}, "info": info}


def branch(r):
    return {} if r["state"]["x"] > 0 else {"reward": jnp.zeros(())}


def test_a_bare_environment_passes():
    check_environment(Walk(lambda r: {"info": {"duration": r["state"]["time"]}}), steps=16)
    check_environment(Walk(lambda r: auto_reset(r, {"final_observation": r["obs"]})), steps=16)


class Wrapper:
    """A wrapper of a gymnax environment whose step resets automatically, as gymnax's does."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, key, params):
        return self.env.reset(key, params)

    def step(self, key, state, action, params):
        return self.env.step(key, state, action, params)


def test_a_wrapper_that_resets_as_gymnax_does_passes():
    check_environment(Wrapper(make("Chain-v0")[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: {"obs": r["obs"][:1]}, "the observation after a step of Walk is float32[1]"),
        (lambda r: {"state": r["state"] | {"x": 1.0 * r["state"]["x"]}}, "is float32[] at ['x'], before it was int32"),
        (lambda r: {"state": r["state"] | {"new": 0}}, "return the same fields"),
        (lambda r: {"reward": jnp.ones(2)}, "reward of Walk to be a number, got float32[2]"),
        (lambda r: {"terminated": jnp.zeros(2, bool)}, "terminated of Walk to be a number, got bool[2]"),
        (lambda r: {"extra": 0}, "step of Walk, got 7 values"),
        (branch, "step of Walk failed under jit with TracerBool"),
        (lambda r: {"info": {"duration": 0}}, "a duration below 1"),
        (lambda r: {"reward": jnp.log(2 - r["state"]["x"])}, "a NaN or infinite reward"),
        (lambda r: {"obs": r["obs"] / (2 - r["state"]["x"])}, "a NaN or infinite observation"),
        (lambda r: {"reward": jnp.asarray(random.random())}, "the same key gave two different steps"),
        (lambda r: {"obs": r["obs"] + np.random.rand()}, "the same key gave two different steps"),
        (lambda r: auto_reset(r, {}), "first state of the next one"),
    ],
)
def test_broken_steps_are_refused(spoil, message):
    with fails(message) as error:
        check_environment(Walk(spoil), steps=16)
    assert "Walk" in str(error.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_actions": None}, "needs discrete actions"),
        ({"legal_actions": lambda state, params: jnp.ones(3, bool)}, "legal_actions of Walk of shape (2,), got (3,)"),
        ({"legal_actions": lambda state, params: state["x"] > jnp.array([0, 0])}, "no action was legal"),
    ],
)
def test_broken_actions_are_refused(attributes, message):
    env = Walk()
    vars(env).update(attributes)
    with fails(message):
        check_environment(env, steps=16)


def test_what_is_no_environment_is_refused():
    with fails("is not a gymnax-style environment"):
        check_environment(object())


# --- learners

BIDS, ESTIMATE = BidPolicy(linear(), KumaraswamyHead()), BidPolicy(mlp(4), ValueHead())


@pytest.mark.parametrize(
    "learner",
    [
        PPO(BIDS, ValueNetwork(linear())),
        Reinforce(BIDS, minibatch=64),
        Valuation(ESTIMATE, minibatch=64),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_our_learners_pass(learner):
    check_learner(learner)


def among_modules(value, function):
    """``function`` of the values of all modules, inside ``vmap``, by a custom batching rule."""
    leak = jax.custom_batching.custom_vmap(lambda x: x)
    leak.def_vmap(lambda size, batched, x: (jnp.broadcast_to(function(x), x.shape), True))
    return leak(value)


def shifted(state, amount):
    return state.replace(params=jax.tree.map(lambda p: p + amount, state.params))


def deaf(rule, state, e, *rest):
    return rule(state, e.replace(utility=jnp.zeros_like(e.utility)), *rest)


def gossip(rule, state, e, *rest):
    return rule(state, e.replace(utility=among_modules(e.utility, lambda x: x.mean(0))), *rest)


def hidden_gradient(rule, state, e, *rest):
    total = among_modules(e.utility.sum(), jnp.sum)
    state, metrics = rule(state, e, *rest)
    return shifted(state, total - jax.lax.stop_gradient(total)), metrics


def half_precision(rule, state, *rest):
    state, metrics = rule(state, *rest)
    return state.replace(params=jax.tree.map(lambda p: p.astype(jnp.float16), state.params)), metrics


def no_number(rule, state, *rest):
    state, metrics = rule(state, *rest)
    return shifted(state, jnp.nan), metrics


def vector_metric(rule, state, e, *rest):
    state, metrics = rule(state, e, *rest)
    return state, metrics | {"utility": e.utility}


def branching(rule, state, e, *rest):
    return rule(state, e, *rest) if e.utility.sum() > 0 else (state, {})


@dataclasses.dataclass(frozen=True)
class Spoilt(Valuation):
    spoil: object = None

    def update(self, *args):
        return self.spoil(super().update, *args)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (deaf, "does not react to the module's own utility"),
        (gossip, "depends on another module's utility"),
        (hidden_gradient, "has a gradient"),
        (half_precision, "the state after an update is float16"),
        (no_number, "NaN or infinite parameters"),
        (vector_metric, "metric ['utility']: expected a scalar"),
        (branching, "update under jit and vmap failed with TracerBool"),
    ],
)
def test_broken_updates_are_refused(spoil, message):
    with fails(message):
        check_learner(Spoilt(BidPolicy(linear(), ValueHead()), minibatch=8, spoil=spoil), (3,), rows=8)


@dataclasses.dataclass
class Mutable:
    policy: object = ESTIMATE


class ByIdentity:
    policy = ESTIMATE


@dataclasses.dataclass(frozen=True)
class WithoutParams(Valuation):
    def init(self, key, obs):
        return super().init(key, obs).opt


@dataclasses.dataclass(frozen=True)
class ForeignParams(Valuation):
    def init(self, key, obs):
        return super().init(key, obs).replace(params={"params": {"w": obs}})


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (Mutable(), "Mutable: hash failed"),
        (ByIdentity(), "does not compare by value"),
        (WithoutParams(ESTIMATE), "no field `params`"),
        (ForeignParams(ESTIMATE), "must be the parameters of learner.policy"),
    ],
)
def test_broken_learners_are_refused(learner, message):
    with fails(message):
        check_learner(learner, rows=8)
