"""The scheduler of a diffusers pipeline as one of our samplers. diffusers itself is not needed."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from attrs import evolve

from ..checkpoints.diffusers_folder import read_scheduler
from ..diffusion.beta_schedule import BetaSchedule, betas_of
from ..diffusion.multistep import ORDERS
from ..diffusion.process import sigma
from ..diffusion.samplers import DDIM, Ancestral, DPMSolver, Euler, EulerAncestral, Sampler, UniPC
from ..io.configuration import ConfigError, between
from ..kernels import InvalidTypeError, InvalidValueError
from ..models.formats.diffusers_scheduler import DDPM_SCHEDULER, Chain, read_chain
from ..models.formats.settings import Settings, SettingsReader, among, shown

# Settings of schedulers of one step, those of multistep schedulers, and their defaults
ONE_STEP = {
    "clip_sample": True, "clip_sample_range": 1.0, "thresholding": False, "steps_offset": 0,
    "timestep_spacing": "leading", "set_alpha_to_one": True,
}  # fmt: skip
SIGMAS = {
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_lu_lambdas": False,
    "final_sigmas_type": "zero", "interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None,
    "sigma_max": None, "thresholding": False, "steps_offset": 0, "timestep_spacing": "linspace",
}  # fmt: skip
METHODS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}  # of a FastdiffScheduler
MULTISTEP = {
    **SIGMAS, "solver_order": 2, "lower_order_final": True, "euler_at_final": False, "disable_corrector": [],
    "solver_p": None, "predict_x0": True, "use_dynamic_shifting": False,
}  # fmt: skip


class Scheduler(Protocol):
    """A scheduler of diffusers."""

    @property
    def config(self) -> Settings: ...


def diffusers_sampler(
    source: str | Path | Settings | Scheduler,
    scheduler: str | None = None,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> Sampler:
    """Return the sampler that takes the steps of a diffusers scheduler, for `fastdiff.sample`.

    For a `DDPM` of the same chain (`fastdiff.load`) it calls the network at the same timesteps and goes to the same
    latents, but for other noise, for two or more steps. There are two exceptions, both with trailing timesteps:
    for some numbers of steps diffusers adds a timestep -1 by rounding, and its DDIM goes to timestep t - T // steps,
    which is the next one for divisors of T alone.

    ``DDPMScheduler``, ``DDIMScheduler``, ``EulerDiscreteScheduler`` and ``EulerAncestralDiscreteScheduler`` with
    leading or trailing timesteps (DDPM also with linspace), and ``DPMSolverMultistepScheduler`` and
    ``UniPCMultistepScheduler`` with trailing ones, are samplers of ours, and so is a `FastdiffScheduler`, as DDPM or
    DDIM; for any other the message says what is not.

    Args:
        source: the folder of a pipeline or of a scheduler; or a scheduler, such as ``pipeline.scheduler``; or the
            content of scheduler_config.json. A folder without one stands for ``DDPMScheduler()``.
        scheduler: the name of a class to read the configuration as, by default its own, such as ``"DDIMScheduler"``
            for that of a DDPM, as ``DDIMScheduler.from_config`` does.
        eta, use_clipped_model_output: the arguments of the call of a DDIMPipeline.

    Raises:
        InvalidTypeError, InvalidValueError: a source of another kind, or eta for a scheduler without it.
        CheckpointError: the folder or its configuration cannot be read.
        ConfigError: a scheduler that none of our samplers is; the message lists every setting that differs.
    """
    settings = _settings(source)
    name = scheduler or settings.get("_class_name")
    if name == "FastdiffScheduler":
        name = METHODS.get(str(settings.get("method")), name)
    if not isinstance(name, str) or name not in READERS:
        raise ConfigError(f"scheduler must be {among(READERS)}, got {shown(name)}")
    wanted = between(0.0, 1.0)(eta)
    if wanted is not None:
        raise InvalidValueError(f"eta must {wanted}, got {eta}")
    if eta and READERS[name][0] is not _ddim:
        raise InvalidValueError(f"eta must be 0 for a {name}, got {eta}")
    read, defaults = READERS[name]
    reader = SettingsReader({**defaults, **settings})
    chain = read_chain({**settings, "_class_name": name}, reader.problems)
    reader.fixed("thresholding", (False,))
    if reader.values["timestep_spacing"] == "leading":
        reader.fixed("steps_offset", (0,))
    sampler = read(reader, chain)
    reader.check("the configuration", f"a {name}")
    if not isinstance(sampler, DDIM):
        return sampler
    return evolve(sampler, eta=eta, keep_eps_hat=sampler.clip_denoised and not use_clipped_model_output)


def _settings(source: object) -> Settings:
    """Return a configuration with the name of its class."""
    if isinstance(source, (str, Path)):
        return read_scheduler(Path(source)) or DDPM_SCHEDULER
    config = source if isinstance(source, Mapping) else getattr(source, "config", None)
    if not isinstance(config, Mapping):
        kind = type(source).__name__
        raise InvalidTypeError(f"source must be a path, a scheduler or its configuration, got a {kind}")
    return dict(config) if config is source else {**config, "_class_name": type(source).__name__}


def _ddpm(reader: SettingsReader, chain: Chain) -> Sampler:
    spacing = _spacing(reader, "leading", "trailing", "linspace")
    if spacing == "trailing" and chain.variance != "fixed_small":
        reader.reject(
            "variance_type", "be 'fixed_small' with trailing timesteps (others add noise after the last step)"
        )
    return Ancestral(spacing=spacing, variance=chain.variance, clip_denoised=_clips(reader))


def _ddim(reader: SettingsReader, chain: Chain) -> Sampler:
    reader.fixed("set_alpha_to_one", (True,), " (otherwise the last step leaves noise)")
    return DDIM(spacing=_spacing(reader, "leading", "trailing"), clip_denoised=_clips(reader))


def _euler(reader: SettingsReader, chain: Chain) -> Sampler:
    spacing = _sigmas(reader, "leading", "trailing")
    return Euler(spacing=spacing, temperature=_initial_scale(spacing, chain))


def _euler_ancestral(reader: SettingsReader, chain: Chain) -> Sampler:
    spacing = _sigmas(reader, "leading", "trailing")
    return EulerAncestral(spacing=spacing, temperature=_initial_scale(spacing, chain))


def _dpm_solver(reader: SettingsReader, chain: Chain) -> Sampler:
    reader.fixed("algorithm_type", ("dpmsolver++",))
    reader.fixed("solver_order", (2,))
    reader.fixed("solver_type", ("midpoint",))
    reader.fixed("lambda_min_clipped", (-math.inf,))
    return DPMSolver(spacing=_sigmas(reader, "trailing"))


def _unipc(reader: SettingsReader, chain: Chain) -> Sampler:
    reader.fixed("solver_order", ORDERS)
    reader.fixed("solver_type", ("bh2",), " (with bh1 their last step, to sigma = 0, is not finite)")
    reader.fixed("lower_order_final", (True,))
    reader.fixed("disable_corrector", ([],))
    reader.fixed("solver_p", (None,))
    reader.fixed("predict_x0", (True,))
    return UniPC(spacing=_sigmas(reader, "trailing"), order=min(3, reader.integer("solver_order")))


def _spacing(reader: SettingsReader, *known: str) -> str:
    return reader.one_of("timestep_spacing", {name: name for name in known}, known[0])


def _sigmas(reader: SettingsReader, *known: str) -> str:
    """Return the spacing of a scheduler that steps in sigma / alpha: at the levels of the chain, and to x_hat last."""
    for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        reader.fixed(name, (False, None))
    reader.fixed("final_sigmas_type", ("zero",))
    reader.fixed("interpolation_type", ("linear",))
    reader.fixed("timestep_type", ("discrete",))
    return _spacing(reader, *known)


def _clips(reader: SettingsReader) -> bool:
    clips = reader.flag("clip_sample")
    if clips:
        reader.fixed("clip_sample_range", (1,))
    return clips


def _initial_scale(spacing: str, chain: Chain) -> float:
    """Return the factor on the initial noise: their latents are noise times sigma / alpha, or for leading timesteps
    times sqrt(1 + sigma² / alpha²), which is our z / alpha.
    """
    if spacing != "trailing":
        return 1.0
    betas = betas_of(chain.beta_schedule, chain.beta_count, chain.beta_first, chain.beta_last)
    return float(sigma(BetaSchedule(betas).endpoints()[1]))


READERS: dict[str, tuple[Callable[[SettingsReader, Chain], Sampler], dict[str, object]]] = {
    "DDPMScheduler": (_ddpm, ONE_STEP),
    "DDIMScheduler": (_ddim, ONE_STEP),
    "DDPMParallelScheduler": (_ddpm, ONE_STEP),
    "DDIMParallelScheduler": (_ddim, ONE_STEP),
    "EulerDiscreteScheduler": (_euler, SIGMAS),
    "EulerAncestralDiscreteScheduler": (_euler_ancestral, SIGMAS),
    "DPMSolverMultistepScheduler": (
        _dpm_solver,
        {**MULTISTEP, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lambda_min_clipped": -math.inf},
    ),
    "UniPCMultistepScheduler": (_unipc, {**MULTISTEP, "solver_type": "bh2"}),
}  # fmt: skip
