"""Deep markets: agents that trade states and are selected by wealth."""

from jaxmarket.deep_market.demographics import (
    MUTANT,
    NOVICE,
    REPAIRED,
    Births,
    Lineage,
    Population,
    Terms,
    found,
    newcomers,
    pay,
    turnover,
)
from jaxmarket.deep_market.market import Books, DeepMarket, Economy, Round, forward, money, open_market, run, step
from jaxmarket.deep_market.representations import Language, Networks, Program, Programs, Rule, Rules, Table, Tables

__all__ = [
    "MUTANT",
    "NOVICE",
    "REPAIRED",
    "Births",
    "Books",
    "DeepMarket",
    "Economy",
    "Language",
    "Lineage",
    "Networks",
    "Population",
    "Program",
    "Programs",
    "Round",
    "Rule",
    "Rules",
    "Table",
    "Tables",
    "Terms",
    "forward",
    "found",
    "money",
    "newcomers",
    "open_market",
    "pay",
    "run",
    "step",
    "turnover",
]
