"""The command line: ``fastdiff sample``, ``train``, ``evaluate``, ``interpolate``, ``reconstruct``, ``mixture``, ..."""

import io
import os
import signal
import sys
import time
import typing
import warnings
from contextlib import nullcontext, redirect_stderr

import tyro
from fastdiff_kernels.errors import FastdiffError, InvalidValueError

from .. import __version__
from .check import Check
from .convert import Convert
from .demo import Demo
from .edit import Edit, Inpaint
from .evaluate import Evaluate
from .export import Export
from .fd import Fd
from .info import Info
from .interpolate import Interpolate
from .interrupts import Terminated, message
from .invert import Invert
from .mixture import Mixture
from .parsing import parse, wrapped
from .reconstruct import Reconstruct
from .restore import Restore
from .sample import Sample
from .suggestions import completed, nearest
from .train import Train

Command = (
    Sample | Train | Evaluate | Interpolate | Reconstruct | Edit | Inpaint | Invert | Restore | Mixture | Fd | Export
    | Check | Convert | Demo | Info
)  # fmt: skip
COMMANDS: dict[str, type[Command]] = {kind.__name__.lower(): kind for kind in typing.get_args(Command)}
DIVIDED = (Train, Sample, Evaluate)  # commands that several processes share
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # processes.STARTED needs torch
PATIENCE = 2.0  # seconds in which the first process can print: torchrun ends all as soon as one has failed
DESCRIPTION = "Diffusion models, VAEs and bounds on their likelihood."


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit code.

    An error that the user caused is one line on stderr and exit code 2; others raise. Of the processes of torchrun only
    the first one prints it. A signal is one line and 128 + its number.
    """
    warnings.formatwarning = lambda text, *rest, **options: f"fastdiff: warning: {text}\n"
    several = all(name in os.environ for name in TORCHRUN) and os.environ["WORLD_SIZE"] != "1"
    first = not several or os.environ["RANK"] == "0"
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] in (["--version"], ["--help"], ["-h"]):
        print(f"fastdiff {__version__}" if words[0] == "--version" else overview())
        return 0
    command = None
    try:
        with nullcontext() if first else redirect_stderr(io.StringIO()):
            command = command_of(words, first)
        if several and not isinstance(command, DIVIDED):
            raise InvalidValueError(f"{words[0]} must run in one process, without torchrun")
        return command.run()
    except FastdiffError as error:
        if first:
            print(f"fastdiff: error: {completed(str(error), words[:1], command)}", file=sys.stderr)
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


def command_of(words: list[str], shown: bool = True) -> Command:
    """Return the command that the words of a command line ask for.

    Raises:
        InvalidValueError: no command, or an unknown one.
        SystemExit: as `parse`.
    """
    if words and words[0].startswith("--tyro-"):  # completions for a shell
        return tyro.cli(Command, args=words, prog="fastdiff", console_outputs=shown)  # pyright: ignore
    if not words:
        raise InvalidValueError("a command must follow, such as fastdiff sample digits; see fastdiff --help")
    name = words[0]
    if name not in COMMANDS:
        raise InvalidValueError(f"there is no command {name!r}{nearest(name, COMMANDS)}; see fastdiff --help")
    command = parse(name, COMMANDS[name], words[1:], shown)
    assert isinstance(command, Command)
    return command


def overview() -> str:
    """Return the text of ``fastdiff --help``: a sentence on each command."""
    lines = ["usage: fastdiff COMMAND [OPTIONS]", "", DESCRIPTION, ""]
    for name, kind in COMMANDS.items():
        summary = (kind.__doc__ or "").split("\n\n")[0]
        lines.append(wrapped(summary, 15 * " ", f"  {name:<13}"))
    return "\n".join(
        [*lines, "", "fastdiff COMMAND --help describes a command; fastdiff --version prints the version."]
    )
