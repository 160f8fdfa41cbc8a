"""Training: typed settings, and one pure function per kind of agent from a state and settings to the next state."""

from jaxmarket.training.config import TrainConfig
from jaxmarket.training.result import FitResult
from jaxmarket.training.society import Program, TrainState, as_arrays, chunk, init, train

__all__ = ["FitResult", "Program", "TrainConfig", "TrainState", "as_arrays", "chunk", "init", "train"]
