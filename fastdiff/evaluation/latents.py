"""Per-layer diagnostics of posterior collapse of a VAE, or of a DiffuseVAE's first stage."""

import torch
from torch import Tensor

from ..kernels import Noise
from ..models import Model, check_model, evaluating
from .batches import EVALUATION_STEP, check_data

ACTIVE = 0.01  # variance over the data above which the posterior mean of a unit is active (Burda et al. 2016)


@torch.no_grad()
def evaluate_latents(model: Model, images: Tensor, seed: int = 0, batch_size: int = 512) -> dict[str, list]:
    """Return the number of active units and the term of the bound of every layer of latents.

    Args:
        model: any model of the family.
        images: uint8 [N, C, H, W], N >= 1.
        seed: of one draw per image.
        batch_size: images per call of the networks, >= 1.

    Returns:
        ``active_units``: the number of dimensions whose posterior mean varies over the images by more than `ACTIVE`;
        0 means that the layer has collapsed to its prior. ``layer_nats``: the mean term of the layer in the bound.
        Lists from z_1 up; an empty dictionary for a model without such latents.

    Raises:
        InvalidTypeError, InvalidValueError: as in `evaluate`.
    """
    model = check_model("evaluate_latents", model)
    if "z" not in model.latent_variables:
        return {}
    check_data(model, images, None, 1, batch_size, 1)
    autoencoder = model.autoencoder
    images, noise = images.to(model.device), Noise(seed, EVALUATION_STEP).to(model.device)
    firsts = range(0, len(images), batch_size)
    with evaluating(autoencoder):
        encoded = [autoencoder.encode(images[i : i + batch_size]) for i in firsts]
        nats = [autoencoder.layer_nats(images[i : i + batch_size], noise.at(first_sample=i)) for i in firsts]
    means = [torch.cat([mean.double() for mean, _ in layer]) for layer in zip(*encoded, strict=True)]
    return {
        "active_units": [int((mean.var(0, correction=0) > ACTIVE).sum()) for mean in means],
        "layer_nats": [float(torch.cat(layer).double().mean()) for layer in zip(*nats, strict=True)],
    }
