"""What `fastdiff.sample` draws from: for every kind of model, the checked request and how one batch of it is drawn."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import differences, from_dict
from .kernels import Noise, centre
from .latent_mixture import LatentMixture, load_mixture
from .models import HVAE, DiffuseVAE, DiffusionModel, Refined, Restorer
from .samplers import Plan
from .sampling_loop import sample_latents, sampling_plan

SAMPLER_OPTIONS = (
    "steps",
    "sampler",
    "eta",
    "grid",
    "betas",
    "variance",
    "clip",
)  # options of a diffusion model's samplers


@dataclass(frozen=True)
class Options:
    """What was asked for, as in `fastdiff.sample`; None where the model's default is wanted."""

    steps: int | None
    sampler: str | None
    labels: Any
    guidance: float | None
    eta: float | None
    grid: str | None
    betas: tuple[float, float] | None
    given: Tensor | None
    variance: str | None
    clip: bool
    temperature: float
    latent_temperature: float
    mixture: LatentMixture | str | Path | None

    def plan(self, model: DiffusionModel) -> Plan:
        """The plan of a diffusion model or stage, with the defaults filled in."""
        steps = 250 if self.steps is None else self.steps
        sampler = "ancestral" if self.sampler is None else self.sampler
        return sampling_plan(model, steps, sampler, self.eta, self.grid, self.variance, self.betas)

    def refuse(self, why: str, *names: str) -> None:
        """Raise for the first of the options that is set."""
        for name in names:
            value = getattr(self, name)
            if value is not None and (name != "clip" or value):
                shown = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"sample: {name} is {shown} for {why}; allowed: None")


class Source:
    """A checked request: ``model``, ``calls`` of its network per batch, and `batch`."""

    model: Any
    calls: int

    def batch(self, first: int, count: int, noise: Noise, bar: Any) -> Tensor:
        """Draw the images first .. first + count - 1 of the request, uint8 levels; ``bar`` moves on by ``calls``."""
        raise NotImplementedError


def source_of(model: nn.Module, n: int, options: Options) -> Source:
    """Check a request of n images against the model, and return what draws them.

    Raises:
        TypeError, ValueError, CheckpointError: as `fastdiff.sample`.
    """
    if options.latent_temperature != 1.0 and not isinstance(model, DiffuseVAE):
        raise ValueError(
            f"sample: latent_temperature is {options.latent_temperature}; allowed: 1.0 but for a DiffuseVAE"
        )
    if not isinstance(model, (HVAE, DiffuseVAE)):
        options.refuse("a model without a VAE", "mixture")
    if isinstance(model, HVAE):
        options.refuse("a VAE, which has one chain and no labels", *SAMPLER_OPTIONS, "labels", "guidance", "given")
        return _Chain(model, options)
    if isinstance(model, Refined):
        options.refuse(f"a {type(model).__name__}, which has no labels", "labels", "guidance")
        return _Refinement(model, n, options)
    if isinstance(model, DiffusionModel):
        options.refuse("a model that refines nothing", "given")
        return _Diffusion(model, n, options)
    raise TypeError(f"sample: model is a {type(model).__name__}; allowed: a model of fastdiff.models")


class _Diffusion(Source):
    """Labels and noise to images."""

    def __init__(self, model: DiffusionModel, n: int, options: Options) -> None:
        self.model, self.options = model, options
        self.walk = options.plan(model)
        self.labels = _labels(model, options.labels, n, options.guidance)
        self.calls = len(self.walk.gamma)

    def batch(self, first: int, count: int, noise: Noise, bar: Any) -> Tensor:
        options = self.options
        labels = None if self.labels is None else self.labels[first : first + count].to(self.model.device)
        latents = sample_latents(
            self.model, count, self.walk, noise, labels, options.guidance, options.temperature,
            1.0 if options.clip else None, bar,
        )  # fmt: skip
        return self.model.decode(latents)


class _Refinement(Source):
    """A picture, given or drawn by the first stage, and noise to images."""

    def __init__(self, model: Refined, n: int, options: Options) -> None:
        self.model, self.options = model, options
        self.walk = options.plan(model.refiner)
        self.given = _given(model, n, options.given)
        if self.given is not None and (options.mixture is not None or options.latent_temperature != 1.0):
            raise ValueError(
                f"sample: given with mixture {options.mixture!r}, latent_temperature {options.latent_temperature}; "
                "allowed: None and 1.0, no latent is drawn"
            )
        self.mixture = _mixture(model.vae, options.mixture) if isinstance(model, DiffuseVAE) else None
        self.calls = len(self.walk.gamma)

    def picture(self, first: int, count: int, noise: Noise) -> Tensor:
        """x_hat of a batch, [count, C, H, W]."""
        if self.given is not None:
            return self.model.picture_from(self.given[first : first + count].to(self.model.device))
        z_1 = _latents(self.model.vae, count, noise, self.options.latent_temperature, self.mixture)
        return self.model.picture(z_1)

    def batch(self, first: int, count: int, noise: Noise, bar: Any) -> Tensor:
        refiner, options = self.model.refiner.on(self.picture(first, count, noise)), self.options
        latents = sample_latents(
            refiner, count, self.walk, noise, None, None, options.temperature, 1.0 if options.clip else None, bar
        )
        return refiner.decode(latents)


