"""Per-layer diagnostics of posterior collapse of a VAE, or of a DiffuseVAE's first stage."""

import torch
from torch import Tensor

from ..kernels import Noise
from ..models import Model, check_model, evaluating
from .batches import Batches, Images, check_data, progress_bar

ACTIVE = 0.01  # variance over the data above which the posterior mean of a unit is active (Burda et al. 2016)


@torch.no_grad()
def evaluate_latents(
    model: Model,
    images: Tensor | Images,
    seed: int = 0,
    batch_size: int = 512,
    progress: bool = False,
    sharded: bool = False,
) -> dict[str, list]:
    """Return the number of active units and the term of the bound of every layer of latents.

    Args:
        model: any model of the family.
        images, progress, sharded: as in `evaluate`.
        seed: of one draw per image.
        batch_size: images per call of the networks, >= 1.

    Returns:
        ``active_units``: the number of dimensions whose posterior mean varies over the images by more than `ACTIVE`;
        0 means that the layer has collapsed to its prior. ``layer_nats``: the mean term of the layer in the bound.
        Lists from z_1 up; an empty dictionary for a model without such latents.

    Raises:
        InvalidTypeError, InvalidValueError, ProcessError: as in `evaluate`.
    """
    model = check_model("evaluate_latents", model)
    if "z" not in model.latent_variables:
        return {}
    check_data(model, images, None, 1, batch_size, 1)
    autoencoder = model.autoencoder

    def describe(x: Tensor, _: Tensor | None, noise: Noise) -> Tensor:
        """Return the means of all layers and the layers' terms one below the other, [layers · latent + layers, B]."""
        means = [mean.mT for mean, _ in autoencoder.encode(x)]
        nats = [values[None] for values in autoencoder.layer_nats(x, noise.to(x.device))]
        return torch.cat([*means, *nats])

    batches = Batches(autoencoder, images, None, seed, batch_size, sharded)
    with (
        evaluating(autoencoder),
        progress_bar(len(images), "latents", progress, sharded) as bar,
    ):
        found = torch.cat([values for _, values in batches.results(1, describe, bar)], 1).mT
    size = model.latent_size
    layers = found.shape[1] // (size + 1)
    return {
        "active_units": [
            int((means.var(0, correction=0) > ACTIVE).sum()) for means in found[:, : layers * size].split(size, 1)
        ],
        "layer_nats": found[:, layers * size :].mean(0).tolist(),
    }
