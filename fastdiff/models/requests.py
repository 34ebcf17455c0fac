"""A request for images, and what a model makes of it: the way from latents to images is the same for every caller."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..diffusion.execution import Execution
from ..diffusion.loop import Callback
from ..diffusion.samplers import Ancestral, Sampler
from ..kernels import InvalidTypeError, InvalidValueError, Noise
from .image_data import ImageConfig, listed


class Mixture(Protocol):
    """A distribution of latents that replaces the prior (`fastdiff.sampling.mixtures.LatentMixture`)."""

    def draw(self, count: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Draw z, float32 [count, latent]."""
        ...

    def check_fits(self, autoencoder: torch.nn.Module) -> None:
        """Raise an InvalidValueError if the mixture was fitted to the latents of another model."""
        ...


@dataclass(frozen=True)
class Latents:
    """How the latent z of a VAE or of a DiffuseVAE's first stage is drawn.

    Args:
        temperature: factor on the standard deviation of the draw, > 0.
        mixture: a mixture fitted to the latents, the folder of one, or the name of an embedded model that has one
            (``"diffusevae-letters"``), to draw z_1 from instead of the prior.
        z: the latents z_1 themselves, float [n, latent], instead of drawing them.

    Raises:
        InvalidTypeError, InvalidValueError: a value that is not allowed, or z together with another option.
    """

    temperature: float = 1.0
    mixture: Mixture | str | Path | None = None
    z: Tensor | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.temperature, (int, float)) and not isinstance(self.temperature, bool)
        if not number or not 0 < self.temperature < math.inf:
            raise InvalidValueError(f"Latents: temperature must be a finite number > 0, got {self.temperature!r}")
        if self.mixture is not None and not isinstance(self.mixture, (str, Path)) and not hasattr(self.mixture, "draw"):
            raise InvalidTypeError(f"Latents: mixture must be a LatentMixture or its folder, got {self.mixture!r}")
        if self.z is not None and not isinstance(self.z, Tensor):
            raise InvalidTypeError(f"Latents: z must be a tensor [n, latent] or None, got a {type(self.z).__name__}")
        if self.z is not None and (self.mixture is not None or self.temperature != 1.0):
            raise InvalidValueError("Latents: z must be None where a mixture or a temperature is set")

    def draw(self, prior: Callable[..., Tensor], first: int, count: int, noise: Noise) -> Tensor:
        """Return z_1 [count, latent] of the samples from ``first``; ``prior`` is `Model.prior_latents`."""
        if self.z is not None:
            return rows_of(self.z, first, count).to(noise.key.device)
        if self.mixture is None:
            return prior(count, noise, self.temperature)
        assert not isinstance(self.mixture, (str, Path)), "the mixture is loaded before a request is made"
        return self.mixture.draw(count, noise, self.temperature)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022): eps_hat <- u + weight (eps_hat - u), u without a label.

    Args:
        weight: 1 is the conditional model.
        interval: (low, high) within [0, 1], the times t in which the weight applies (Kynkäänniemi et al. 2024). Outside
            of it the conditional model is called alone, so that a short interval saves calls of the network.

    Raises:
        InvalidValueError: a weight that is not finite, or an interval outside of [0, 1].
    """

    weight: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not math.isfinite(self.weight):
            raise InvalidValueError(f"sample: guidance must be a finite number or None, got {self.weight!r}")
        interval = self.interval
        pair = isinstance(interval, (tuple, list)) and len(interval) == 2
        numbers = pair and all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in interval)
        if not numbers or not 0.0 <= interval[0] <= interval[1] <= 1.0:
            raise InvalidValueError(
                f"Guidance: interval must be (low, high) with 0 <= low <= high <= 1, got {interval!r}"
            )


@dataclass(frozen=True)
class Edit:
    """Images that a request starts from, in place of noise. `fastdiff.sampling` checks them.

    images: uint8 levels [n, C, H, W]. strength: time in (0, 1] at which the sampler starts, from q(z_t | x). unknown:
    bool [n, C, H, W], the pixels to fill in; the others are known, and the denoiser's estimate of them is the image.
    None: all are to be changed. resample: how many times each step is made. inverse: solve the ODE from images to
    latents z_1, float32, which the request then gives in place of images.
    """

    images: Tensor
    strength: float = 1.0
    unknown: Tensor | None = None
    resample: int = 1
    inverse: bool = False


@dataclass(frozen=True)
class Request:
    """A request for ``n`` images; the options are those of `fastdiff.sample`.

    ``initial`` is x_T, [n, C, H, W], instead of drawing it, and ``edit`` are images to start from. With
    ``shared_noise`` all images take the noise of sample 0, in x_T and in every step. ``execution`` says how the model
    is called.
    """

    n: int
    seed: int = 0
    steps: int | None = None
    sampler: Sampler = Ancestral()  # noqa: RUF009
    labels: object = None
    guidance: float | Guidance | None = None
    cond: object = None
    latents: Latents | None = None
    initial: Tensor | None = None
    edit: Edit | None = None
    shared_noise: bool = False
    execution: Execution = field(default_factory=Execution, compare=False)


# The options that not every model accepts, and their defaults.
DEFAULTS = {
    "steps": None, "sampler": Ancestral(), "labels": None, "guidance": None, "cond": None, "latents": None,
    "initial": None, "edit": None,
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """A checked request: ``batch(first, count, callback)`` draws the images first .. first + count - 1, uint8.

    ``rows`` is the number of times that a batch calls ``callback``. A batch may reach beyond the last image of the
    request: the images there are thrown away (`rows_of`).
    """

    rows: int
    batch: Callable[[int, int, Callback | None], Tensor]


@dataclass(frozen=True)
class Start:
    """What a reconstruction starts from.

    shown: float32 [N, C, H, W] in about [-1, 1], the degraded images at full size or the first stage's
    reconstructions; None if it starts from the images. latents, cond: the options of the request that finishes it.
    """

    shown: Tensor | None
    latents: Latents | None = None
    cond: Tensor | None = None


def rows_of(tensor: Tensor, first: int, count: int) -> Tensor:
    """Return the rows first .. first + count - 1 of a tensor [n, ...]; beyond its end the last row again."""
    rows = tensor[first : first + count]
    missing = count - len(rows)
    return rows if not missing else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])


def guidance_of_request(guidance: float | Guidance | None, labels: object) -> Guidance | None:
    """Return the guidance of a request; None where the conditional model alone is called.

    Raises:
        InvalidValueError: guidance without labels, or that is not finite.
    """
    if guidance is None:
        return None
    if labels is None:
        raise InvalidValueError(f"sample: guidance must be None without labels, got {guidance!r}")
    guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    return None if guidance.weight == 1.0 else guidance


def labels_of_request(labels: object, n: int, config: ImageConfig) -> Tensor | None:
    """Return the labels of a request as int64 [n], or None.

    Args:
        labels: None, one class, or n classes, each a number or a name of the configuration.
        n: number of images.
        config: the configuration of the model.

    Raises:
        InvalidTypeError, InvalidValueError: labels that are not one class or n classes.
    """
    if labels is None:
        return None
    labels = _numbered(labels, config)
    wanted = f"an integer in 0 .. {config.num_classes - 1}"
    wanted += f" or a name ({listed(config.class_names)})" if config.class_names else ""
    wanted += f", or one for each of the n = {n} images"
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidTypeError(f"sample: labels must be {wanted}, got {labels!r}") from error
    integral = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
    if tensor.numel() and not integral:
        raise InvalidTypeError(f"sample: labels must be {wanted}, got dtype {tensor.dtype}")
    if tensor.dim() not in (0, 1) or (tensor.dim() == 1 and len(tensor) != n):
        raise InvalidValueError(f"sample: labels must be {wanted}, got shape {tuple(tensor.shape)}")
    tensor = tensor.long()  # an unsigned 64-bit label that is too large becomes negative, which is rejected below
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < config.num_classes:
        raise InvalidValueError(f"sample: labels must be {wanted}, got {int(tensor.min())} .. {int(tensor.max())}")
    return tensor.expand(n)


def _numbered(labels: object, config: ImageConfig) -> object:
    """Return labels with the numbers of the classes in place of names; what is no name stays."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "UO":
        labels = labels.tolist()
    if isinstance(labels, str):
        return config.class_number(labels)
    if isinstance(labels, (list, tuple)):
        return [config.class_number(label) if isinstance(label, str) else label for label in labels]
    return labels
