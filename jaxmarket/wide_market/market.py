"""Wide markets: the world is a vector of goods, and whoever owns a bundle transforms it.

Definition 2.2 and Algorithm 2 of Sudhir and Tran-Thanh (2025). A deep market sells the whole world to one agent at a
time. Here everybody acts at once, each on what it owns. The printed algorithm has slips (it uses old holdings where new
ones are meant, and never updates them); a step is

    p, X = equilibrium(Σ H, min(v, w))      prices and bundles of all that is held
    w   += p · (H - X)                      buyers pay, owners are paid
    H    = f(X)                             everybody transforms what it now owns
    w   += R(X, H)                          and is rewarded

Goods change hands but do not vanish, ΣX = ΣH, and what buyers pay is what owners receive (but for auctions that mint
money, which the books name). Money changes by rewards, income and rent alone. Wealth stays >= 0 while rewards do,
except for rounding (about 1e-7 of the payments): no agent pays more than it has.

In some markets a solver finds no equilibrium within its iterations. Goods and money are still conserved, and the
`Books` count such rounds: ``rounds.books.unconverged.sum()``. `WideMarket.unconverged` can turn them into errors.

A deep market is the case of one indivisible good, the world, under `equilibria.SealedBids`.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import core

from jaxmarket.checking import check, check_conserved, check_finite, checking
from jaxmarket.switches import entry_point
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import numbers, shown, whole
from jaxmarket.wide_market.equilibrium import Certificate, Equilibrium, Solver

__all__ = ["Books", "Economy", "Produced", "Round", "WideMarket", "individually", "open_market", "run", "step"]


class Produced(struct.PyTreeNode):
    """What agents made of their bundles."""

    holdings: Array  # f [N, G] what they own now, not negative
    reward: Array  # f [N] what it earned each of them
    world: PyTree  # whatever else changes


class Production(Protocol):
    """All agents' production functions."""

    def __call__(self, key: Array, agents: PyTree, world: PyTree, bundles: Array) -> Produced:
        """Transform bundles f [N, G]; ``key`` is used up."""
        ...


def individually(
    transform: Callable[[PyTree, Array], Array], reward: Callable[[PyTree, Array, Array], Array] | None = None
) -> Production:
    """Production functions f and rewards R, written for one agent.

    Args:
        transform: f, ``(agent, bundle [G]) -> holdings [G]``, not negative. A consumer's is zero.
        reward: R, ``(agent, bundle [G], holdings [G]) -> f []``; nothing by default.
    """

    def produce(key: Array, agents: PyTree, world: PyTree, bundles: Array) -> Produced:
        holdings = jax.vmap(transform)(agents, bundles)
        earned = jnp.zeros(bundles.shape[0], bundles.dtype)
        if reward is not None:
            earned = jax.vmap(reward)(agents, bundles, holdings)
        return Produced(holdings=holdings, reward=earned, world=world)

    return produce


@dataclasses.dataclass(frozen=True)
class WideMarket:
    """The static description of a wide market; frozen, compares by value.

    Attributes:
        valuation: ``(agent, world) -> valuation`` of one agent, from `jaxmarket.wide_market.valuations` or like them.
        production: what agents make of their bundles; `individually` makes one of functions of one agent.
        solver: finds prices and bundles, from `jaxmarket.wide_market.equilibrium` or like them.
        unconverged: the response to a certificate that is not ``converged``: ``"count"`` counts it in the `Books` and
            trades at the prices found, ``"raise"`` raises a ``ValueError``. A compiled program can raise only if
            `jaxmarket.checking.checked` compiled it; tracing other programs with ``"raise"`` is an error.

    Raises:
        ValueError: ``unconverged`` is neither ``"count"`` nor ``"raise"``.

    Consumers are agents whose production leaves nothing, and who live on their ``income``.
    """

    valuation: Callable[[PyTree, PyTree], PyTree]
    production: Production
    solver: Solver
    unconverged: Literal["count", "raise"] = "count"

    def __post_init__(self) -> None:
        if self.unconverged not in ("count", "raise"):
            raise ValueError(f'unconverged: expected "count" or "raise", got {shown(self.unconverged)}')


class Economy(struct.PyTreeNode):
    """A running wide market."""

    agents: PyTree  # leaves [N, ...]
    holdings: Array  # f [N, G]
    wealth: Array  # f [N]
    world: PyTree  # what is no good and belongs to nobody
    prices: Array  # f [G] of the last round, NaN before the first
    time: Array  # i32 [] rounds so far


