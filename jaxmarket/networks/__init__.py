"""Networks as markets.

Submodules: `layers` (the neurons of a trained network as traders), `backpropagation` (prices by backpropagation on a
graph of agents), `neural_bucket_brigade` (connection weights as currency).
"""

from jaxmarket.networks.layers import NetworkMarket, Quotes, from_mlp, quote

__all__ = ["NetworkMarket", "Quotes", "from_mlp", "quote"]
