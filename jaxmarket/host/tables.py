"""An episode and a market's wealth as tables, by rich."""

import math
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jaxmarket.host.ledger import HOUSE
from jaxmarket.host.market import Episode, Market

__all__ = ["episode_table", "wealth_table"]


def _short(state: Any) -> str:
    last = getattr(state, "last", state)
    text = " ".join(str(last).split())
    return text if len(text) <= 40 else text[:39] + "…"


def episode_table(episode: Episode, *, show: Callable[[Any], str] = _short, title: str | None = None) -> Table:
    """An episode, auction by auction: the state, who bid what, who won, who paid whom.

    Args:
        episode: as `Market.play` returned it.
        show: a state in a few characters; by default what was said last, cut at 40.
        title: above the table.
    """
    minted = any(step.auction.resale != step.auction.price for step in episode.steps)
    agents = [bid.agent for bid in episode.steps[0].bids]
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=title,
        caption="bids, at most the purse; · no bid; ! failed to act" + "; gets: with the mint" * minted,
    )
    table.add_column("t", justify="right")
    table.add_column("state", no_wrap=True)
    for column in (*agents, "wins", "pays", "to", *["gets"] * minted, "reward", "end"):
        table.add_column(escape(column), justify="right" if column in ("pays", "gets", "reward") else "left")
    for step in episode.steps:
        a = step.auction
        failed = {call.agent for call in step.calls if call.what == "act" and call.reason}
        cells = []
        for bid in step.bids:
            if bid.offer is None:
                cells.append("·" if bid.reason == "silent" else escape(bid.reason.split(":")[0]))
            else:
                text = f"{bid.offer:.3f}" + "!" * (bid.agent in failed)
                cells.append(f"[bold green]{text}[/]" if bid.agent == a.winner else text)
        table.add_row(
            str(a.step),
            escape(show(step.state)),
            *cells,
            escape(a.winner or "nobody"),
            f"{a.price:.3f}",
            escape(a.seller),
            *[f"{a.resale:.3f}"] * minted,
            f"{a.reward:.3f}",
            "ends" if a.done else "unsold" if a.winner is None else "",
        )
    table.add_row("", escape(show(episode.state)), *[""] * (len(table.columns) - 3), "cut" * (episode.end == "cut"))
    return table


def wealth_table(market: Market, *, title: str | None = None) -> Table:
    """What every agent and the house own, and where it came from."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=title,
        caption="sold: what others paid it, and the mint; won: auctions",
    )
    for column in ("agent", "began with", "rewards", "sold", "bought", "rent", "wealth", "won", ""):
        table.add_column(column, justify="left" if column in ("agent", "") else "right")
    entries = [e for e in market.ledger if e.payer != e.payee]
    for name in (*market.agents, HOUSE):
        got, paid = [e for e in entries if e.payee == name], [e for e in entries if e.payer == name]
        rent = [e.amount for e in got if e.kind == "rent"] + [-e.amount for e in paid if e.kind == "rent"]
        numbers = (
            math.fsum(e.amount for e in got if e.kind == "endowment"),
            math.fsum(e.amount for e in got if e.kind == "reward"),
            math.fsum(e.amount for e in got if e.kind in ("sale", "mint")),
            0.0 - math.fsum(e.amount for e in paid if e.kind == "sale"),
            math.fsum(rent),
            market.ledger.balance(name),
        )
        won = sum(e.kind == "sale" and e.payer == name for e in market.ledger)
        note = "bankrupt" if name in market.bankrupt else ""
        table.add_row(escape(name), *(f"{x:.3f}" for x in numbers), str(won) if name in market.agents else "", note)
    return table
