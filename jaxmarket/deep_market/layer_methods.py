"""Networks that classify handwritten digits, trained by markets of layers and by SGD, with the same data and budget.

**Capitalism**: only mutation changes parameters. **Hybrid**: the winners of a lot also learn from it by
backpropagation, and the market selects the structure: activation, width and learning rate. The baselines are SGD on one
fixed network, on the structures that the hybrid found and on random structures, and capitalism in which consumers pay
the same for every prediction. The reproduction ``capitalism`` compares them.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxmarket.deep_market.demographics import Terms
from jaxmarket.deep_market.layer_market import (
    BACKPROPAGATION,
    Examples,
    Gradient,
    LayerAgents,
    LayerMarket,
    LayerStructure,
    LayerTraining,
    equal_parts,
    train_market,
    train_network,
)
from jaxmarket.environments.digits import load
from jaxmarket.types import Array

__all__ = ["BATCH", "MARKETS", "MAX_BIRTHS", "METHODS", "TERMS", "WEALTH", "train"]

BATCH = 64
"""Examples in a lot."""
WEALTH = 1.0
"""Initial wealth of each agent."""
MAX_BIRTHS = 2
"""The most births in a turnover."""
TERMS = Terms(
    wealth_tax=1e-3,
    endowment=WEALTH,
    child_endowment=WEALTH,
    inheritance=0.1,
    p_offspring=0.98,
    replace_poorest=True,
    bankruptcy=0.02,
)
"""The terms of every market."""

_NETWORK = LayerAgents(64, 32, 10)
_FREE = dataclasses.replace(_NETWORK, structured=True, noise=(0.005, 0.05))
_PURE = LayerMarket(_NETWORK, batch=BATCH)

MARKETS: dict[str, dict[str, Any]] = {
    "capitalism": {"market": _PURE, "period": 8},
    "capitalism, paid for anything": {"market": _PURE, "period": 8, "informed": False},
    "hybrid": {"market": LayerMarket(_FREE, batch=BATCH, learning=True), "period": 32},
}
"""The methods with a market: arguments of `jaxmarket.deep_market.layer_market.train_market`."""
METHODS = (*MARKETS, "SGD", "SGD, structure found", "SGD, random structure")
"""All methods. SGD trains the default structure, those that the hybrid found, or random ones."""


def train(
    method: str,
    key: Array,
    *,
    seeds: int,
    lots: int,
    found: tuple[LayerStructure, np.ndarray] | None = None,
    gradient: Gradient = BACKPROPAGATION,
) -> LayerTraining:
    """Train with one of the `METHODS` on scikit-learn's 8 × 8 digits, and measure the accuracy on held-out ones.

    Args:
        method: its name.
        key: a typed PRNG key, consumed; with the same key, methods of one kind start from the same weights.
        seeds: number of seeds.
        lots: approximate number of lots, of `BATCH` examples each.
        found: the structures that the hybrid found, leaves [seeds], and learning rates of the readouts f [seeds];
            only used, and required, by ``SGD, structure found``.
        gradient: how the methods without a market compute the gradient of `layer_market.cross_entropy`.

    Raises:
        ValueError: the method is unknown, or ``found`` is missing.
    """
    if method not in METHODS:
        raise ValueError(f"method: unknown method {method!r}; choose from {', '.join(map(repr, METHODS))}")
    examples, parts = Examples(*load("small").split()), equal_parts(lots)
    if method in MARKETS:
        rules = {"terms": TERMS, "max_births": MAX_BIRTHS, "wealth": WEALTH} | MARKETS[method]
        return train_market(key=key, examples=examples, seeds=seeds, parts=parts, **rules)
    if method == "SGD, structure found" and found is None:
        raise ValueError(f"found: {method} needs the structures that the hybrid found, got None; train it first")
    structure, rate = found if found and method == "SGD, structure found" else (None, None)
    agents = dataclasses.replace(_NETWORK, structured=method == "SGD, random structure")
    rules = {"structure": structure, "readout_rate": rate, "gradient": gradient}
    return train_network(agents, key, examples, seeds=seeds, parts=parts, batch=BATCH, **rules)
