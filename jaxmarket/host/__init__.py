"""Markets of agents that are not JAX: plain callables over text or any objects, called from Python.

The auctions and mechanisms are those of `jaxmarket.auctions`, the payments those of `jaxmarket.deep_market`; a test
compares both. Agents are called at the same time, each in its own thread with a time-out: an agent that crashes, stalls
or bids NaN loses the auction and nothing else. A chat model behind an OpenAI-compatible endpoint is an agent, too:
`jaxmarket.host.openai`, with ``pip install 'jaxmarket[openai]'``. ``python -m jaxmarket.host.example`` runs a market of
three simple agents that learn to work in the right order.
"""

from jaxmarket.host.ledger import AUCTIONEER, MINT, WORLD, Entry, Ledger
from jaxmarket.host.market import CallableAgent, Market, MarketEpisode, MarketStep, Trader
from jaxmarket.host.records import Auction, Bid, Call, JsonLines, Record, json_lines
from jaxmarket.host.tables import episode_table, wealth_table
from jaxmarket.host.thoughts import Item, Thought, appends

__all__ = [
    "AUCTIONEER",
    "MINT",
    "WORLD",
    "Auction",
    "Bid",
    "Call",
    "CallableAgent",
    "Entry",
    "Item",
    "JsonLines",
    "Ledger",
    "Market",
    "MarketEpisode",
    "MarketStep",
    "Record",
    "Thought",
    "Trader",
    "appends",
    "episode_table",
    "json_lines",
    "wealth_table",
]
