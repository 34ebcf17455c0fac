"""Studies: commands that train small models and write a table and pictures (``fastdiff reproduce``)."""

from . import latent_steps, noise_schedules, restoration, speed_up
from .budget import Budget
from .runner import StudyError
from .study import Study

STUDIES = {each.STUDY.name: each.STUDY for each in (noise_schedules, latent_steps, speed_up, restoration)}

__all__ = ["STUDIES", "Budget", "Study", "StudyError"]
