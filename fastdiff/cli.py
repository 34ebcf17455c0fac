"""The command line: ``fastdiff sample | train | evaluate | interpolate | reconstruct | mixture | fd | ...``."""

import signal
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from . import __version__, runs
from .checkpoint import embedded_names
from .commands.drawing import Interpolate, Sample
from .commands.latents import Mixture, Reconstruct
from .commands.measuring import Evaluate, Fd
from .commands.studies import Reproduce
from .commands.training import Train
from .config import ConfigError
from .datasets import DataError
from .kernels import BackendError, backend
from .latent_mixture import MixtureError
from .presets import PRESETS
from .sample import SamplingError
from .storage import CheckpointError
from .studies import StudyError
from .training import TrainingError

USER_ERRORS = (
    BackendError, CheckpointError, ConfigError, DataError, MixtureError, OSError, SamplingError, StudyError,
    TrainingError, TypeError, ValueError, runs.RunError,
)  # fmt: skip


@dataclass
class Info:
    """Print versions, backend, presets and embedded models."""

    def run(self) -> int:
        """Print what this installation is."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        print(f"fastdiff {__version__}, torch {torch.__version__}, backend {backend()}, device {device}")
        print(f"presets: {', '.join(PRESETS)}")  # names alone: building one would take its memory
        print(f"embedded models: {', '.join(embedded_names())}")
        return 0


Command = (
    Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Interpolate, tyro.conf.subcommand("interpolate")]
    | Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")]
    | Annotated[Mixture, tyro.conf.subcommand("mixture")]
    | Annotated[Fd, tyro.conf.subcommand("fd")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; wrong input ends in one line on stderr and exit code 2."""
    command: Any = tyro.cli(Command, args=arguments, prog="fastdiff", description="Diffusion models with exact bounds.")
    try:
        return command.run()
    except USER_ERRORS as error:
        print(f"fastdiff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastdiff: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
