"""What all cases of `same_numbers.py` share: the class of a case, the models and the images.

A case is a name and a function of ``api``, which is the module `old_api` or `new_api`: the same calls, in the API of
one version. Models have fresh weights from one seed, where parameters that start at zero are filled with small random
numbers. The first version saves them, and the second loads them: so a version may name and arrange its parameters in
its own way.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EMBEDDED = "embedded"
PAPER_UNET = ("ConcatUNetConfig", {"width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)})
VDM_UNET = ("ConcatUNetConfig", {"width": 16, "multipliers": (1,), "attention": (), "embedding_bias": False})
PAPER_VAE = (
    "BottleneckVAEConfig",
    {"widths": (8, 16, 16), "rates": (2, 4), "encoder": (1, 1, 0), "decoder": (1, 1, 2)},
)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    EMBEDDED: ("digits", {}),
    "vdm": ("vdm-digits", {}),
    "ddpm, fixed_small": ("ddpm-digits", {"variance": "fixed_small"}),
    "ddpm, fixed_large": ("ddpm-digits", {"variance": "fixed_large"}),
    "ddpm, learned": ("ddpm-digits", {"variance": "learned"}),
    "diffusevae": ("diffusevae-digits", {}),
    "diffusevae2": ("diffusevae2-digits", {}),
    "diffusevae2, v": ("diffusevae2-digits", {"prediction": "v"}),
    "superresolution2": ("superresolution2-digits", {}),
    "superresolution4": ("superresolution4-digits", {}),
    "denoising": ("denoising-digits", {}),
    "vdm, learned schedule": ("vdm-digits", {"schedule": "learned", "prediction": "epsilon"}),
    "vdm, paper's network": ("vdm-digits", {"network": VDM_UNET, "prediction": "epsilon"}),
    "vdm, fixed cosine schedule": (
        "vdm-digits",
        {"schedule": "cosine", "learn_endpoints": False, "prediction": "v", "fourier": None},
    ),
    "ddpm, paper's network": ("ddpm-digits", {"network": PAPER_UNET, "T": 12}),
    "diffusevae2, v, learned": ("diffusevae2-digits", {"variance": "learned", "prediction": "v"}),
    "vae": ("vae-digits", {}),
    "hvae": ("hvae-digits", {}),
    "hvae, free bits": ("hvae-digits", {"free_bits": 20.0, "beta": 0.7}),
    "vae, paper's network": ("vae-digits", {"network": PAPER_VAE, "latent": 16}),
}
VAES = ("vae", "hvae", "hvae, free bits", "vae, paper's network")
LABELLED = (EMBEDDED, "vdm", "ddpm, fixed_large")
RESTORATION = ("superresolution2", "superresolution4", "denoising")
SHIFTED = ("diffusevae2", "diffusevae2, v", "diffusevae2, v, learned")  # formulation 2: another rounding is allowed
WEIGHTS = [Path("weights")]  # the folder of the weights; `same_numbers` names one for both versions
COUNT, LABELS = 8, torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


@dataclass(frozen=True)
class Case:
    """A name, a function from a version's calls to nested lists of tensors, numbers and strings, and an allowance.

    allowance: largest difference between the two versions, see `same_numbers`; 0 asks for the same bits.
    """

    name: str
    run: Callable[[Any], Any]
    allowance: float = 0.0


def fresh(api: Any, family: str, **changes: Any) -> nn.Module:
    """A family's model in eval mode, with the weights that the first version drew."""
    preset, own = FAMILIES[family]
    if family == EMBEDDED:
        return api.load(preset)
    path = WEIGHTS[0] / re.sub(r"\W+", "-", f"{family} {sorted(changes.items())}")
    if not path.exists():
        _draw(api, preset, own | changes).save(path)
    return api.load(path)


def _draw(api: Any, preset: str, changes: dict[str, Any]) -> nn.Module:
    """A preset's model with changed fields of its configuration and weights from a seed, none of them all zero."""
    torch.manual_seed(0)
    model, generator = api.build(preset, **changes), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    return model


def held_out(api: Any, count: int = 16) -> Tensor:
    """Images of the held-out digits."""
    return api.digits().test_images[:count]


def degraded(api: Any, family: str, count: int = COUNT) -> Tensor:
    """Conditioning images of a restoration family, without the package's own degradations."""
    x = api.to_unit_range(held_out(api, count), 17)
    if family == "denoising":
        return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.avg_pool2d(x, int(family[-1]))


def mixture_of_three() -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and Cholesky factors of a Gaussian mixture of latents of 16 dimensions."""
    generator = torch.Generator().manual_seed(4)
    factors = 0.2 * torch.randn(3, 16, 16, generator=generator, dtype=torch.float64).tril() + torch.eye(16)
    return torch.tensor([0.2, 0.5, 0.3]).double(), torch.randn(3, 16, generator=generator).double(), factors
