"""What every study is: models that are trained, numbers gathered from them, and a document from the numbers."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .budget import Budget
from .figures import drawing
from .runner import Arm, train_arms


@dataclass(frozen=True)
class Study:
    """A study by its parts.

    Args:
        name: of the command's argument and of the document.
        arms: the models, for a budget.
        gather: ``gather(arms, folder, budget, workers)``, the numbers of trained models, plain JSON types by name.
        write_report: ``write_report(results, out)``, the document and its pictures from the numbers alone.
        budget: what the committed run cost.
        folder: name of the models' folder in runs/; studies of one folder share models.
        draws: whether a bound is taken; without it the budget's draws are not used.
        needs: asks for what the study needs besides the drawing library, before the work.
    """

    name: str
    arms: Callable[[Budget], list[Arm]]
    gather: Callable[[list[Arm], Path, Budget, int], dict[str, Any]]
    write_report: Callable[[dict[str, Any], Path], None]
    budget: Budget
    folder: str
    draws: bool = True
    needs: Callable[[], Any] | None = None

    def reproduce(self, out: Path, folder: Path, budget: Budget, workers: int) -> None:
        """Train what is not trained, measure, and write NAME.json, NAME.md and its pictures into ``out``.

        Raises:
            StudyError: models of other settings in ``folder``, an interrupted training, or no drawing library.
            OSError: a folder that cannot be written.
        """
        drawing()
        if self.needs is not None:
            self.needs()
        out.mkdir(parents=True, exist_ok=True)
        arms = self.arms(budget)
        train_arms(arms, folder, workers)
        results = {"budget": asdict(budget), **self.gather(arms, folder, budget, workers)}
        (out / f"{self.name}.json").write_text(json.dumps(results) + "\n")
        self.write_report(results, out)
        print(f"wrote {out / self.name}.md, its pictures, and {self.name}.json")
