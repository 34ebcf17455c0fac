"""A study: models that are trained, numbers that are measured on them, and a document that follows from the numbers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdiff.kernels import InvalidValueError

from .data_sets import DATA_SETS, DataSet
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


Results = dict[str, Any]  # what a study measures on one data set, in plain JSON types


@dataclass(frozen=True)
class Study:
    """The parts of a study.

    Args:
        name: name of the study and of its document.
        runs: ``runs(data, budget)`` returns the models and how they are trained.
        gather: ``gather(data, runs, folder, budget, workers)`` measures the trained models and returns plain JSON
            types.
        write_report: ``write_report(found, out)`` writes the document and its figures from the numbers alone: the
            results by data set, of those that were studied.
        budgets: the budget of the committed results, for each data set that the study can take.
        folder: name of the models' folder in ``runs/``. Studies with the same folder share models.
        draws: whether the study evaluates bounds; otherwise it does not use the budget's draws.
        needs: called before the work begins, to check that an optional library is installed.
    """

    name: str
    runs: Callable[[DataSet, Budget], list[Run]]
    gather: Callable[[DataSet, list[Run], Path, Budget, int], Results]
    write_report: Callable[[dict[str, Results], Path], None]
    budgets: Mapping[str, Budget]
    folder: str
    draws: bool = True
    needs: Callable[[], object] | None = None

    def reproduce(self, out: Path, folder: Path, budget: Budget, workers: int, data: str = "digits") -> None:
        """Train the models that are not trained yet, measure all, and write the document, numbers and figures.

        The numbers of the digits are NAME.json in ``out``, those of another data set NAME-DATA.json. The document,
        NAME.md, is written from all of them that are there.

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
        data_set = DATA_SETS[data]
        runs = self.runs(data_set, budget)
        train_runs(runs, folder, workers)
        results = {"budget": asdict(budget), **self.gather(data_set, runs, folder, budget, workers)}
        numbers = f"{data_set.file(self.name)}.json"
        (out / numbers).write_text(json.dumps(results) + "\n")
        self.write_report(results_of(self.name, out), out)
        print(f"wrote {out / self.name}.md, its figures, and {numbers}")


def results_of(name: str, folder: Path) -> dict[str, Results]:
    """Return the results of a study by data set, of those whose numbers are in a folder; digits come first."""
    paths = {data.name: folder / f"{data.file(name)}.json" for data in DATA_SETS.values()}
    return {data: json.loads(path.read_text()) for data, path in paths.items() if path.is_file()}
