"""Episodes of societies, populations and wide markets, recorded for a replay.

Each function plays new episodes with the library's own steps and copies what happened: bids and winners from the
outcomes, payments from the flows, wealth from the accounts. Nothing is computed by other rules.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import deep_market, wide_market
from jaxmarket.deep_market import DeepMarket, Population, Terms
from jaxmarket.metrics import ACCOUNTS
from jaxmarket.rollouts import fresh_rollout
from jaxmarket.settlement import Settlement, TimeLimits, settle
from jaxmarket.society import Society, draw, reset
from jaxmarket.switches import standard_promotion
from jaxmarket.training.wide import WideSociety
from jaxmarket.types import Array, PyTree, Transition
from jaxmarket.validation import check_int
from jaxmarket.view import pictures
from jaxmarket.view.replay import Payment, ReplayEpisode, ReplaySale, ReplayStep

__all__ = ["bidder_names", "population_episode", "society_episode", "wide_episode", "wide_society_episode"]


def _first(tree: PyTree, t: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[t], tree)


# --- societies


def bidder_names(society: Society) -> tuple[str, ...]:
    """The names of a society's bidders, [A]: their primitive, and their number among its clones."""
    learn = society.learned is not None
    names = tuple(f"module {i}" for i in range(society.primitives)) if learn else pictures.action_names(society.env)
    if society.clones == 1:
        return names
    return tuple(f"{name} #{clone + 1}" for name in names for clone in range(society.clones))


@functools.partial(jax.jit, static_argnums=(0, 4, 6))
@standard_promotion
def _played(
    society: Society,
    key: Array,
    params: PyTree,
    env_params: PyTree,
    steps: int,
    gamma: float,
    time_limits: TimeLimits,
) -> tuple[Transition, Settlement, PyTree, Array]:
    """The rows of `evaluation.trace_episode`, their settlement, states of the environment [steps + 1], and actions."""
    rows = fresh_rollout(society, key, params, env_params, steps)
    # The same keys as in the rollout give the same states, up to the end of the episode.
    key_reset, key_roll = jax.random.split(key)
    draws = draw(society, jax.random.split(key_roll)[0], (steps,))

    def following(env_state: PyTree, now: tuple[Any, Array]) -> tuple[PyTree, PyTree]:
        draws, action = now
        return society.env.step(draws.key("env"), env_state, action, env_params).env_state, env_state

    first, taken = reset(society, key_reset, env_params)[0].env_state, jax.vmap(society.taken)(rows)
    last, states = jax.lax.scan(following, first, (draws, taken))
    states = jax.tree.map(lambda before, after: jnp.append(before, after[None], axis=0), states, last)
    return rows, settle(rows, gamma, time_limits=time_limits), states, taken


