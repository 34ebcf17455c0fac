"""Run a study: train its small models, measure them, and write its document, numbers and figures.

    python benchmarks/studies/reproduce.py schedules        # or latent-steps, speed-up, restoration
    python benchmarks/studies/reproduce.py speed-up --data letters

A study takes about an hour on two cores on the digits, and a few on the letters; it prints an estimate first. Models
that are trained are kept in runs/, and a study that was interrupted is resumed by the same command. A document is
written from the numbers of all data sets that are there.
"""

import argparse
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

MODULES = {
    "schedules": "noise_schedules",
    "latent-steps": "latent_steps",
    "speed-up": "speed_up",
    "restoration": "restoration",
}
DATA = ("digits", "letters")


def main(arguments: list[str] | None = None) -> int:
    """Run the study of the command line; an error that the user caused is one line on stderr and the exit status 2."""
    options = _parse(arguments)
    from fastdiff import FastdiffError  # imports torch, which --help can do without

    try:
        _reproduce(options)
    except FastdiffError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reproduce: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def study_of(name: str) -> Any:
    """Return the `Study` of a name in `MODULES`."""
    return import_module(f"benchmarks.studies.{MODULES[name]}").STUDY


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    description = "Train the models of a study, measure them, and write its document. An interrupted study is resumed."
    parser = argparse.ArgumentParser(prog="reproduce.py", description=description)
    parser.add_argument("study", choices=MODULES, help="name of the study")
    parser.add_argument("--data", choices=DATA, default=DATA[0], help="data set that it is run on (digits)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the document (docs)")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR",
        help="folder of the trained models; by default runs/bounds for schedules and latent-steps, and runs/diffusevae "
        "for speed-up and restoration, which share models; for the letters with -letters at the end",
    )  # fmt: skip
    parser.add_argument("--steps", type=_positive, metavar="N", help="optimiser steps per model")
    parser.add_argument("--seeds", type=_positive, metavar="N", help="seeds per setting")
    parser.add_argument("--draws", type=_positive, metavar="N", help="draws of the bound per held-out image")
    parser.add_argument(
        "--workers", type=_positive, metavar="N", default=2, help="models trained at a time, one thread each (2)"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _reproduce(options: argparse.Namespace) -> None:
    from benchmarks.studies.data_sets import DATA_SETS
    from fastdiff.checkpoints import RUNS
    from fastdiff.kernels import InvalidValueError

    study = study_of(options.study)
    if options.draws is not None and not study.draws:
        raise InvalidValueError(f"--draws cannot be set for {options.study}, which evaluates no bound")
    if options.data not in study.budgets:
        raise InvalidValueError(f"--data must be {' or '.join(study.budgets)} for {options.study}, got {options.data}")
    changes = {name: getattr(options, name) for name in ("steps", "seeds", "draws")}
    budget = replace(
        study.budgets[options.data], **{name: value for name, value in changes.items() if value is not None}
    )
    folder = options.runs or RUNS / DATA_SETS[options.data].file(study.folder)
    study.reproduce(options.out, folder, budget, options.workers, options.data)


if __name__ == "__main__":
    # The studies are the package `benchmarks.studies` of this clone. Worker processes inherit this path.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    sys.exit(main())