class Books(struct.PyTreeNode):
    """Movements of money in a round. Money changes by ``reward + subsidy + income - rent`` and by nothing else."""

    purchase: Array  # f [N] paid for bundles
    sale: Array  # f [N] received for holdings, those that came back included
    reward: Array  # f [N]
    income: Array  # f [N]
    rent: Array  # f [N]
    subsidy: Array  # f [] minted by auctions: sales - purchases
    unconverged: Array  # i32 [] 1 if the solver's certificate of the round is not converged


class Round(struct.PyTreeNode):
    """What one step did."""

    prices: Array  # f [G]
    payout: Array  # f [G] what owners received for a unit
    bundles: Array  # f [N, G] what agents owned after trade
    holdings: Array  # f [N, G] what they had made of it
    books: Books
    certificate: Certificate


@entry_point
def open_market(
    agents: PyTree, holdings: Array, wealth: Array | float, world: PyTree = None, *, prices: Array | None = None
) -> Economy:
    """Open a market.

    Args:
        agents: leaves [N, ...].
        holdings: f [N, G] who owns what.
        wealth: f [N] or f [].
        world: whatever else there is.
        prices: f [G], of a round before, if there was one.

    Raises:
        ValueError: no agents or goods, another number of agents in a leaf, or negative holdings or wealth.
    """
    holdings = numbers("holdings", holdings)
    if holdings.ndim != 2 or 0 in holdings.shape:
        raise ValueError(f"holdings: expected [agents, goods], at least one of each, got shape {holdings.shape}")
    n, goods = holdings.shape
    for leaf in jax.tree.leaves(agents):
        if not isinstance(leaf, jax.Array | np.ndarray) or leaf.shape[:1] != (n,):
            raise ValueError(
                f"agents: expected leaves [{n}, ...], as many as holdings has rows, got {getattr(leaf, 'shape', leaf)}"
            )
    wealth = numbers("wealth", wealth)
    if wealth.shape not in ((), (n,)):
        raise ValueError(f"wealth: expected one for each of {n} agents, or one for all, got shape {wealth.shape}")
    wealth = jnp.broadcast_to(wealth, (n,))
    for field, value in (("holdings", holdings), ("wealth", wealth)):
        # Values of traced arrays are not known here; whoever traces answers for them.
        if not isinstance(value, core.Tracer) and not bool(jnp.all(value >= 0)):
            raise ValueError(f"{field}: expected numbers >= 0, got {float(jnp.min(value))}; nobody begins in debt")
    return Economy(
        agents=agents,
        holdings=holdings,
        wealth=wealth,
        world=world,
        prices=jnp.full(goods, jnp.nan, real()) if prices is None else numbers("prices", prices, (goods,)),
        time=jnp.zeros((), jnp.int32),
    )


@entry_point
def step(
    market: WideMarket,
    key: Array,
    economy: Economy,
    *,
    income: Array | float | None = None,
    rent: Array | float | None = None,
) -> tuple[Economy, Round]:
    """One round: trade, produce, be rewarded. Pure; jit it, vmap it, differentiate it.

    Args:
        market: the static description.
        key: a typed PRNG key, used up.
        economy: as it is.
        income: f [N] or f [], paid to everybody at the end, f. e. to consumers.
        rent: f [] in [0, 1], the share of its wealth that whoever owned something after trade loses at the end (an
            option the paper names, against hold-outs), before incomes. Of divisible goods a crumb counts as something.

    Returns:
        The economy after it, and what happened.

    Raises:
        ValueError: the solver did not converge, and ``market.unconverged`` is ``"raise"``.
    """
    after, round_ = _step(market, key, economy, income=income, rent=rent)
    _insist(market, round_, economy.time)
    return after, round_


