"""A reference implementation of the market in plain Python: one dict of accounts, one loop over time.

Written from the papers (Chang et al. 2020) and the design, not from the library's code; it imports neither JAX nor
the library. Bidders are the accounts 0, 1, ...; the house, the auctioneer and the environment have one each, every
payment takes from one account what it gives to another, and so a ledger always sums to zero.
"""

import dataclasses
import math

AUCTIONEER, MINT, ENVIRONMENT = "auctioneer", "mint", "environment"


@dataclasses.dataclass
class Auction:
    """One call for bids."""

    bids: list[float]
    eligible: list[bool]
    forced: int | None = None  # the winner, where exploration (or a random tie) chose it and not the bids


@dataclasses.dataclass
class Row:
    """One auction and the environment's response to its winner."""

    auction: Auction
    reward: float
    duration: float
    terminated: bool
    truncated: bool
    bootstrap: Auction | None = None  # the auction that would be held for the state reached, if it is to be estimated


@dataclasses.dataclass
class Sale:
    winner: int
    own: float
    other: float


@dataclasses.dataclass
class Entry:
    """The results of one row."""

    winner: int | None
    owner: int | str
    price: float
    payout: float
    ledger: dict
    resold_for: float = math.nan  # what the state bought here was worth to the next buyer
    estimated: bool = False
    utility: float | None = None  # of the purchase; None if the state was not sold


def hold(auction: Auction, reserve: float = 0.0) -> Sale | None:
    """The winner: the highest eligible bid, ties to the lowest id; None without an eligible bidder."""
    entrants = [i for i, bid in enumerate(auction.bids) if auction.eligible[i] and math.isfinite(bid)]
    if not entrants:
        return None
    winner = auction.forced
    if winner is None:
        winner = entrants[0]
        for i in entrants:
            if auction.bids[i] > auction.bids[winner]:
                winner = i
    if winner not in entrants:
        raise ValueError(f"bidder {winner} won and was not eligible")
    others = [auction.bids[i] for i in entrants if i != winner]
    return Sale(winner, auction.bids[winner], max(others) if others else reserve)


def price_of(mechanism: str, sale: Sale | None) -> float:
    """The price that the buyer pays."""
    if sale is None or mechanism == "env":
        return 0.0
    if mechanism == "bb":
        return sale.own
    if mechanism in ("vickrey", "ccv"):
        return sale.other
    raise ValueError(mechanism)


def proceeds_of(mechanism: str, sale: Sale | None) -> float:
    """The payout that the seller receives."""
    if sale is None or mechanism == "env":
        return 0.0
    if mechanism == "bb":
        return sale.own
    if mechanism == "vickrey":
        return max(sale.own, sale.other)
    if mechanism == "ccv":
        return sale.other
    raise ValueError(mechanism)


def pay(ledger: dict, source: int | str, target: int | str, amount: float) -> None:
    ledger[source] -= amount
    ledger[target] += amount


def run(
    rows: list[Row],
    mechanism: str,
    discount: float,
    bidders: int,
    *,
    time_limits: str = "bootstrap",
    reserve: float = 0.0,
    owner: int | str = AUCTIONEER,
    ledger: dict | None = None,
) -> tuple[list[Entry], int | str]:
    """Compute the accounts and utilities of one market instance.

    ``owner`` and ``ledger`` carry a market on from an earlier call. Returns an entry per row and who owns the last
    state.
    """
    ledger = dict(ledger or dict.fromkeys((*range(bidders), AUCTIONEER, MINT, ENVIRONMENT), 0.0))
    entries: list[Entry] = []
    unsold: Entry | None = None  # the purchase of this episode (and call) that waits for its payout
    for row in rows:
        sale = hold(row.auction, reserve)
        winner = None if sale is None else sale.winner
        price, proceeds = price_of(mechanism, sale), proceeds_of(mechanism, sale)
        if sale is not None:
            pay(ledger, winner, MINT, price)
            pay(ledger, MINT, owner, proceeds)
        if unsold is not None:
            unsold.resold_for = proceeds
        actor = AUCTIONEER if winner is None else winner
        pay(ledger, ENVIRONMENT, actor, row.reward)
        entry = Entry(winner, owner, price, proceeds, dict(ledger))
        entries.append(entry)

        owner, unsold = actor, entry
        if row.terminated:  # wins over truncated: there is nothing left to sell
            entry.resold_for = 0.0
        elif row.truncated or row is rows[-1]:  # the sale would have happened, but is not in these books
            if time_limits == "bootstrap":
                entry.resold_for = proceeds_of(mechanism, hold(row.bootstrap, reserve))
                entry.estimated = True
            else:
                entry.resold_for = 0.0
        if row.terminated or row.truncated:  # the next state is another episode's, and the house's
            owner, unsold = AUCTIONEER, None
    for row, entry in zip(rows, entries, strict=True):
        if entry.winner is not None:
            entry.utility = row.reward + discount**row.duration * entry.resold_for - entry.price
    return entries, owner


def assert_frequency(hits: int, draws: int, probability: float, sigmas: float = 5) -> None:
    """A binomial count within a number of standard deviations of its mean; exactly there if nothing is random."""
    spread = sigmas * math.sqrt(draws * probability * (1 - probability))
    assert abs(hits - draws * probability) <= spread, (hits, draws, probability)
