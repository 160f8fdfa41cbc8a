"""Networks as markets.

Submodules: `layers` (a trained network as a market of its layers, or of its edges), `backpropagation` (prices by
backpropagation on a graph of agents), `neural_bucket_brigade` (connection weights act as currency).
"""

from jaxmarket.networks.layers import NetworkMarket, Quotes, from_mlp, neuron_quote

__all__ = ["NetworkMarket", "Quotes", "from_mlp", "neuron_quote"]
