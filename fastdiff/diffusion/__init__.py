"""The mathematics of diffusion without networks: schedules, process, bound, likelihood, samplers, the sampling loop."""

from .beta_schedule import BetaSchedule, linear_betas, log_expm1
from .bound import LOSSES, Objective, Vlb
from .brownian import BrownianTable, brownian_table
from .execution import Execution
from .likelihood import discretized_gaussian_nll
from .loop import Callback, Denoiser, SamplingError, sample_latents
from .pinned_schedules import (
    SCHEDULES,
    BetaLinearSchedule,
    CosineSchedule,
    FlowSchedule,
    LearnedSchedule,
    LinearSchedule,
    PinnedSchedule,
    VelocityImportanceSchedule,
    VImportanceSchedule,
)
from .plan import Plan, coefficient_rows
from .planning import make_plan
from .proposal import PiecewiseLinearSchedule, fit_proposal
from .samplers import (
    DDIM,
    DEIS,
    SAMPLERS,
    VARIANCES,
    Ancestral,
    DPMSolver,
    DPMSolverSDE,
    DPMSolverSDE2S,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    UniPC,
    as_sampler,
)
from .schedules import SPACINGS, FunctionSchedule, Schedule, ScheduleError, as_schedule, gamma_table

__all__ = [
    "DDIM", "DEIS", "LOSSES", "SAMPLERS", "SCHEDULES", "SPACINGS", "VARIANCES", "Ancestral", "BetaLinearSchedule",
    "BetaSchedule", "BrownianTable", "Callback", "CosineSchedule", "DPMSolver", "DPMSolverSDE", "DPMSolverSDE2S",
    "Denoiser", "Euler", "EulerAncestral", "Execution", "FlowSchedule", "FunctionSchedule", "Heun", "LearnedSchedule",
    "LinearSchedule", "Objective", "PiecewiseLinearSchedule", "PinnedSchedule", "Plan", "Sampler", "SamplingError",
    "Schedule", "ScheduleError", "UniPC", "VImportanceSchedule", "VelocityImportanceSchedule", "Vlb", "as_sampler",
    "as_schedule", "brownian_table", "coefficient_rows", "discretized_gaussian_nll", "fit_proposal", "gamma_table",
    "linear_betas", "log_expm1", "make_plan", "sample_latents",
]  # fmt: skip
