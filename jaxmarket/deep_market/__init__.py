"""Deep markets: agents that trade states and are selected by wealth."""

from jaxmarket.deep_market.demographics import (
    OFFSPRING,
    RANDOM,
    REPAIRED,
    Births,
    Lineage,
    Population,
    Terms,
    make_population,
    random_population,
    pay,
    turnover,
)
from jaxmarket.deep_market.market import DeepMarketFlows, DeepMarket, DeepMarketState, RoundSummary, forward, money, init, run, step
from jaxmarket.deep_market.representations import Representation, NeuralNetworks, GuardedProgram, GuardedPrograms, ClassifierRule, ClassifierRules, BidTable, BidTables

__all__ = [
    "OFFSPRING",
    "RANDOM",
    "REPAIRED",
    "Births",
    "DeepMarketFlows",
    "DeepMarket",
    "DeepMarketState",
    "Representation",
    "Lineage",
    "NeuralNetworks",
    "Population",
    "GuardedProgram",
    "GuardedPrograms",
    "RoundSummary",
    "ClassifierRule",
    "ClassifierRules",
    "BidTable",
    "BidTables",
    "Terms",
    "forward",
    "make_population",
    "money",
    "random_population",
    "init",
    "pay",
    "run",
    "step",
    "turnover",
]