def society_episode(
    society: Society,
    params: PyTree,
    key: Array,
    env_params: PyTree,
    *,
    gamma: float,
    steps: int = 200,
    time_limits: TimeLimits = "bootstrap",
    q: np.ndarray | None = None,
    seed: str = "",
    label: str = "",
) -> ReplayEpisode:
    """Play one episode of a society.

    Args:
        society: the static description.
        params: bid-network parameters, leaves [M, ...].
        key: a typed PRNG key; equal keys give the auctions of `evaluation.trace_episode`.
        env_params: the environment's parameters.
        gamma: discount of the utilities.
        steps: largest number of auctions.
        time_limits: of the settlement.
        q: f [S, P], Q* of one-hot states, where it is known.
        seed, label: for the choice on the page; by default the label is made from the return.
    """
    played = _played(society, key, params, env_params, check_int("steps", steps), gamma, time_limits)
    rows, settlement, states, taken = jax.device_get(played)
    length = int(rows.done.argmax()) + 1 if rows.done.any() else steps
    names, bidders = bidder_names(society), society.bidders
    auctioneer, mint, environment = range(bidders, bidders + len(ACCOUNTS))
    windfalls = np.zeros((steps, 0)) if rows.windfalls is None else rows.windfalls

    def wealth(t: int) -> np.ndarray:
        return np.append(rows.accounts.wealth[t], [rows.accounts.auctioneer[t], np.nan, np.nan])

    def step(t: int) -> ReplayStep:
        outcome, obs = _first(rows.outcome, t), rows.obs[t]
        winner, owner = int(outcome.winner), int(rows.owner[t])
        buyer, seller = (auctioneer if account < 0 else account for account in (winner, owner))
        state = _first(states, t)
        # As in `metrics.ledger`: the mint pays the part of a payout that exceeds the price.
        payments = [
            Payment("price", buyer, seller, float(rows.price[t])),
            Payment("subsidy", mint, seller, float(rows.payout[t] - rows.price[t])),
            Payment("reward", environment, buyer, float(rows.reward[t])),
            *(Payment("windfall", environment, a, float(paid)) for a, paid in enumerate(windfalls[t])),
        ]
        always = ("price",) if winner >= 0 else ()
        known = None
        if q is not None and obs.size == len(q) and obs.sum() == 1:
            known = np.repeat(q[int(obs.argmax())], society.clones)
        text = pictures.text(society.env, state, obs)
        reached = {}
        if t + 1 == length:
            after, seen = _first(states, t + 1), rows.next_obs[t]
            reached["reached"] = pictures.text(society.env, after, seen)
            reached["reached_picture"] = pictures.picture(society.env, after, seen)
        sale = ReplaySale(
            good=text if text.startswith("state ") else "the state",
            bids=np.where(outcome.eligible, outcome.bids, np.nan),
            winner=None if winner < 0 else winner,
            seller=seller,
            price=float(rows.price[t]),
            action=pictures.action_text(society.env, np.asarray(taken[t])),
            q=known,
            notes={int(a): "not eligible" for a in np.flatnonzero(~outcome.eligible)},
        )
        return ReplayStep(
            sales=(sale,),
            payments=tuple(p for p in payments if p.amount or p.kind in always),
            wealth=wealth(t),
            reward=float(rows.reward[t] + windfalls[t].sum()),
            utility=float(settlement.utility[t]) if winner >= 0 else math.nan,
            estimated=bool(settlement.estimated[t]),
            state=text,
            picture=pictures.picture(society.env, state, obs),
            numbers=obs,
            **reached,
            end="terminated" if rows.terminated[t] else "truncated" if rows.truncated[t] else "",
        )

    opening = np.append(np.zeros(bidders + 1), [np.nan, np.nan])
    return ReplayEpisode(
        accounts=(*names, *ACCOUNTS),
        agents=bidders,
        opening=opening,
        steps=tuple(map(step, range(length))),
        seed=seed,
        label=label or f"return {rows.episode_return[length - 1]:.3g}",
        groups=np.arange(bidders) // society.clones,
    )


# --- deep markets


@functools.partial(jax.jit, static_argnums=0)
@standard_promotion
def _deep_step(market: DeepMarket, key: Array, state: Any, env_params: PyTree, terms: Terms) -> tuple[Any, ...]:
    """A step, all bids and intended actions before it, and whether the episode ended."""
    after, happened = deep_market.step(market, key, state, env_params, terms)
    # Bids that a markup fixes at entry are known after the step.
    population = state.population.replace(offer=after.population.offer)
    outcome, _, _ = deep_market.forward(market, key, population, state.obs, state.env_state, env_params, terms)
    actions = jax.vmap(market.representation.act, (0, None))(population.agents, state.obs[0])
    return after, happened, _first(outcome, 0), actions


