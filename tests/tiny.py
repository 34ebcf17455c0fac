"""Models small enough for tests, and data for them."""

from typing import TypeVar

import torch
from torch import nn

from fastdiff.diffusion import Plan, Schedule, as_sampler, make_plan, sample_latents
from fastdiff.kernels import Noise, Stream, to_unit_range
from fastdiff.models import (
    DDPM,
    HVAE,
    VDM,
    ConvVAEConfig,
    DDPMConfig,
    Degradation,
    DiffuseVAE,
    DiffuseVAEConfig,
    DiffusionModel,
    Downsample,
    HVAEConfig,
    Restoration,
    RestorationConfig,
    UNetConfig,
    VDMConfig,
)

M = TypeVar("M", bound=nn.Module)
SMALL = UNetConfig(widths=(8, 12), blocks=1, embedding=16, dropout=0.0, heads=2)
DATA = {"shape": (1, 8, 8), "levels": 17}
SMALL_VAE = {
    **DATA, "latent": 5, "hidden": 16, "network": ConvVAEConfig(widths=(8, 12), max_groups=4, dropout=0.0),
}  # fmt: skip
SMALL_DDPM = {**DATA, "T": 12, "network": SMALL}


def filled(model: M, part: nn.Module | None = None) -> M:
    """Return the model in eval mode, with small random numbers where parameters of it (or of a part) start at zero."""
    for parameter in (part or model).parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def small(prediction: str = "epsilon", seed: int = 0, **changes) -> VDM:
    torch.manual_seed(seed)
    settings = {**DATA, "gamma_0": -8.0, "fourier": (3, 4), "prediction": prediction, "network": SMALL}
    model = VDM(VDMConfig(**(settings | changes)))
    return filled(model, model.network)


def small_ddpm(T: int = 12, seed: int = 0, **changes) -> DDPM:
    torch.manual_seed(seed)
    return filled(DDPM(DDPMConfig(**(SMALL_DDPM | {"T": T} | changes))))


def small_vae(depth: int = 2, seed: int = 0, **changes) -> HVAE:
    torch.manual_seed(seed)
    return filled(HVAE(HVAEConfig(**(SMALL_VAE | {"depth": depth} | changes))))


def small_diffusevae(formulation: int = 1, seed: int = 0, depth: int = 1, **changes) -> DiffuseVAE:
    torch.manual_seed(seed)
    vae = HVAEConfig(**(SMALL_VAE | {"depth": depth}))
    model = DiffuseVAE(DiffuseVAEConfig(**(SMALL_DDPM | changes), vae=vae, formulation=formulation))
    model.take_first_stage(model.vae)
    return filled(model)


def small_restoration(
    degradation: Degradation | None = None, formulation: int = 1, seed: int = 0, **changes
) -> Restoration:
    torch.manual_seed(seed)
    degradation = Downsample() if degradation is None else degradation
    return filled(
        Restoration(RestorationConfig(**(SMALL_DDPM | changes), degradation=degradation, formulation=formulation))
    )


def images(count: int, seed: int = 1, shape=(1, 8, 8), levels: int = 17) -> torch.Tensor:
    return torch.randint(levels, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class IndependentPixels(nn.Module):
    """The exact network for pixels that are drawn independently from one distribution: its log-probabilities."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.log_prior = probabilities.log()

    def forward(self, features, noise_level, labels=None):
        return self.log_prior[None, :, None, None].expand(len(features), -1, *features.shape[2:]).contiguous()


def exact_model(probabilities: torch.Tensor, gamma_0: float, gamma_1: float) -> VDM:
    config = VDMConfig(
        shape=(1, 4, 4), levels=len(probabilities), gamma_0=gamma_0, gamma_1=gamma_1, fourier=None,
        prediction="categorical",
    )  # fmt: skip
    return VDM(config, network=IndependentPixels(probabilities))


# ------------------------------------------------------------------------------------------------ plans and the loop


class Levels(Schedule):
    """The schedule through gammas float64 [steps + 1] at evenly spaced times; defined at these times alone."""

    def __init__(self, gamma: torch.Tensor) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, t):
        return self.gamma[(t * (len(self.gamma) - 1)).round().long()].to(t.dtype)


def plan_at(gamma: torch.Tensor, sampler="ancestral", to_x: bool = False, variance: str = "fixed_small") -> Plan:
    """The plan of a sampler at gammas [steps + 1]; with ``to_x`` the last row goes to x_hat, as for a DDPM."""
    return make_plan(as_sampler(sampler), Levels(gamma), len(gamma) - 1 + to_x, variance, to_x)


def plan_of(model: DiffusionModel, steps: int, sampler="ancestral") -> Plan:
    """The plan of a sampler for a model."""
    return make_plan(as_sampler(sampler), model.gamma, steps, model.variance, model.network_decoder)


def run(model: DiffusionModel, count: int, plan: Plan, noise: Noise, temperature: float = 1.0) -> torch.Tensor:
    """The result of the sampling loop from the latents that a request with this noise starts from."""
    initial = noise.at(stream=Stream.INITIAL).normal((count, *model.shape))
    return sample_latents(model.predict, temperature * initial, plan, noise)


def diffusion_nats(
    model: DiffusionModel, x: torch.Tensor, noise: Noise, u: torch.Tensor, num_transitions: int | None = None
) -> torch.Tensor:
    """The diffusion term of the bound at times u; None is continuous time."""
    data = to_unit_range(x, model.levels)
    return model._diffusion(data, noise, u, num_transitions, None, model.draw_cond(x, noise)[0])