def _step(
    market: WideMarket, key: Array, economy: Economy, *, income: Array | float | None, rent: Array | float | None
) -> tuple[Economy, Round]:
    e = economy
    key_trade, key_produce = jax.random.split(key)
    valuations = jax.vmap(market.valuation, (0, None))(e.agents, e.world)
    found = market.solver(valuations, e.wealth, e.holdings, key=key_trade)
    bundles = found.bundles
    _check_trade(e, found)
    purchase, sale = bundles @ found.prices, e.holdings @ found.payout
    # What is owned before and after costs nothing, not even a rounding error: difference first.
    wealth = e.wealth + (e.holdings - bundles) @ found.prices + e.holdings @ (found.payout - found.prices)
    made = market.production(key_produce, e.agents, e.world, bundles)
    check_finite("reward", made.reward, "production must return numbers", step=e.time)
    check_finite("holdings", made.holdings, "production must return numbers", step=e.time)
    check(lambda: jnp.all(made.holdings >= 0), "holdings: production left less than nothing, step {step}", step=e.time)
    wealth = wealth + made.reward
    nothing = jnp.zeros_like(wealth)
    taken, paid = nothing, nothing
    if rent is not None:
        left = wealth - jnp.where((bundles > 0).any(1), rent * jnp.maximum(wealth, 0), 0)
        wealth, taken = left, wealth - left  # booked is what an account in fact became smaller by
    if income is not None:
        paid = jnp.broadcast_to(jnp.asarray(income, wealth.dtype), wealth.shape)
        wealth = wealth + paid
    books = Books(
        purchase=purchase,
        sale=sale,
        reward=made.reward,
        income=paid,
        rent=taken,
        subsidy=sale.sum() - purchase.sum(),
        unconverged=1 - found.certificate.converged.astype(jnp.int32),
    )
    after = e.replace(holdings=made.holdings, wealth=wealth, world=made.world, prices=found.prices, time=e.time + 1)
    flows = (made.reward.sum(), books.subsidy, paid.sum(), -taken.sum())
    check_conserved((e.wealth,), (wealth,), flows, (purchase, sale), step=e.time)
    return after, Round(
        prices=found.prices,
        payout=found.payout,
        bundles=bundles,
        holdings=made.holdings,
        books=books,
        certificate=found.certificate,
    )


def _check_trade(economy: Economy, found: Equilibrium) -> None:
    """What solvers promise: prices that are numbers, and bundles that add up to what there is."""
    if checking():
        step, remedy = economy.time, "the solver must return numbers; look at its certificate"
        check_finite("prices", found.prices, remedy, step=step)
        check_finite("payout", found.payout, remedy, step=step)
        check_finite("bundles", found.bundles, remedy, step=step)
        traded, supply = found.bundles.sum(0), economy.holdings.sum(0)
        worst = jnp.argmax(jnp.abs(traded - supply))
        check(
            lambda: (jnp.abs(traded - supply) <= 1e-4 * supply).all() & (found.bundles >= 0).all(),
            "bundles: the solver handed out {traded} of good {good} where there is {supply}, step {step}",
            traded=traded[worst],
            good=worst,
            supply=supply[worst],
            step=step,
        )


def _insist(market: WideMarket, rounds: Round, time: Array) -> None:
    """Raise at the first round that did not converge, if ``market.unconverged`` is ``"raise"``.

    Args:
        market: the market.
        rounds: one round, or rounds along a leading axis.
        time: i32 [], the step of the first round.
    """
    if market.unconverged != "raise":
        return
    certificate = rounds.certificate
    message = (
        "unconverged: the solver found no equilibrium in step {step} (excess demand {excess} of the supply, gap {gap} "
        "of welfare); give it more iterations or larger tolerances, or set unconverged='count'"
    )
    if checking():
        values = {"excess": certificate.excess, "gap": certificate.gap, "step": time}
        check(lambda: certificate.converged, message, **values)
    elif isinstance(certificate.converged, core.Tracer):
        raise ValueError(
            "unconverged: 'raise' has no effect in a compiled program; compile it with jaxmarket.checking.checked, or "
            "use 'count' and read books.unconverged"
        )
    else:
        good, excess, gap = (
            np.atleast_1d(value) for value in (certificate.converged, certificate.excess, certificate.gap)
        )
        if not good.all():
            first = int(np.argmin(good))
            raise ValueError(message.format(step=int(time) + first, excess=excess[first], gap=gap[first]))


@entry_point
def run(
    market: WideMarket,
    key: Array,
    economy: Economy,
    *,
    rounds: int,
    income: Array | float | None = None,
    rent: Array | float | None = None,
) -> tuple[Economy, Round]:
    """So many rounds: the economy, and every round with a leading axis [rounds]. See `step`.

    Raises:
        ValueError: ``rounds`` is less than 1; or the solver did not converge in a round, and ``market.unconverged`` is
            ``"raise"``.
    """
    rounds = whole("rounds", rounds)

    def body(economy: Economy, key: Array) -> tuple[Economy, Round]:
        after, round_ = _step(market, key, economy, income=income, rent=rent)
        if checking():
            _insist(market, round_, economy.time)
        return after, round_

    after, every = jax.lax.scan(body, economy, jax.random.split(key, rounds))
    if not checking():
        _insist(market, every, economy.time)
    return after, every
