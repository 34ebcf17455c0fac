"""Studies: commands that train small models and write a table and pictures (``fastdiff reproduce``)."""

from .noise_schedules import Budget
from .noise_schedules import reproduce as noise_schedules
from .runner import StudyError

STUDIES = {"schedules": noise_schedules}

__all__ = ["STUDIES", "Budget", "StudyError"]
