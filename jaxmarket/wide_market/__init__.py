"""Wide markets: agents that buy and sell bundles of goods at equilibrium prices."""

from jaxmarket.wide_market.convex_program import ConvexProgram
from jaxmarket.wide_market.equilibrium import (
    Equilibrium,
    EquilibriumCertificate,
    EquilibriumSolver,
    best_response_gain,
    capped_demand,
    capped_values,
    ration,
)
from jaxmarket.wide_market.market import (
    Produced,
    Production,
    WideMarket,
    WideMarketState,
    WideMarketStep,
    init,
    per_agent,
    run,
    step,
)
from jaxmarket.wide_market.proportional_response import ProportionalResponse
from jaxmarket.wide_market.sealed_bids import SealedBids
from jaxmarket.wide_market.tatonnement import Tatonnement
from jaxmarket.wide_market.valuations import (
    Additive,
    BundleValuation,
    Linear,
    Logarithmic,
    Quadratic,
    Separable,
    StrictlyConcave,
)

__all__ = [
    "Additive",
    "BundleValuation",
    "ConvexProgram",
    "Equilibrium",
    "EquilibriumCertificate",
    "EquilibriumSolver",
    "Linear",
    "Logarithmic",
    "Produced",
    "Production",
    "ProportionalResponse",
    "Quadratic",
    "SealedBids",
    "Separable",
    "StrictlyConcave",
    "Tatonnement",
    "WideMarket",
    "WideMarketState",
    "WideMarketStep",
    "best_response_gain",
    "capped_demand",
    "capped_values",
    "init",
    "per_agent",
    "ration",
    "run",
    "step",
]
