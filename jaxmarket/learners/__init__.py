"""Local learners: PPO, REINFORCE and valuation, one file each behind one small protocol."""

from jaxmarket.learners.ppo import PPO
from jaxmarket.learners.protocol import Experience, Hyperparameters, Learner
from jaxmarket.learners.reinforce import Reinforce
from jaxmarket.learners.valuation import Valuation

__all__ = ["LEARNERS", "PPO", "Experience", "Hyperparameters", "Learner", "Reinforce", "Valuation"]

LEARNERS = ("ppo", "valuation", "reinforce")
"""Short names, as used on the command line."""
