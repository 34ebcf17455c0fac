"""The chain of a diffusers scheduler, its configuration in terms of a `DDPMConfig`, and back.

diffusers' schedulers are many samplers for one kind of model, a chain of betas. Their configurations share the fields
that define the chain and what the network predicts; the others belong to the sampler
(`fastdiff.interop.diffusers_sampler`).
"""

from dataclasses import dataclass

from ..ddpm_config import MAX_BETAS
from .settings import Settings, SettingsReader, shown

BETAS, LATENT_BETAS = (1e-4, 0.02), (0.00085, 0.012)  # the defaults of their classes
SCHEDULERS = {
    **dict.fromkeys(
        (
            "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "PNDMScheduler",
            "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler",
            "DEISMultistepScheduler", "SASolverScheduler", "FastdiffScheduler",
        ),
        BETAS,
    ),
    **dict.fromkeys(
        ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"),
        LATENT_BETAS,
    ),
}  # fmt: skip
BETA_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTION_NAMES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x"}
VARIANCE_NAMES = {
    "fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large",
    "learned_range": "learned",
}  # fmt: skip
DDPM_SCHEDULER = {
    "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "trained_betas": None,
    "prediction_type": "epsilon", "variance_type": "fixed_small", "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False,
}  # fmt: skip
FROM_CHAIN = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "variance_type")
NO_INFINITE_GAMMA = ": with a signal-to-noise ratio of 0 at the last step gamma is infinite there"


@dataclass(frozen=True)
class Chain:
    """What a scheduler says about a model; the fields are those of `DDPMConfig`."""

    beta_count: int
    beta_first: float
    beta_last: float
    beta_schedule: str
    prediction: str
    variance: str


def read_chain(scheduler: Settings, problems: list[str]) -> Chain:
    """Return the chain of a scheduler's configuration; what fastdiff does not have is added to ``problems``."""
    name = scheduler.get("_class_name", DDPM_SCHEDULER["_class_name"])
    known = isinstance(name, str) and name in SCHEDULERS
    first, last = SCHEDULERS[name] if known and isinstance(name, str) else BETAS
    given = {key: value for key, value in scheduler.items() if value is not None or key != "variance_type"}
    reader = SettingsReader({**DDPM_SCHEDULER, "beta_start": first, "beta_end": last, **given}, problems)
    if not known:
        problems.append(f"the scheduler must be one of a chain of betas ({', '.join(SCHEDULERS)}), got {shown(name)}")
    reader.fixed("trained_betas", (None,))
    reader.fixed("rescale_betas_zero_snr", (False,), NO_INFINITE_GAMMA)
    reader.fixed("use_flow_sigmas", (False,))
    before = len(problems)
    beta_first, beta_last = reader.number("beta_start", 0.0, 1.0), reader.number("beta_end", 0.0, 1.0)
    if len(problems) == before and beta_first > beta_last:
        reader.reject("beta_start", f"be <= beta_end, {beta_last:g}")
    return Chain(
        reader.integer("num_train_timesteps", 2, MAX_BETAS), beta_first, beta_last,
        reader.one_of("beta_schedule", BETA_NAMES, "linear"),
        reader.one_of("prediction_type", PREDICTION_NAMES, "epsilon"),
        reader.one_of("variance_type", VARIANCE_NAMES, "fixed_small"),
    )  # fmt: skip


def write_chain(chain: Chain) -> dict[str, object]:
    """Return the configuration of a DDPMScheduler for a chain, with x_hat clipped to [-1, 1] as DDPM does."""
    betas = {ours: theirs for theirs, ours in BETA_NAMES.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTION_NAMES.items()}
    variances = {"fixed_small": "fixed_small", "fixed_large": "fixed_large", "learned": "learned_range"}
    return {
        "_class_name": "DDPMScheduler", "num_train_timesteps": chain.beta_count, "beta_start": chain.beta_first,
        "beta_end": chain.beta_last, "beta_schedule": betas[chain.beta_schedule], "trained_betas": None,
        "variance_type": variances[chain.variance], "clip_sample": True, "clip_sample_range": 1.0,
        "prediction_type": predictions[chain.prediction], "thresholding": False,
        "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "timestep_spacing": "leading",
        "steps_offset": 0, "rescale_betas_zero_snr": False,
    }  # fmt: skip
