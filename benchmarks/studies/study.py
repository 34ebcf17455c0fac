"""A study: models that are trained, numbers that are measured on them, and a document that follows from the numbers."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdiff.kernels import InvalidValueError

from .documents import plotting
from .runner import Run, StudyError, train_runs


@dataclass(frozen=True)
class Budget:
    """The size of a study.

    Args:
        steps: optimiser steps per model, >= 1.
        seeds: seeds per setting, >= 2.
        draws: draws of the bound per held-out image, >= 10.

    Raises:
        InvalidValueError: a number that is too small for standard errors.
    """

    steps: int
    seeds: int
    draws: int = 128

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seeds", 2), ("draws", 10)):
            value = getattr(self, name)
            if value < least:
                raise InvalidValueError(f"Budget: {name} must be >= {least}, got {value}")


@dataclass(frozen=True)
class Study:
    """The parts of a study.

    Args:
        name: name of the study and of its document.
        runs: ``runs(budget)`` returns the models and how they are trained.
        gather: ``gather(runs, folder, budget, workers)`` measures the trained models and returns plain JSON types.
        write_report: ``write_report(results, out)`` writes the document and its figures from the numbers alone.
        budget: the budget of the committed results.
        folder: name of the models' folder in ``runs/``. Studies with the same folder share models.
        draws: whether the study evaluates bounds; otherwise it does not use the budget's draws.
        needs: called before the work begins, to check that an optional library is installed.
    """

    name: str
    runs: Callable[[Budget], list[Run]]
    gather: Callable[[list[Run], Path, Budget, int], dict[str, Any]]
    write_report: Callable[[dict[str, Any], Path], None]
    budget: Budget
    folder: str
    draws: bool = True
    needs: Callable[[], object] | None = None

    def reproduce(self, out: Path, folder: Path, budget: Budget, workers: int) -> None:
        """Train the models that are not trained yet, measure all, and write NAME.json, NAME.md and figures to ``out``.

        Raises:
            StudyError: models of other settings in ``folder``, an interrupted training, a missing library, or a folder
                that cannot be written.
        """
        plotting()
        if self.needs is not None:
            self.needs()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"out must be a folder that can be written: {error}") from error
        runs = self.runs(budget)
        train_runs(runs, folder, workers)
        results = {"budget": asdict(budget), **self.gather(runs, folder, budget, workers)}
        (out / f"{self.name}.json").write_text(json.dumps(results) + "\n")
        self.write_report(results, out)
        print(f"wrote {out / self.name}.md, its figures, and {self.name}.json")
