"""Checks in compiled programs: they detect planted faults, name the step, and leave other programs unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxmarket import BidPolicy, Mechanism, Society, accounts, auctions, deep_market, wide_market
from jaxmarket import checking as checking_module
from jaxmarket.accounts import pay_sale
from jaxmarket.checking import check, check_finite, checked, checking
from jaxmarket.deep_market import BidTables
from jaxmarket.environments import FiniteMDP
from jaxmarket.policies import Point, ValueHead, linear
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.types import Accounts
from jaxmarket.validation import as_bool_array, as_float_array, check_float, check_int
from jaxmarket.wide_market import Additive

BAD = jnp.nan


class Faulty(FiniteMDP):
    """A chain of seven deterministic steps with a planted fault in step ``at``."""

    def __init__(self, what, at=7):
        moves = np.eye(9)[np.minimum(np.arange(9) + 1, 8)][:, None].repeat(2, 1)
        super().__init__(moves, np.ones((9, 2)), 0.9, np.eye(9)[0], horizon=20, name=f"faulty {what}")
        self.what, self.at = what, at

    def step_env(self, key, state, action, params):
        obs, after, reward, terminated, info = super().step_env(key, state, action, params)
        wrong = state.time == self.at
        if self.what == "reward":
            reward = jnp.where(wrong, BAD, reward)
        if self.what == "observation":
            obs = jnp.where(wrong, obs.at[2].set(jnp.inf), obs)
        return obs, after, reward, terminated, info


class NoNumber(BidPolicy):
    """A policy that bids NaN in state 4."""

    def apply(self, params, obs):
        return Point(jnp.where(obs[4] > 0, BAD, super().apply(params, obs).mean()))


def society(env=None, mechanism=auctions.VICKREY, policy=BidPolicy):
    env = Faulty("nothing") if env is None else env
    return Society(env, policy(linear(), ValueHead()), mechanism=mechanism, clones=1)


def runner(market):
    """A compiled program: two instances, twelve auctions each."""
    params = market.init(jax.random.key(0))
    one = lambda key: fresh_rollout(market, key, params, market.env.default_params, 12)  # noqa: E731
    return jax.jit(jax.vmap(one))


KEYS = jax.random.split(jax.random.key(1), 2)
INFINITE = Mechanism("infinite", price=lambda o: o.winning_bid, payout=lambda o: jnp.full((), jnp.inf))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: runner(society(Faulty("reward"))), r"^reward is nan, step 7; a step of faulty reward must"),
        pytest.param(
            lambda: runner(society(Faulty("observation"))),
            r"^observation\[2\] is inf, step 7; a step of",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: runner(society(mechanism=INFINITE)),
            r"^payout is inf, step 0; the mechanism infinite must",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_planted_fault_is_named_with_its_step(build, says):
    program = build()
    jax.block_until_ready(program(KEYS))  # compiled before, without checks; and it goes on regardless
    with pytest.raises(ValueError, match=says):
        checked(program)(KEYS)


@pytest.mark.slow
def test_a_bid_that_is_no_number_is_named_with_its_bidder():
    market = society(policy=NoNumber)
    with pytest.raises(ValueError, match=r"^bids\[0\] is nan, step 4; .* check the bid network"):
        checked(runner(market))(KEYS)


@pytest.mark.slow
def test_a_sound_market_passes_and_is_unchanged():
    program = runner(society())
    for plain, same in zip(jax.tree.leaves(program(KEYS)), jax.tree.leaves(checked(program)(KEYS)), strict=True):
        np.testing.assert_array_equal(plain, same)


def test_outside_of_checked_no_check_is_in_the_program(monkeypatch):
    program, arguments = runner(society()), (KEYS,)
    with_checks = jax.make_jaxpr(program)(*arguments)
    for name in ("check", "check_finite", "check_conserved", "check_flows"):
        for module in (accounts, checking_module, __import__("jaxmarket.society", fromlist=["x"])):
            monkeypatch.setattr(module, name, lambda *a, **k: None, raising=False)
    without = jax.make_jaxpr(runner(society()))(*arguments)
    strip = lambda jaxpr: __import__("re").sub(r"0x[0-9a-f]+", "", str(jaxpr))  # noqa: E731
    assert strip(with_checks) == strip(without)
    assert not with_checks.effects
    assert not checking()


def test_money_that_appears_from_nowhere_is_found(monkeypatch):
    wealth, nothing = jnp.array([1.0, 2.0]), jnp.zeros(())

    def pay(buyer):
        sale = {"price": jnp.asarray(0.5), "payout": jnp.asarray(0.5), "reward": jnp.asarray(0.25)}
        return pay_sale(Accounts(wealth, nothing), buyer=buyer, seller=jnp.asarray(1), **sale)

    np.testing.assert_allclose(checked(pay)(jnp.asarray(0)).wealth, [0.75, 2.5])
    with pytest.raises(ValueError, match=r"^buyer: expected an account from -1 .* got 2"):
        checked(pay)(jnp.asarray(2))
    checking_module.check_conserved((wealth,), (wealth,), (nothing,))  # no check outside
    books = lambda minted: checking_module.check_conserved((wealth,), (wealth + minted,), (nothing,))  # noqa: E731
    checked(books)(1e-7)
    with pytest.raises(ValueError, match=r"^money: 0\.0\d+ more than the flows explain"):
        checked(books)(0.01)
    with pytest.raises(ValueError, match="money: nan"):
        checked(books)(jnp.nan)


class Shouting(BidTables):
    """Tables of bids in which one agent bids NaN."""

    def bid(self, agent, obs, budget):
        bid = super().bid(agent, obs, budget)
        return jnp.where(bid > 0.9, BAD, bid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("representation", "what", "says"),
    [
        (BidTables(9, 2), "reward", r"^reward\[0\] is nan, step 7"),
        (Shouting(9, 2), "nothing", r"^bids\[\d \d\] is nan"),
        (BidTables(9, 2), "nothing", None),
    ],
)
def test_deep_markets_are_checked(representation, what, says):
    env = Faulty(what)
    market = deep_market.DeepMarket(env, representation, capacity=16, instances=2)
    economy = deep_market.init(market, jax.random.key(0), env.default_params)

    def run(economy):
        return deep_market.run(market, jax.random.key(1), economy, env.default_params, rounds=1, period=9)

    if says is None:
        checked(run)(economy)
        economy = economy.replace(owner=jnp.array([0, 40]))
        says = r"^owner: .* got 40"
    with pytest.raises(ValueError, match=says):
        checked(run)(economy)


@pytest.mark.slow
def test_wide_markets_are_checked():
    def run(economy, factor, reward=0.0, kept=1.0):
        def solve(*arguments, **others):
            found = wide_market.SealedBids()(*arguments, **others)
            return (
                found._replace(bundles=found.bundles * kept)
                if hasattr(found, "_replace")
                else found.replace(bundles=found.bundles * kept)
            )

        made = wide_market.per_agent(lambda agent, bundle: bundle * factor, lambda agent, bundle, left: reward)
        market = wide_market.WideMarket(lambda agent, world: Additive(agent), made, solve)
        return wide_market.run(market, jax.random.key(0), economy, rounds=2, income=0.1, rent=0.1)

    economy = wide_market.init(jnp.array([[1.0, 2.0], [3.0, 1.0]]), jnp.ones((2, 2)), 5.0)
    program = checked(run)
    program(economy, 1.0)
    for given, says in (
        ((-1.0,), r"^holdings: production must return numbers >= 0, got a negative one, step 0"),
        ((jnp.nan,), r"^holdings\[0 0\] is nan, step 0"),
        ((1.0, jnp.inf), r"^reward\[0\] is inf, step 0"),
        (
            (1.0, 0.0, 0.5),
            r"^bundles: the solver allocated 1\.0 of good 0, expected its supply 2\.0, step 0",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            program(economy, *given)


def test_checks_reach_through_jit_vmap_scan_and_cond_and_the_caches_stay_apart():
    @jax.jit
    def grow(x):
        def body(x, t):
            x = jax.lax.cond(t > 2, lambda x: x * 1e30, lambda x: x, x)
            check_finite("x", x, "grow less", step=t)
            return x, None

        return jax.lax.scan(body, x, jnp.arange(9))[0]

    many = jax.vmap(grow)
    for _ in range(2):
        assert np.isinf(many(jnp.array([0.0, 1.0]))[1])
        with pytest.raises(ValueError, match=r"^x is inf, step 4; grow less$"):
            checked(many)(jnp.array([0.0, 1.0]))
    assert checked(many)(jnp.zeros(2)).tolist() == [0, 0]


def test_static_arguments_values_by_function_and_other_kinds_of_errors():
    def take(n, x):
        check(lambda: x[0] > 0, "a first entry of {x}, the last is {last}", x=x[0], last=lambda: x[-1])
        return jnp.log(x[:n])

    program = checked(take, static_argnums=0)
    assert program(2, jnp.ones(3)).shape == (2,)
    with pytest.raises(ValueError, match=r"^a first entry of -1\.0, the last is 4\.0$"):
        program(2, jnp.array([-1.0, 4.0]))
    with pytest.raises(ValueError, match="nan generated by primitive: log"):
        checked(take, checkify.user_checks | checkify.nan_checks, static_argnums=0)(2, jnp.array([1.0, -4.0]))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: as_float_array("field", "a"),
        lambda: as_float_array("field", [[1], [1, 2]]),
        lambda: as_float_array("field", 1j),
        lambda: as_float_array("field", None),
        lambda: as_float_array("field", [object()]),
        lambda: as_float_array("field", [1.0], ()),
        lambda: as_bool_array("field", [0, 1], (2,)),
        lambda: as_bool_array("field", [True], (2,)),
        lambda: as_bool_array("field", "a", (2,)),
        lambda: check_int("field", True),
        lambda: check_int("field", 2.5),
        lambda: check_int("field", 0),
        lambda: check_int("field", 2**31),
        lambda: check_float("field", float("nan")),
        lambda: check_float("field", "1"),
        lambda: check_float("field", 2, 0, 1),
    ],
)
def test_what_is_given_is_refused_by_the_name_of_its_field(wrong):
    with pytest.raises(ValueError, match=r"^field: expected"):
        wrong()


def test_what_is_given_is_taken_where_it_is_good():
    assert as_float_array("field", [1, 2]).dtype == jnp.zeros(()).dtype
    assert as_bool_array("field", [True, False], (2,)).tolist() == [True, False]
    assert check_int("field", np.int8(3)) == 3
    assert check_float("field", 1, 0, 1) == 1.0
