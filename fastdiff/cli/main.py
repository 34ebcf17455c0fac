"""The command line: ``fastdiff sample | train | evaluate | interpolate | reconstruct | mixture | fd | info``."""

import signal
import sys
from typing import Annotated

import tyro
from fastdiff_kernels.errors import FastdiffError
from tyro.conf import subcommand

from .evaluate import Evaluate
from .fd import Fd
from .info import Info
from .interpolate import Interpolate
from .mixture import Mixture
from .reconstruct import Reconstruct
from .sample import Sample
from .train import Train

Command = (
    Annotated[Sample, subcommand("sample")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Interpolate, subcommand("interpolate")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Mixture, subcommand("mixture")]
    | Annotated[Fd, subcommand("fd")]
    | Annotated[Info, subcommand("info")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command. An error that the user caused is one line on stderr and exit code 2; others raise."""
    command = tyro.cli(Command, args=arguments, prog="fastdiff", description="Diffusion models with exact bounds.")  # pyright: ignore
    try:
        return command.run()
    except FastdiffError as error:
        print(f"fastdiff: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastdiff: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
