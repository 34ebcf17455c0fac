"""The mathematics of diffusion without networks: schedules, process, bound, likelihood, samplers, the sampling loop."""

from .beta_schedule import BetaSchedule, linear_betas, log_expm1
from .bound import LOSSES, Objective, Vlb
from .likelihood import discretized_gaussian_nll
from .loop import Callback, SamplingError, sample_latents
from .pinned_schedules import (
    SCHEDULES,
    BetaLinearSchedule,
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    PinnedSchedule,
)
from .plan import Plan, coefficient_rows
from .samplers import DDIM, SAMPLERS, VARIANCES, Ancestral, DPMSolver, Heun, Sampler, as_sampler, make_plan
from .schedules import SPACINGS, FunctionSchedule, Schedule, ScheduleError, as_schedule, gamma_table

__all__ = [
    "DDIM", "LOSSES", "SAMPLERS", "SCHEDULES", "SPACINGS", "VARIANCES", "Ancestral", "BetaLinearSchedule",
    "BetaSchedule", "Callback", "CosineSchedule", "DPMSolver", "FunctionSchedule", "Heun", "LearnedSchedule",
    "LinearSchedule", "Objective", "PinnedSchedule", "Plan", "Sampler", "SamplingError", "Schedule", "ScheduleError",
    "Vlb", "as_sampler", "as_schedule", "coefficient_rows", "discretized_gaussian_nll", "gamma_table", "linear_betas",
    "log_expm1", "make_plan", "sample_latents",
]  # fmt: skip
