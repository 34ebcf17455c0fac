"""Studies: commands that train small models and write a table and pictures (``fastdiff reproduce``)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .budget import Budget
from .latent_steps import reproduce as reproduce_latent_steps
from .noise_schedules import reproduce as reproduce_schedules
from .restoration import BUDGET as RESTORATION_BUDGET
from .restoration import reproduce as reproduce_restoration
from .runner import StudyError
from .speed_up import BUDGET as SPEED_UP_BUDGET
from .speed_up import reproduce as reproduce_speed_up


@dataclass(frozen=True)
class Study:
    """A study: ``reproduce(out, runs, budget, workers)``, what its committed run cost, and where its models are.

    Studies of one ``folder`` share models. Without ``draws`` a study takes no bound, and the budget's are not used.
    """

    reproduce: Callable[[Path, Path, Budget, int], None]
    budget: Budget
    folder: str
    draws: bool = True


STUDIES = {
    "schedules": Study(reproduce_schedules, Budget(steps=2000, seeds=2, draws=128), "schedules"),
    "latent-steps": Study(reproduce_latent_steps, Budget(steps=2000, seeds=2, draws=128), "latent-steps"),
    "speed-up": Study(reproduce_speed_up, SPEED_UP_BUDGET, "diffusevae"),
    "restoration": Study(reproduce_restoration, RESTORATION_BUDGET, "diffusevae", draws=False),
}

__all__ = ["STUDIES", "Budget", "Study", "StudyError"]
