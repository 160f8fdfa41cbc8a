"""Networks as markets.

Submodules: `layers` (a trained network as a market of its layers, or of its edges), `backpropagation` (prices by
backpropagation on a graph of agents), `routing` (to whom agents sell, and attention), `firms` (networks trained by
profit), `partition` (the firms of a function or of a Flax module), `members` (neurons and attention heads as firms),
`delays` and `processes` (firms that learn late, and in two processes), `neural_bucket_brigade` (connection weights act
as currency).
"""

from jaxmarket.networks.firms import FirmMarket, FirmState, Plant, Trade
from jaxmarket.networks.layers import NetworkMarket, Quotes, from_mlp, neuron_quote
from jaxmarket.networks.partition import MERCHANT, from_function, from_linen, from_nnx

__all__ = [
    "MERCHANT",
    "FirmMarket",
    "FirmState",
    "NetworkMarket",
    "Plant",
    "Quotes",
    "Trade",
    "from_function",
    "from_linen",
    "from_mlp",
    "from_nnx",
    "neuron_quote",
]
