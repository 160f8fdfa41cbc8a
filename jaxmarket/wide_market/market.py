"""Wide markets: the world is a vector of goods, and agents transform the bundles they own.

Definition 2.2 and Algorithm 2 of Sudhir and Tran-Thanh (2025). A deep market sells the whole world to one agent at a
time. Here all agents act in the same step, each on the goods it owns. The printed algorithm has slips (it uses old
holdings instead of new ones, and never updates them); a step is

    p, X = equilibrium(Σ H, min(v, w))      prices and bundles of all goods held
    w   += p · (H - X)                      buyers pay, owners are paid
    H    = f(X)                             agents transform the bundles they own
    w   += R(X, H)                          agents receive rewards

Trade conserves goods, ΣX = ΣH, and buyers pay what owners receive (except for auctions that mint money, which the
cash flows name). Only rewards, income, rent and this subsidy change the amount of money. While rewards are not
negative, wealth is not negative either, except for rounding (about 1e-7 of the payments): no agent pays more than it
has.

If a solver finds no equilibrium within its iterations, goods and money are still conserved, and
``certificate.converged`` of that step (`WideMarketStep`) is False. `WideMarket.nonconvergence` can turn this into an
error. A step is also called a round.

A deep market is the special case of one indivisible good, the world, with the solver
`jaxmarket.wide_market.sealed_bids.SealedBids`.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import core
from jaxtyping import Float, Int32

from jaxmarket.accounts import CashFlows, check_flows
from jaxmarket.checking import check, check_finite, checking
from jaxmarket.switches import entry_point
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import as_float_array, check_int, check_no_nan, check_rows, short_repr
from jaxmarket.wide_market.equilibrium import Equilibrium, EquilibriumCertificate, EquilibriumSolver

__all__ = [
    "Produced",
    "Production",
    "WideMarket",
    "WideMarketState",
    "WideMarketStep",
    "init",
    "per_agent",
    "run",
    "step",
]


class Produced(struct.PyTreeNode):
    """The result of production."""

    holdings: Float[Array, "N G"]  # what agents own now, not negative
    reward: Float[Array, " N"]
    world: PyTree  # the rest of the state


class Production(Protocol):
    """The production functions of all agents."""

    def __call__(self, key: Array, agents: PyTree, world: PyTree, bundles: Float[Array, "N G"]) -> Produced:
        """Transform bundles; consumes ``key``."""
        ...


def per_agent(
    transform: Callable[[PyTree, Float[Array, " G"]], Float[Array, " G"]],
    reward: Callable[[PyTree, Float[Array, " G"], Float[Array, " G"]], Float[Array, ""]] | None = None,
) -> Production:
    """Production from functions f and R of one agent.

    Args:
        transform: f, ``(agent, bundle [G]) -> holdings [G]``, not negative. A consumer's is zero.
        reward: R, ``(agent, bundle [G], holdings [G]) -> f []``; zero by default.
    """

    def produce(key: Array, agents: PyTree, world: PyTree, bundles: Float[Array, "N G"]) -> Produced:
        holdings = jax.vmap(transform)(agents, bundles)
        rewards = jnp.zeros(bundles.shape[0], bundles.dtype)
        if reward is not None:
            rewards = jax.vmap(reward)(agents, bundles, holdings)
        return Produced(holdings=holdings, reward=rewards, world=world)

    return produce


@dataclasses.dataclass(frozen=True)
class WideMarket:
    """The static description of a wide market; frozen, compares by value.

    Consumers are agents whose production leaves nothing, and whose money comes from ``income``.

    Attributes:
        valuation: ``(agent, world) -> valuation`` of one agent: an object of a class in
            `jaxmarket.wide_market.valuations`, or of another class with the same methods.
        production: how agents transform their bundles; `per_agent` builds one from functions of one agent.
        solver: finds prices and bundles: any `jaxmarket.wide_market.equilibrium.EquilibriumSolver`.
        nonconvergence: what happens if a certificate is not ``converged``. ``"record"`` trades at the prices found,
            and the certificate of the step records it. ``"raise"`` raises a ``ValueError``. A compiled program can do
            this only if `jaxmarket.checking.checked` compiled it; under `jax.jit` alone, tracing raises an error.

    Raises:
        ValueError: ``nonconvergence`` is neither ``"record"`` nor ``"raise"``.
    """

    valuation: Callable[[PyTree, PyTree], PyTree]
    production: Production
    solver: EquilibriumSolver
    nonconvergence: Literal["record", "raise"] = "record"

    def __post_init__(self) -> None:
        if self.nonconvergence not in ("record", "raise"):
            raise ValueError(f'nonconvergence: expected "record" or "raise", got {short_repr(self.nonconvergence)}')


class WideMarketState(struct.PyTreeNode):
    """The state of a wide market."""

    agents: PyTree  # leaves [N, ...]
    holdings: Float[Array, "N G"]
    wealth: Float[Array, " N"]
    world: PyTree  # the part of the state that no agent owns
    prices: Float[Array, " G"]  # of the last round, NaN before the first
    time: Int32[Array, ""]  # steps so far


class WideMarketStep(struct.PyTreeNode):
    """The outcome of one step.

    The flows are ``sale`` (received for holdings, including those that an agent buys back), ``purchase`` (minus what
    was paid for bundles), ``reward``, ``income`` and ``rent`` (minus what was paid), f [N] each. Wealth changes by
    ``flows.net``. Sales and purchases of all agents add up to the subsidy of the auctioneer, which is 0 unless a
    mechanism mints money.
    """

    prices: Float[Array, " G"]
    payout: Float[Array, " G"]  # what owners received for a unit
    bundles: Float[Array, "N G"]  # what agents owned after trade
    holdings: Float[Array, "N G"]  # what they produced from it
    flows: CashFlows
    certificate: EquilibriumCertificate


@entry_point
def init(
    agents: PyTree, holdings: Array, wealth: Array | float, world: PyTree = None, *, prices: Array | None = None
) -> WideMarketState:
    """The initial state of a wide market.

    Args:
        agents: a pytree, leaves [N, ...]: what the market's ``valuation`` and ``production`` need to know of an agent.
        holdings: f [N, G], not negative.
        wealth: f [N] or f [], not negative.
        world: the part of the state that no agent owns.
        prices: f [G] of an earlier round, if there was one.

    Raises:
        ValueError: there are no agents or goods, shapes do not match, holdings or wealth are negative, or an array that
            is not traced has NaN.
    """
    holdings = as_float_array("holdings", holdings)
    if holdings.ndim != 2 or 0 in holdings.shape:
        raise ValueError(
            f"holdings: expected [agents, goods], at least one of each, got shape {holdings.shape}; give one row "
            "per agent"
        )
    n, goods = holdings.shape
    check_rows("agents", agents, n)
    wealth = as_float_array("wealth", wealth)
    if wealth.shape not in ((), (n,)):
        raise ValueError(f"wealth: expected a number for all agents or shape ({n},), got shape {wealth.shape}")
    wealth = jnp.broadcast_to(wealth, (n,))
    prices = None if prices is None else as_float_array("prices", prices, (goods,))
    check_no_nan("prices", prices)
    for field, value in (("holdings", holdings), ("wealth", wealth)):
        # The values of traced arrays are unknown here; the caller is responsible for them.
        if not isinstance(value, core.Tracer) and not (np.asarray(value) >= 0).all():
            raise ValueError(f"{field}: expected numbers >= 0, got {np.min(value)}; remove negative entries and NaN")
    return WideMarketState(
        agents=agents,
        holdings=holdings,
        wealth=wealth,
        world=world,
        prices=jnp.full(goods, jnp.nan, real()) if prices is None else prices,
        time=jnp.zeros((), jnp.int32),
    )


@entry_point
def step(
    market: WideMarket,
    key: Array,
    state: WideMarketState,
    *,
    income: Array | float | None = None,
    rent: Array | float | None = None,
) -> tuple[WideMarketState, WideMarketStep]:
    """One round: trade, production, rewards. Pure and unbatched.

    Args:
        market: the static description.
        key: a typed PRNG key; consumed.
        state: before the round.
        income: f [N] or f [], paid to agents at the end of the round, e.g. to consumers.
        rent: f [] in [0, 1], the share of its wealth that every agent that holds goods after trade pays at the end of
            the round, before incomes; it makes agents sell that otherwise hold on to a good (an option of the paper).

    Returns:
        The state after the round, and its outcome.

    Raises:
        ValueError: the solver did not converge, and ``market.nonconvergence`` is ``"raise"``.
    """
    after, outcome = _step(market, key, state, income=income, rent=rent)
    _raise_unless_converged(market, outcome.certificate, state.time)
    return after, outcome


def _step(
    market: WideMarket, key: Array, state: WideMarketState, *, income: Array | float | None, rent: Array | float | None
) -> tuple[WideMarketState, WideMarketStep]:
    time = state.time
    key_trade, key_produce = jax.random.split(key)
    valuations = jax.vmap(market.valuation, (0, None))(state.agents, state.world)
    last = jnp.where(jnp.isnan(state.prices), -1, state.prices)  # negative: unknown
    found = market.solver(valuations, state.wealth, state.holdings, key=key_trade, prices=last)
    bundles = found.bundles
    _check_trade(state, found)
    purchase, sale = bundles @ found.prices, state.holdings @ found.payout
    # Subtract before multiplying, so that goods an agent keeps cost nothing, not even a rounding error.
    wealth = state.wealth + (state.holdings - bundles) @ found.prices
    wealth = wealth + state.holdings @ (found.payout - found.prices)
    produced = market.production(key_produce, state.agents, state.world, bundles)
    check_finite("reward", produced.reward, "production must return finite numbers", step=time)
    check_finite("holdings", produced.holdings, "production must return finite numbers", step=time)
    check(
        lambda: jnp.all(produced.holdings >= 0),
        "holdings: production must return numbers >= 0, got a negative one, step {step}",
        step=time,
    )
    wealth = wealth + produced.reward
    rents = incomes = jnp.zeros_like(wealth)
    if rent is not None:
        left = wealth - jnp.where((bundles > 0).any(1), rent * jnp.maximum(wealth, 0), 0)
        wealth, rents = left, wealth - left  # record the rounded difference, so that the flows add up
    if income is not None:
        incomes = jnp.broadcast_to(jnp.asarray(income, wealth.dtype), wealth.shape)
        wealth = wealth + incomes
    flows = CashFlows.of(sale=sale, purchase=-purchase, reward=produced.reward, income=incomes, rent=-rents)
    check_flows(state.wealth, wealth, flows, step=time)
    after = state.replace(
        holdings=produced.holdings, wealth=wealth, world=produced.world, prices=found.prices, time=time + 1
    )
    return after, WideMarketStep(
        prices=found.prices,
        payout=found.payout,
        bundles=bundles,
        holdings=produced.holdings,
        flows=flows,
        certificate=found.certificate,
    )


def _check_trade(state: WideMarketState, found: Equilibrium) -> None:
    """Check what solvers must guarantee: finite prices, and bundles that add up to the supply."""
    if checking():
        step, remedy = state.time, "the solver must return finite numbers; look at its certificate"
        check_finite("prices", found.prices, remedy, step=step)
        check_finite("payout", found.payout, remedy, step=step)
        check_finite("bundles", found.bundles, remedy, step=step)
        allocated, supply = found.bundles.sum(0), state.holdings.sum(0)
        worst = jnp.argmax(jnp.abs(allocated - supply))
        check(
            lambda: (jnp.abs(allocated - supply) <= 1e-4 * supply).all() & (found.bundles >= 0).all(),
            "bundles: the solver allocated {allocated} of good {good}, expected its supply {supply}, step {step}",
            allocated=allocated[worst],
            good=worst,
            supply=supply[worst],
            step=step,
        )


def _raise_unless_converged(market: WideMarket, certificate: EquilibriumCertificate, time: Int32[Array, ""]) -> None:
    """Raise at the first round that did not converge, if ``market.nonconvergence`` is ``"raise"``.

    Args:
        market: the market.
        certificate: of one round, or of rounds along a leading axis.
        time: the step of the first round.
    """
    if market.nonconvergence != "raise":
        return
    message = (
        "nonconvergence: the solver found no equilibrium in step {step} (excess demand {excess} of the supply, duality "
        "gap {gap} of welfare); give it more iterations or larger tolerances, or set nonconvergence='record'"
    )
    excess, gap = certificate.excess_demand, certificate.duality_gap
    if checking():
        check(lambda: certificate.converged, message, excess=excess, gap=gap, step=time)
    elif isinstance(certificate.converged, core.Tracer):
        raise ValueError(
            "nonconvergence: 'raise' has no effect in a compiled program; compile it with jaxmarket.checking.checked, "
            "or use 'record' and read certificate.converged"
        )
    else:
        converged, excess, gap = (np.atleast_1d(value) for value in (certificate.converged, excess, gap))
        if not converged.all():
            first = int(np.argmin(converged))
            raise ValueError(message.format(step=int(time) + first, excess=excess[first], gap=gap[first]))


@entry_point
def run(
    market: WideMarket,
    key: Array,
    state: WideMarketState,
    *,
    rounds: int,
    income: Array | float | None = None,
    rent: Array | float | None = None,
) -> tuple[WideMarketState, WideMarketStep]:
    """Run ``rounds`` steps in one scan.

    Args:
        market, state, income, rent: as in `step`.
        key: a typed PRNG key; consumed.
        rounds: number of steps. Static.

    Returns:
        The final state, and the outcomes with a leading axis [rounds].

    Raises:
        ValueError: ``rounds`` is less than 1; or the solver did not converge in a round, and ``market.nonconvergence``
            is ``"raise"``.
    """
    rounds = check_int("rounds", rounds)

    def body(state: WideMarketState, key: Array) -> tuple[WideMarketState, WideMarketStep]:
        after, outcome = _step(market, key, state, income=income, rent=rent)
        if checking():
            _raise_unless_converged(market, outcome.certificate, state.time)
        return after, outcome

    after, outcomes = jax.lax.scan(body, state, jax.random.split(key, rounds))
    if not checking():
        _raise_unless_converged(market, outcomes.certificate, state.time)
    return after, outcomes
