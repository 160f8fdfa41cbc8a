"""Adapters to other libraries and programs.

Submodules: `gymnasium_env` (Gymnasium), `multi_agent` (JaxMARL), `bidder` (one strategic bidder as an environment),
`embedding` (bids that are inputs of the step).
"""

__all__: list[str] = []