def population_episode(
    market: DeepMarket,
    population: Population,
    key: Array,
    env_params: PyTree,
    *,
    terms: Terms | None = None,
    steps: int = 200,
    seed: str = "",
    label: str = "",
) -> ReplayEpisode:
    """Play one episode of a deep market with the agents of a population, without births and deaths.

    The market has one instance, in which every agent has the share of its wealth that limits its bids in an instance of
    ``market``, so that agents bid as they did there.

    Args:
        market: the static description.
        population: its agents; an axis of seeds is not expected.
        key: a typed PRNG key.
        env_params: the environment's parameters.
        terms: as in `deep_market.step`; exploration does not apply.
        steps: largest number of auctions.
        seed, label: for the choice on the page; by default the label is made from the return.

    Raises:
        ValueError: the market has consumers, or sells states to random agents (no property rights).
    """
    if market.consumers or not market.property_rights:
        raise ValueError(
            "market: expected one without consumers and with property rights; replays show sales between agents only"
        )
    terms = (terms or Terms()).replace(exploration=None)
    one = dataclasses.replace(market, instances=1)
    shared = population.replace(wealth=population.wealth / market.instances)
    key, key_init = jax.random.split(key)
    state = jax.jit(deep_market.init, static_argnums=0)(one, key_init, env_params, shared)
    slots, steps = market.capacity, check_int("steps", steps)
    auctioneer, mint, environment = slots, slots + 1, slots + 2
    actions = pictures.action_names(market.env)
    living = zip(np.asarray(population.ident), np.asarray(population.alive), strict=True)
    names = [f"agent {ident}" if alive else "free slot" for ident, alive in living]
    balances = np.asarray(state.population.wealth, np.float64)
    opening = np.append(balances, [0.0, np.nan, np.nan])
    # The auctioneer's account is the sum of its flows; a deep market keeps no balance of it.
    balance, rows, winners, payouts, ended, total = 0.0, [], [], [], "", 0.0
    for t in range(steps):
        after, happened, outcome, intended = jax.device_get(
            _deep_step(one, jax.random.fold_in(key, t), state, env_params, terms)
        )
        flows, statistics = happened.flows, happened.statistics
        winner = int(happened.wins.argmax()) if happened.wins.any() else -1
        owner = int(state.owner[0])
        seller = auctioneer if owner < 0 else owner
        price, reward, rent = float(flows["sales"]), float(flows["reward"]), -float(flows["rent"])
        payments = [
            Payment("price", winner, seller, price),
            Payment("subsidy", mint, seller, float(flows["subsidy"])),
            Payment("reward", environment, winner, reward),
            Payment("rent", winner, auctioneer, rent),
        ]
        payments = [p for p in payments if winner >= 0 and (p.amount or p.kind == "price")]
        wealth = np.append(np.asarray(after.population.wealth, np.float64), [np.nan, np.nan, np.nan])
        paid = ReplayStep((), tuple(payments), wealth, reward).moved()
        taxes = -float(flows["wealth_tax"] + flows["compute_tax"])
        charges = None
        if abs(taxes) > np.finfo(np.float32).eps * np.abs(balances).sum():  # less is the rounding of the accounts
            # What agents paid beside the sale; flows name only the sum, to which these amounts must add up.
            charges = np.zeros(len(wealth))
            charges[:slots] = balances + paid[:slots] - wealth[:slots]
            charges[auctioneer] = -taxes
            _check_sum("taxes", charges[:slots].sum(), taxes, np.abs(balances).sum())
        balance += paid[auctioneer] + taxes
        wealth[auctioneer], balances = balance, wealth[:slots]
        obs = np.asarray(state.obs[0])
        env_state = _first(jax.device_get(state.env_state), 0)
        if statistics.episodes:
            ended = "terminated" if statistics.terminated else "truncated"
        text = pictures.text(market.env, env_state, obs)
        bids = np.where(outcome.eligible, outcome.bids, np.nan)
        sale = ReplaySale(
            good=text if text.startswith("state ") else "the state",
            bids=bids,
            winner=None if winner < 0 else winner,
            seller=seller,
            price=price,
            action=actions[int(intended[winner])] if winner >= 0 else "a random action",
        )
        rows.append(
            ReplayStep(
                sales=(sale,),
                payments=tuple(payments),
                wealth=wealth,
                reward=reward,
                state=text,
                picture=pictures.picture(market.env, env_state, obs),
                numbers=obs,
                charges=charges,
                end=ended,
            )
        )
        winners.append(winner)
        payouts.append(price + float(flows["subsidy"]))
        total += reward
        state = after
        if ended:
            break
    steps_ = _with_utilities(rows, winners, payouts, terminated=ended == "terminated")
    return ReplayEpisode(
        accounts=(*names, *ACCOUNTS),
        agents=slots,
        opening=opening,
        steps=steps_,
        seed=seed,
        label=label or f"reward {total:.3g}",
    )


def _check_sum(what: str, found: float, expected: float, scale: float) -> None:
    if abs(found - expected) > 1e-4 * max(1.0, scale):
        raise ValueError(f"{what}: the accounts changed by {found}, the flows say {expected}; report this error")


