"""Training: settings, what can be trained, and a whole run of one seed as one pure function."""

from jaxmarket.training.config import TrainConfig
from jaxmarket.training.loop import train
from jaxmarket.training.population import PopulationAgents, PopulationTraining
from jaxmarket.training.result import RunResult
from jaxmarket.training.settings import Settings
from jaxmarket.training.society import SocietyTraining, TrainState
from jaxmarket.training.trainable import Trainable
from jaxmarket.training.wide import WideMarketTraining

__all__ = [
    "PopulationAgents",
    "PopulationTraining",
    "RunResult",
    "Settings",
    "SocietyTraining",
    "TrainConfig",
    "TrainState",
    "Trainable",
    "WideMarketTraining",
    "train",
]
