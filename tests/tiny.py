"""Models small enough for tests, and data for them."""

import torch
from torch import nn

from fastdiff.models import (
    HVAE,
    VDM,
    ConvVAEConfig,
    DDPMConfig,
    DiffuseVAE,
    DiffuseVAEConfig,
    HVAEConfig,
    UNetConfig,
    VDMConfig,
)

SMALL = UNetConfig(widths=(8, 12), blocks=1, embedding=16, dropout=0.0, heads=2)
SMALL_VAE = {
    "shape": (1, 8, 8), "levels": 17, "latent": 5, "hidden": 16,
    "network": ConvVAEConfig(widths=(8, 12), max_groups=4, dropout=0.0),
}  # fmt: skip


def small(head: str = "eps", seed: int = 0, **changes) -> VDM:
    """A small model with weights that are not zero where they start at zero."""
    torch.manual_seed(seed)
    settings = {"shape": (1, 8, 8), "levels": 17, "gamma_0": -8.0, "fourier": (3, 4), "head": head, "network": SMALL}
    model = VDM(VDMConfig(**(settings | changes)))
    for parameter in model.network.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def images(count: int, seed: int = 1, shape=(1, 8, 8), levels: int = 17) -> torch.Tensor:
    return torch.randint(levels, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class IndependentPixels(nn.Module):
    """The exact network for pixels that are drawn independently from one distribution: its log-probabilities."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.log_prior = probabilities.log()

    def forward(self, features, number, labels=None):
        return self.log_prior[None, :, None, None].expand(len(features), -1, *features.shape[2:]).contiguous()


def exact_model(probabilities: torch.Tensor, gamma_0: float, gamma_1: float) -> VDM:
    config = VDMConfig(
        (1, 4, 4), len(probabilities), gamma_0=gamma_0, gamma_1=gamma_1, fourier=None, head="levels", network=SMALL
    )
    model = VDM(config)
    model.network = IndependentPixels(probabilities)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def filled(model: nn.Module) -> nn.Module:
    """The model with small random numbers where its parameters start at zero, in eval mode."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def small_vae(depth: int = 2, seed: int = 0, **changes) -> HVAE:
    torch.manual_seed(seed)
    return filled(HVAE(HVAEConfig(**(SMALL_VAE | {"depth": depth} | changes))))


def small_diffusevae(formulation: int, seed: int = 0, depth: int = 1, **changes) -> DiffuseVAE:
    torch.manual_seed(seed)
    refiner = DDPMConfig(**({"shape": (1, 8, 8), "levels": 17, "steps": 12, "network": SMALL} | changes))
    vae = HVAEConfig(**(SMALL_VAE | {"depth": depth}))
    model = DiffuseVAE(DiffuseVAEConfig((1, 8, 8), 17, vae=vae, refiner=refiner, formulation=formulation))
    model.take_first_stage(model.vae)
    filled(model)
    return model