def _with_utilities(
    rows: Sequence[ReplayStep], winners: Sequence[int], payouts: Sequence[float], *, terminated: bool
) -> tuple[ReplayStep, ...]:
    """Steps with the utility of their winner: reward + payout of the next sale - price.

    There is no discount in a deep market. The last purchase of an episode that did not terminate has no proceeds yet,
    so its utility is unknown, as is that of a state that found no buyer.
    """
    found = []
    for t, row in enumerate(rows):
        last = t + 1 == len(rows)
        if winners[t] < 0 or (last and not terminated) or (not last and winners[t + 1] < 0):
            found.append(row)
            continue
        proceeds = 0.0 if last else payouts[t + 1]
        found.append(dataclasses.replace(row, utility=row.reward + proceeds - row.sales[0].price))
    return tuple(found)


# --- wide markets


def _wide_payments(
    before: np.ndarray, happened: Any, market_account: int, subsidy_account: int, environment: int
) -> list[Payment]:
    """The payments of a round: buyers pay the owner of a good if it has one, else the market.

    Args:
        before: f [N, G], holdings before the round.
        happened: the `wide_market.WideMarketStep`.
        market_account, subsidy_account, environment: accounts beside the agents'.
    """
    prices, payout, bundles = (np.asarray(x, np.float64) for x in (happened.prices, happened.payout, happened.bundles))
    payments: list[Payment] = []
    for good in np.flatnonzero(before.sum(0) > 0):
        owners, buyers = np.flatnonzero(before[:, good] > 0), np.flatnonzero(bundles[:, good] > 0)
        seller = int(owners[0]) if len(owners) == 1 else market_account
        for buyer in buyers:
            payments.append(Payment("price", int(buyer), seller, prices[good] * bundles[buyer, good]))
        for owner in owners:
            if len(owners) > 1:
                payments.append(Payment("sale", market_account, int(owner), prices[good] * before[owner, good]))
            minted = (payout[good] - prices[good]) * before[owner, good]
            if minted:
                payments.append(Payment("subsidy", subsidy_account, int(owner), minted))
    for kind in ("reward", "income"):
        amounts = np.asarray(happened.flows[kind], np.float64)
        payments += [Payment(kind, environment, int(n), amounts[n]) for n in np.flatnonzero(amounts)]
    rent = np.asarray(happened.flows["rent"], np.float64)
    return payments + [Payment("rent", int(n), market_account, -rent[n]) for n in np.flatnonzero(rent)]


_WIDE_ACCOUNTS = ("market", "mint", "environment")


@functools.partial(jax.jit, static_argnums=0)
def _wide_step(market: wide_market.WideMarket, key: Array, state: Any, income: Any, rent: Any) -> tuple[Any, Any]:
    return wide_market.step(market, key, state, income=income, rent=rent)


def wide_episode(
    market: wide_market.WideMarket,
    key: Array,
    state: wide_market.WideMarketState,
    *,
    rounds: int = 60,
    income: Any = None,
    rent: Any = None,
    agents: Sequence[str] | None = None,
    goods: Sequence[str] | None = None,
    seed: str = "",
    label: str = "",
) -> ReplayEpisode:
    """Run rounds of a wide market: what each agent buys, prices, wealth.

    Args:
        market: the static description, hashable.
        key: a typed PRNG key.
        state: the first state.
        rounds: number of rounds.
        income, rent: as in `wide_market.step`.
        agents, goods: their names.
        seed, label: for the choice on the page.
    """
    count, kinds = state.holdings.shape
    named = tuple(agents or [f"agent {n + 1}" for n in range(count)])
    kind_names = tuple(goods or [f"good {g + 1}" for g in range(kinds)])
    steps = []
    opening = np.append(np.asarray(state.wealth, np.float64), [np.nan] * 3)
    for t in range(check_int("rounds", rounds)):
        before = np.asarray(state.holdings)
        state, happened = jax.device_get(_wide_step(market, jax.random.fold_in(key, t), state, income, rent))
        sales = []
        for good in np.flatnonzero(before.sum(0) > 0):
            owners, buyers = np.flatnonzero(before[:, good] > 0), np.flatnonzero(happened.bundles[:, good] > 0)
            sales.append(
                ReplaySale(
                    good=kind_names[good],
                    bids=np.where(happened.bundles[:, good] > 0, happened.bundles[:, good], np.nan),
                    winner=int(buyers[0]) if len(buyers) == 1 else None,
                    seller=int(owners[0]) if len(owners) == 1 else count,
                    price=float(happened.prices[good]),
                    quantities=True,
                )
            )
        steps.append(
            ReplayStep(
                sales=tuple(sales),
                payments=tuple(_wide_payments(before, happened, count, count + 1, count + 2)),
                wealth=np.append(np.asarray(state.wealth, np.float64), [np.nan] * 3),
                reward=float(happened.flows["reward"].sum()),
            )
        )
    return ReplayEpisode(
        (*named, *_WIDE_ACCOUNTS), count, opening, tuple(steps), seed, label or f"{rounds} rounds", unit="round"
    )


