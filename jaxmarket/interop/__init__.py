"""Adapters to other libraries and programs.

Submodules: `gymnasium_env` (Gymnasium), `multi_agent` (JaxMARL), `bidder` (one strategic bidder as an environment),
`embedding` (bids from outside the society).
"""

__all__: list[str] = []
