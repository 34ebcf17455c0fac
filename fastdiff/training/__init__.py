"""Training: configuration, state, the loop as a generator, and runs on disk."""

from .config import TrainConfig
from .loop import Report, TrainingError, train
from .state import TrainState

__all__ = ["Report", "TrainConfig", "TrainState", "TrainingError", "train"]
