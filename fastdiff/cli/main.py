"""The command line: ``fastdiff sample``, ``train``, ``evaluate``, ``interpolate``, ``reconstruct``, ``mixture``, ..."""

import io
import os
import signal
import sys
import time
import warnings
from contextlib import nullcontext, redirect_stderr
from typing import Annotated

import tyro
from fastdiff_kernels.errors import FastdiffError, InvalidValueError
from tyro.conf import DisallowNone, subcommand

from .. import __version__
from .check import Check
from .convert import Convert
from .edit import Edit, Inpaint
from .evaluate import Evaluate
from .export import Export
from .fd import Fd
from .info import Info
from .interpolate import Interpolate
from .interrupts import Terminated, message
from .invert import Invert
from .mixture import Mixture
from .reconstruct import Reconstruct
from .restore import Restore
from .sample import Sample
from .train import Train

Command = (
    Annotated[Sample, subcommand("sample")]
    | Annotated[Train, subcommand("train"), DisallowNone]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Interpolate, subcommand("interpolate")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
    | Annotated[Edit, subcommand("edit")]
    | Annotated[Inpaint, subcommand("inpaint")]
    | Annotated[Invert, subcommand("invert")]
    | Annotated[Restore, subcommand("restore")]
    | Annotated[Mixture, subcommand("mixture")]
    | Annotated[Fd, subcommand("fd")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Check, subcommand("check")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Info, subcommand("info")]
)


DIVIDED = (Train, Sample, Evaluate)  # commands that several processes share
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # processes.STARTED needs torch
PATIENCE = 2.0  # seconds in which the first process can print: torchrun ends all as soon as one has failed
DESCRIPTION = "Diffusion models with exact bounds. `fastdiff --version` prints the version."


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    An error that the user caused is one line on stderr and exit code 2; others raise. Of the processes of torchrun only
    the first one prints it. A signal is one line and 128 + its number.
    """
    warnings.formatwarning = lambda text, *rest, **options: f"fastdiff: warning: {text}\n"
    several = all(name in os.environ for name in TORCHRUN) and os.environ["WORLD_SIZE"] != "1"
    first = not several or os.environ["RANK"] == "0"
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:
        print(f"fastdiff {__version__}")
        return 0
    try:
        with nullcontext() if first else redirect_stderr(io.StringIO()):
            command = tyro.cli(Command, args=given, prog="fastdiff", description=DESCRIPTION, console_outputs=first)  # pyright: ignore
        if several and not isinstance(command, DIVIDED):
            raise InvalidValueError(f"{given[0]} must run in one process, without torchrun")
        return command.run()
    except FastdiffError as error:
        if first:
            print(f"fastdiff: error: {error}", file=sys.stderr)
        else:
            time.sleep(PATIENCE)
        return 2
    except KeyboardInterrupt:
        print(message(signal.SIGINT), file=sys.stderr)
        return 128 + signal.SIGINT
    except Terminated as terminated:
        code = terminated.code
        assert isinstance(code, int)
        print(message(code - 128), file=sys.stderr)
        return code
