"""Training: configuration, state, the loop as a generator, and runs on disk."""

from .config import TrainConfig
from .errors import RunError, TrainingError
from .loop import train
from .state import TrainState
from .step import Report

__all__ = ["Report", "RunError", "TrainConfig", "TrainState", "TrainingError", "train"]
