"""The replay page of a host market, from its log."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from os import PathLike

import numpy as np

from jaxmarket.host.ledger import AUCTIONEER, MINT, WORLD, Entry
from jaxmarket.host.records import Auction, Bid, Call, Record, StateText, read_log
from jaxmarket.validation import check_int
from jaxmarket.view.replay import Payment, Replay, ReplayEpisode, ReplaySale, ReplayStep

__all__ = ["replay"]

_ACCOUNTS = (AUCTIONEER, MINT, WORLD)
_KINDS = {"sale": "price", "mint": "subsidy"}
"""Names on the page of the entries that are called differently there."""


@dataclasses.dataclass
class _Logged:
    """The records of one episode."""

    states: dict[int, str] = dataclasses.field(default_factory=dict)  # by auction
    bids: defaultdict[int, list[Bid]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    calls: defaultdict[int, list[Call]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    entries: defaultdict[int, list[Entry]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    auctions: list[Auction] = dataclasses.field(default_factory=list)


def replay(source: str | PathLike[str] | Iterable[Record], *, title: str = "Host market", episodes: int = 20) -> Replay:
    """The auctions of a host market as a page: in a notebook it shows itself, and ``save`` writes a file.

    States are shown if the market was given a function ``text`` for them, as in ``Market(..., log=records.append,
    text=str)``.

    Args:
        source: the path of a log that `json_lines` wrote, or its records.
        title: of the page.
        episodes: the most episodes to show of each market in the log: the first, the last, and some between them.

    Raises:
        ValueError: the log cannot be read, or contains no auction.
    """
    records = read_log(source) if isinstance(source, str | PathLike) else list(source)
    episodes = check_int("episodes", episodes)
    markets = _markets(records)
    found = []
    for number, market in enumerate(markets, 1):
        seed = f"market {number}" if len(markets) > 1 else ""
        every = _episodes(market, seed)
        shown = np.unique(np.round(np.linspace(0, len(every) - 1, min(episodes, len(every)))).astype(int))
        found += [every[i] for i in shown]
    if not found:
        raise ValueError("source: the log contains no auction; run an episode with log=")
    auctions = sum(isinstance(record, Auction) for record in records)
    return Replay(title, f"{len(found[0].accounts) - len(_ACCOUNTS)} agents · {auctions} auctions", tuple(found))


def _markets(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each market: a log may be continued by another one, which begins with new endowments."""
    markets: list[list[Record]] = [[]]
    for record in records:
        begins = isinstance(record, Entry) and record.kind == "endowment"
        if begins and any(not isinstance(other, Entry) or other.kind != "endowment" for other in markets[-1]):
            markets.append([])
        markets[-1].append(record)
    return [market for market in markets if any(isinstance(record, Auction) for record in market)]


def _episodes(records: Sequence[Record], seed: str) -> list[ReplayEpisode]:
    names: dict[str, None] = {}
    logged: defaultdict[int, _Logged] = defaultdict(_Logged)
    for record in records:
        episode = logged[record.episode]
        match record:
            case StateText():
                episode.states[record.step] = record.text
            case Bid():
                names[record.agent] = None
                episode.bids[record.step].append(record)
            case Call():
                episode.calls[record.step].append(record)
            case Auction():
                episode.auctions.append(record)
            case Entry():
                episode.entries[record.step].append(record)
                names |= dict.fromkeys(name for name in (record.payer, record.payee) if name not in _ACCOUNTS)
    accounts = {name: place for place, name in enumerate([*names, *_ACCOUNTS])}
    # Exact sums, as in the ledger: an account's entries are added up once for each step.
    paid: list[list[float]] = [[] for _ in accounts]
    _book(paid, logged[0].entries[0] if 0 in logged else [], accounts)
    found = []
    for number in sorted(logged):
        if logged[number].auctions:
            found.append(_episode(number, logged[number], accounts, paid, seed))
    return found


def _book(paid: list[list[float]], entries: Iterable[Entry], accounts: dict[str, int]) -> None:
    for entry in entries:
        if entry.payer != entry.payee:
            paid[accounts[entry.payer]].append(-entry.amount)
            paid[accounts[entry.payee]].append(entry.amount)


def _wealth(paid: list[list[float]]) -> np.ndarray:
    """The balances of the agents and the auctioneer; NaN of the mint and the world."""
    balances = [math.fsum(amounts) for amounts in paid[:-2]]
    for amounts, balance in zip(paid, balances, strict=False):
        amounts[:] = [balance]
    return np.array([*balances, math.nan, math.nan])


def _episode(
    number: int, logged: _Logged, accounts: dict[str, int], paid: list[list[float]], seed: str
) -> ReplayEpisode:
    agents = len(accounts) - len(_ACCOUNTS)
    opening = _wealth(paid)
    steps = []
    for place, auction in enumerate(logged.auctions):
        step = auction.step
        bids, notes = np.full(agents, np.nan), {}
        for bid in logged.bids[step]:
            if bid.offer is not None:
                bids[accounts[bid.agent]] = bid.offer
            elif bid.reason:
                notes[accounts[bid.agent]] = "no bid" if bid.reason == "silent" else bid.reason
        for call in logged.calls[step]:
            if call.what == "act" and call.reason:
                notes[accounts[call.agent]] = f"failed to act: {call.reason}"
                bids[accounts[call.agent]] = np.nan
        entries = logged.entries[step]
        _book(paid, entries, accounts)
        last = place + 1 == len(logged.auctions)
        following = None if last else logged.auctions[place + 1]
        utility = math.nan
        if auction.winner is not None and (auction.done or (following is not None and following.winner is not None)):
            proceeds = 0.0 if auction.done or following is None else following.payout
            utility = auction.reward + proceeds - auction.price - auction.cost
        end = "done" if auction.done else "unsold" if auction.winner is None else "cut" if last else ""
        sale = ReplaySale(
            good="the state",
            bids=bids,
            winner=None if auction.winner is None else accounts[auction.winner],
            seller=accounts[auction.seller],
            price=auction.price,
            notes=notes,
        )
        steps.append(
            ReplayStep(
                sales=(sale,),
                payments=tuple(
                    Payment(_KINDS.get(e.kind, e.kind), accounts[e.payer], accounts[e.payee], e.amount) for e in entries
                ),
                wealth=_wealth(paid),
                reward=auction.reward,
                utility=utility,
                state=logged.states.get(step, ""),
                reached=logged.states.get(step + 1, "") if last else "",
                end=end,
            )
        )
    total = math.fsum(auction.reward for auction in logged.auctions)
    label = f"episode {number}: reward {total:.3g}"
    return ReplayEpisode(tuple(accounts), agents, opening, tuple(steps), seed, label)
