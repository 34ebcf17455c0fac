"""The public way to draw images from a model. It imports torch when it is called, not before."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .diffusion import Plan, Sampler
    from .models import Guidance, Latents, Model
    from .sampling import Engine

__all__ = ["sample"]


def sample(
    model: "Engine | Model | torch.nn.Module | str | Path",
    n: int,
    steps: int | None = None,
    sampler: "str | Sampler | Callable[[torch.Tensor], Plan]" = "ancestral",
    seed: int = 0,
    labels: "int | str | Sequence[int | str] | torch.Tensor | None" = None,
    guidance: "float | Guidance | None" = None,
    cond: "torch.Tensor | None" = None,
    latents: "Latents | None" = None,
    batch_size: int = 64,
    output: str = "uint8",
    device: "torch.device | str | None" = None,
    progress: bool = False,
    callback: "Callable[[int, int, torch.Tensor, torch.Tensor], object] | None" = None,
) -> Any:
    """Draw ``n`` images from a model.

    Image i is a function of (seed, i): its initial latent and its step noise are bit-identical for every batch size.
    The images are equal up to the rounding of the network, which on a CPU may differ between batch sizes.

    Args:
        model: a model, a checkpoint folder, a run's folder, or the name of an embedded model (``"digits"``). Or a
            `fastdiff.Engine`, a model with options of how it is run: compiled, as a captured CUDA graph (the default on
            a GPU), bit-identical for every batch size.
        n: number of images, >= 0.
        steps: steps of the sampler, 250 by default; >= 1, and >= 2 for a DDPM, whose decoder takes one. Heun calls the
            network twice a step. A VAE has no sampler and takes no steps.
        sampler: ``"ancestral"``, ``"ddim"``, ``"dpm-solver"``, ``"heun"``, ``"euler"``, ``"unipc"``, ``"deis"``,
            ``"dpm-solver-sde"``, ``"dpm-solver-sde-2s"`` or ``"euler-a"``; or a sampler object with options, such as
            ``UniPC(spacing="karras")`` or ``DDIM(eta=0.5, clip_denoised=True)`` (`fastdiff.diffusion`); or your own
            function from gammas float64 [steps + 1] to a `fastdiff.diffusion.Plan`.
        seed: integer in [0, 2**64).
        labels: class labels for a class-conditional model: the number or the name of one class for all images
            (``3``, ``"Q"``), or n of them; None samples without a label. Names are those of the model's configuration,
            ``model.config.names``; a string is always a name, which for a model without names is its number.
        guidance: weight of classifier-free guidance (Ho and Salimans 2022), which needs labels; 1 is the conditional
            model. ``fastdiff.Guidance(weight, interval=(0.2, 0.8))`` limits it to an interval of times.
        cond: conditioning images [n, ...] of a conditional model: the degraded images of a restoration model, or the
            images that a DiffuseVAE refines. uint8 levels, or floats as `fastdiff.kernels.to_unit_range` makes them.
        latents: how the latent z of a VAE or a DiffuseVAE is drawn (`fastdiff.Latents`): temperature, a mixture, or z
            itself.
        batch_size: images per call of the network, >= 1; twice as many with guidance.
        output: ``"uint8"`` scaled to 0..255, ``"levels"`` the model's integer levels, ``"float"`` float32 in [-1, 1],
            each a tensor [n, C, H, W] on the CPU; ``"pil"`` a list of Pillow images.
        device: where to run. The model is moved there and stays there. None runs where the model is.
        progress: show a progress bar on stderr.
        callback: called after each call of the network as ``callback(step, nfe, z_t, x_hat)``: the sampler's step, the
            number of function evaluations so far in this batch, the latent that the step gave, and the estimate of x,
            both [batch, C, H, W] on the model's device. A VAE does not call it.

    Raises:
        FastdiffError: an argument of the wrong type or out of range (also a TypeError or ValueError), a model or a
            mixture that cannot be loaded (`CheckpointError`), a result that is not finite (`SamplingError`).
    """
    from .sampling import sample_images

    return sample_images(
        model, n, steps, sampler, seed, labels, guidance, cond, latents, batch_size, output, device, progress, callback
    )