class _Chain(Source):
    """The latents of a VAE to images."""

    calls = 1

    def __init__(self, model: HVAE, options: Options) -> None:
        self.model, self.temperature = model, options.temperature
        self.mixture = _mixture(model, options.mixture)

    def batch(self, first: int, count: int, noise: Noise, bar: Any) -> Tensor:
        bar.update()
        return self.model.decode(_latents(self.model, count, noise, self.temperature, self.mixture))


@torch.no_grad()
def _latents(vae: HVAE, count: int, noise: Noise, temperature: float, mixture: LatentMixture | None) -> Tensor:
    """Draw z_1 [count, latent] from the mixture, or from the VAE where there is none."""
    noise = noise.to(vae.device)
    if mixture is None:
        return vae.prior_latents(count, noise, temperature)
    return mixture.draw(count, noise, temperature)


def _given(model: Refined, n: int, given: Any) -> Tensor | None:
    """The pictures of a request in [-1, 1], float32; None where the model's first stage draws them."""
    shape = (n, *model.given_shape)
    if given is None:
        if isinstance(model, Restorer):
            raise ValueError(
                f"sample: given is None for a restorer; allowed: the degraded images, {shape} "
                "(`fastdiff reconstruct` makes them from a data set)"
            )
        return None
    if not isinstance(given, Tensor) or not (given.dtype == torch.uint8 or given.is_floating_point()):
        shown = given.dtype if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise TypeError(
            f"sample: given is {shown}; allowed: a tensor of uint8 levels, or floats as `kernels.centre` makes of them"
        )
    if tuple(given.shape) != shape:
        raise ValueError(f"sample: given has shape {tuple(given.shape)}; allowed: {shape}")
    if given.dtype == torch.uint8:
        if given.numel() and int(given.max()) >= model.levels:
            raise ValueError(f"sample: given holds the level {int(given.max())}; allowed: 0 .. {model.levels - 1}")
        return centre(given, model.levels)
    given = given.float()
    if not torch.isfinite(given).all():
        raise ValueError("sample: given holds values that are not finite; allowed: finite ones")
    if given.numel() and float(given.abs().max()) > model.given_limit:
        raise ValueError(
            f"sample: given lies in {float(given.min()):g} .. {float(given.max()):g}; allowed: within "
            f"±{model.given_limit:g}, levels as `kernels.centre` brings them into [-1, 1]"
        )
    return given


def _mixture(vae: HVAE, mixture: LatentMixture | str | Path | None) -> LatentMixture | None:
    mixture = load_mixture(mixture) if isinstance(mixture, (str, Path)) else mixture
    if mixture is None:
        return None
    if not isinstance(mixture, LatentMixture):
        raise TypeError(f"sample: mixture is {mixture!r}; allowed: a LatentMixture, its folder, or None")
    if mixture.latent != vae.config.latent:
        raise ValueError(
            f"sample: mixture has latents of {mixture.latent} dimensions; allowed: {vae.config.latent}, the model's"
        )
    fitted = (mixture.fitted_to or {}).get("config")
    fitted = None if fitted is None else from_dict(type(vae.config), fitted, "mixture")
    if fitted not in (None, vae.config):
        raise ValueError(f"sample: mixture was fitted to a VAE of {differences(fitted, vae.config)}")
    return mixture


def _labels(model: DiffusionModel, labels: Any, n: int, guidance: float | None) -> Tensor | None:
    if not model.classes:
        for name, value in (("guidance", guidance), ("labels", labels)):
            if value is not None:
                raise ValueError(f"sample: {name} for a model that is unconditional; allowed: None")
    if labels is None:
        if guidance is not None:
            raise ValueError(f"sample: guidance is {guidance} without labels; allowed: guidance with labels")
        return None
    number = isinstance(guidance, (int, float)) and not isinstance(guidance, bool)
    if guidance is not None and not (number and math.isfinite(guidance)):
        raise ValueError(f"sample: guidance is {guidance!r}; allowed: a finite number, or None")
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"sample: labels are {labels!r}; allowed: one integer, or n = {n} of them") from error
    tensor = tensor.long() if not tensor.numel() else tensor
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"sample: labels have dtype {tensor.dtype}; allowed: integers")
    if tensor.dim() not in (0, 1) or (tensor.dim() == 1 and len(tensor) != n):
        raise ValueError(f"sample: labels have shape {tuple(tensor.shape)}; allowed: one integer, or n = {n} of them")
    tensor = tensor.long().expand(n)
    if n and not 0 <= int(tensor.min()) <= int(tensor.max()) < model.classes:
        given = f"{int(tensor.min())} .. {int(tensor.max())}"
        raise ValueError(f"sample: labels lie in {given}; allowed: 0 .. {model.classes - 1}")
    return tensor
