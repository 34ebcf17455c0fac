"""Loading of models: embedded ones, checkpoint folders, training runs."""

from ..io.folders import CheckpointError
from .load import (
    RUNS,
    checkpoint_path,
    checkpoints,
    embedded_names,
    last_checkpoint,
    load,
    model_from,
    record_of,
    training_of,
)

__all__ = [
    "RUNS", "CheckpointError", "checkpoint_path", "checkpoints", "embedded_names", "last_checkpoint", "load",
    "model_from", "record_of", "training_of",
]  # fmt: skip
