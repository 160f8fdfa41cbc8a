"""Local update rules behind one protocol (`protocol.Learner`): PPO, REINFORCE and valuation, one file each.

`ActionPPO` trains the actions of modules whose primitives learn, beside one of them, which trains the bids.
"""

from jaxmarket.learners.actions import ActionPPO
from jaxmarket.learners.ppo import PPO
from jaxmarket.learners.protocol import Experience, Hyperparameters, Learner, numeric
from jaxmarket.learners.reinforce import Reinforce
from jaxmarket.learners.valuation import Valuation

__all__ = [
    "LEARNERS",
    "PPO",
    "ActionPPO",
    "Experience",
    "Hyperparameters",
    "Learner",
    "Reinforce",
    "Valuation",
    "numeric",
]

LEARNERS: dict[str, type[Learner]] = {"ppo": PPO, "valuation": Valuation, "reinforce": Reinforce}
"""The learners of the library by alias, for the command line."""
