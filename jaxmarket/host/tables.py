"""Terminal tables of an episode and of the agents' wealth."""

from collections.abc import Callable
from typing import Any

from rich.text import Text

from jaxmarket.host.calls import describe
from jaxmarket.host.ledger import AUCTIONEER, exact_sum
from jaxmarket.host.market import Market, MarketEpisode
from jaxmarket.view.text import DataTable, cell

__all__ = ["episode_table", "wealth_table"]


_WIDTH = 40


def _short(state: Any) -> str:
    text = str.__getitem__(str(getattr(state, "last", state)), slice(10 * _WIDTH))  # __str__ may return a subclass
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _shown(show: Callable[[Any], str], state: Any) -> Text:
    try:
        return cell(show(state))
    except (Exception, SystemExit) as error:  # the state and its methods may come from an agent
        return cell(f"({describe(error)})"[:_WIDTH])


def episode_table(
    episode: MarketEpisode, *, show: Callable[[Any], str] = _short, title: str | None = None
) -> DataTable:
    """A table of an episode with a row per auction: state, bids, winner, price, seller and reward.

    Args:
        episode: the result of `Market.play`.
        show: formats a state as a short text; by default its last item, cut at 40 characters. If it raises an
            exception, the table shows that.
        title: title of the table.
    """
    minted = any(step.auction.payout != step.auction.price for step in episode.steps)
    agents = [bid.agent for bid in episode.steps[0].bids]
    table = DataTable(
        title=title or "",
        caption="bids are limited by budgets; · no bid; ! failed to act" + "; payout: price + minted money" * minted,
    )
    table.add_column("t", justify="right")
    table.add_column("state")
    for column in (*agents, "winner", "price", "seller", *["payout"] * minted, "reward", "end"):
        table.add_column(column, justify="right" if column in ("price", "payout", "reward") else "left")
    for step in episode.steps:
        a = step.auction
        failed = {call.agent for call in step.calls if call.what == "act" and call.reason}
        cells = []
        for bid in step.bids:
            if bid.offer is None:
                cells.append(cell("·" if bid.reason == "silent" else bid.reason.split(":")[0]))
            else:
                text = f"{bid.offer:.3f}" + "!" * (bid.agent in failed)
                cells.append(cell(text, "bold green" if bid.agent == a.winner else ""))
        table.add_row(
            str(a.step),
            _shown(show, step.state),
            *cells,
            cell(a.winner or "none"),
            f"{a.price:.3f}",
            cell(a.seller),
            *[f"{a.payout:.3f}"] * minted,
            f"{a.reward:.3f}",
            "done" if a.done else "unsold" if a.winner is None else "",
        )
    between = len(agents) + len(["winner", "price", "seller", "reward"]) + minted
    table.add_row("", _shown(show, episode.state), *[""] * between, "cut" * (episode.end == "cut"))
    return table


def wealth_table(market: Market, *, title: str | None = None) -> DataTable:
    """A table of the wealth of all agents and the auctioneer, with their cash flows by kind."""
    table = DataTable(
        title=title or "",
        caption="sales: payouts received; purchases: prices paid; wins: number of auctions",
    )
    costs = ["costs"] * bool(market.ledger.total("cost"))
    for column in ("agent", "endowment", "rewards", "sales", "purchases", *costs, "rent", "wealth", "wins", ""):
        table.add_column(column, justify="left" if column in ("agent", "") else "right")
    entries = [e for e in market.ledger if e.payer != e.payee]
    for name in (*market.agents, AUCTIONEER):
        got, paid = [e for e in entries if e.payee == name], [e for e in entries if e.payer == name]
        rent = [e.amount for e in got if e.kind == "rent"] + [-e.amount for e in paid if e.kind == "rent"]
        numbers = (
            exact_sum(e.amount for e in got if e.kind == "endowment"),
            exact_sum(e.amount for e in got if e.kind == "reward"),
            exact_sum(e.amount for e in got if e.kind in ("sale", "mint")),
            0.0 - exact_sum(e.amount for e in paid if e.kind == "sale"),
            *[0.0 - exact_sum(e.amount for e in paid if e.kind == "cost") for _ in costs],
            exact_sum(rent),
            market.ledger.balance(name),
        )
        won = sum(e.kind == "sale" and e.payer == name for e in market.ledger)
        note = "bankrupt" if name in market.bankrupt else ""
        table.add_row(cell(name), *(f"{x:.3f}" for x in numbers), str(won) if name in market.agents else "", note)
    return table