def wide_society_episode(
    society: WideSociety,
    params: PyTree,
    key: Array,
    env_params: PyTree,
    *,
    steps: int = 60,
    seed: str = "",
    label: str = "",
) -> ReplayEpisode:
    """Play one episode of a trained wide market from raw pieces, without exploration.

    Wealth is shown as the change since the first round. The credit with which all bidders begin is left out; it is
    just large enough not to limit a bid, because the rounding of a larger one would blur the payments.

    Args:
        society: the market.
        params: of the bidding policies, leaves [L * M, ...].
        key: a typed PRNG key.
        env_params: the environment's parameters.
        steps: largest number of rounds.
        seed, label: for the choice on the page; by default the label is made from the return.
    """
    lines = society.lines
    state = jax.device_get(_opened(society, params))
    worker, limit = state.agents, int(env_params.max_steps_in_episode)
    steps = min(check_int("steps", steps), limit)
    count, credit = len(worker.line), 2.0 ** math.ceil(math.log2(1 + 2 * steps * np.abs(worker.values).max()))
    state = state.replace(wealth=np.full_like(state.wealth, credit))
    names = _worker_names(society, np.asarray(worker.line), np.asarray(worker.operation))
    rounds, total = [], 0.0
    for t in range(steps):
        before = np.asarray(state.holdings)
        state, happened = jax.device_get(_line_step(society, jax.random.fold_in(key, t), state, env_params))
        sales = []
        for good in np.flatnonzero(before.sum(0) > 0):
            line, stage = divmod(int(good), lines.stages)
            winner = int(happened.bundles[:, good].argmax())
            sales.append(
                ReplaySale(
                    good=f"the piece of line {line + 1} (stage {stage + 1} of {lines.stages})",
                    bids=np.where(np.asarray(worker.line) == line, worker.values[:, stage], np.nan),
                    winner=winner,
                    seller=int(before[:, good].argmax()),
                    price=float(happened.prices[good]),
                    action=f"operation {int(worker.operation[winner]) + 1}",
                )
            )
        reward = float(happened.flows["reward"].sum())
        total += reward
        pieces = before.sum(0).reshape(lines.lines, lines.stages)
        rounds.append(
            ReplayStep(
                sales=tuple(sales),
                payments=tuple(_wide_payments(before, happened, count, count + 1, count + 2)),
                wealth=np.append(np.asarray(state.wealth, np.float64) - credit, [np.nan] * 3),
                reward=reward,
                state="stages of the pieces: " + ", ".join(str(int(p.argmax()) + 1) for p in pieces),
                picture=pictures.stages(pieces),
                end="truncated" if t + 1 == limit else "",
            )
        )
    return ReplayEpisode(
        accounts=(*names, *_WIDE_ACCOUNTS),
        agents=count,
        opening=np.append(np.zeros(count), [np.nan] * 3),
        steps=tuple(rounds),
        seed=seed,
        label=label or f"reward {total:.3g} in {steps} rounds",
        unit="round",
        groups=np.arange(count) // society.clones,
    )


@functools.partial(jax.jit, static_argnums=0)
def _opened(society: WideSociety, params: PyTree) -> wide_market.WideMarketState:
    return society.open(society.bids(params))


@functools.partial(jax.jit, static_argnums=0)
def _line_step(society: WideSociety, key: Array, state: Any, env_params: PyTree) -> tuple[Any, Any]:
    return wide_market.step(society.market(env_params), key, state)


def _worker_names(society: WideSociety, line: np.ndarray, operation: np.ndarray) -> tuple[str, ...]:
    names = [f"line {a + 1} op {b + 1}" for a, b in zip(line, operation, strict=True)]
    if society.clones == 1:
        return tuple(names)
    return tuple(f"{name} #{i % society.clones + 1}" for i, name in enumerate(names))
