"""Deep markets whose agents are Python callables on arbitrary objects, such as text, instead of JAX functions.

The auctions and mechanisms are those of `jaxmarket.auctions`, the payments those of `jaxmarket.deep_market`; a test
compares both. Agents are called concurrently, each in its own thread with a time-out. An agent that raises an
exception, exceeds the time-out or bids NaN is not eligible in that auction. `jaxmarket.host.openai` (``pip install
'jaxmarket[openai]'``) provides agents that call a chat model behind an OpenAI-compatible endpoint. ``python -m
jaxmarket.host.example`` runs a market of simple agents that learn an order of operations.
"""

from jaxmarket.host.ledger import AUCTIONEER, MINT, WORLD, Entry, Ledger
from jaxmarket.host.market import CallableAgent, Market, MarketEpisode, MarketStep, Trader
from jaxmarket.host.records import Auction, Bid, Call, JsonLines, Record, StateText, json_lines, read_log
from jaxmarket.host.replay import replay
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
    "StateText",
    "Thought",
    "Trader",
    "appends",
    "episode_table",
    "json_lines",
    "read_log",
    "replay",
    "wealth_table",
]
