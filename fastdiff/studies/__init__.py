"""Studies: commands that train small models and write a table and pictures (``fastdiff reproduce``)."""

from .budget import Budget
from .latent_steps import reproduce as reproduce_latent_steps
from .noise_schedules import reproduce as reproduce_schedules
from .runner import StudyError

STUDIES = {"schedules": reproduce_schedules, "latent-steps": reproduce_latent_steps}

__all__ = ["STUDIES", "Budget", "StudyError"]
