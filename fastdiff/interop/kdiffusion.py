"""The interface of k-diffusion and of ComfyUI's samplers, both ways. Neither library is needed.

There a sample is x_k = x + sigma eps, the variance-exploding process, a model maps it to an estimate of x, and a
sampler is a function ``sampler(model, x, sigmas, extra_args, callback, disable)``. With sigma = e^{gamma / 2} a latent
is z_t = alpha_t x_k, and the estimate of x

    x_hat = (z_t - sigma_t eps_hat) / alpha_t = x_k - sigma eps_hat.

Their samplers on our models: `denoiser` and `sigmas`, then `to_images`::

    from k_diffusion.sampling import sample_dpmpp_2m
    from fastdiff.interop import kdiffusion

    model = fastdiff.load("digits")
    steps = kdiffusion.sigmas(model, 20)
    x = sample_dpmpp_2m(kdiffusion.denoiser(model), steps[0] * torch.randn(64, 1, 8, 8), steps)
    images = kdiffusion.to_images(model, x)

Our samplers on their models: `sampler`. In ComfyUI ``comfy.samplers.KSAMPLER(kdiffusion.sampler("unipc"))`` is what a
node returns as SAMPLER.

k-diffusion's samplers call ``model(x, sigma, **extra_args)`` with sigma [B], and read nothing else of a model. Its own
denoisers have ``inner_model, sigmas, log_sigmas, sigma_min, sigma_max`` and ``get_sigmas(n)``, from which programs make
their schedules; ours have them too. ComfyUI calls a sampler with a denoiser of its own, passes ``model_options`` and
``seed`` in ``extra_args``, and reads ``x``, ``i`` and ``denoised`` of a callback's dictionary. The sigma of its
rectified-flow models is another quantity: `sampler` does not fit them.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ..diffusion.beta_schedule import BetaSchedule
from ..diffusion.planning import make_plan
from ..diffusion.samplers import DDIM, MODEL_SPACING
from ..diffusion.schedules import RHO, Schedule, device_of
from ..diffusion.spacings import CHAIN_SPACINGS, Times, chain_steps
from ..io.pictures import to_uint8
from ..kernels import InvalidTypeError, InvalidValueError
from ..models import DiffusionModel, Guidance, Request, check_model, evaluating
from ..models.requests import guidance_of_request, labels_of_request
from .ksampler import check_latents, checked_sigma, column, sampler

__all__ = ["KDenoiser", "denoiser", "sampler", "sigmas", "to_images"]

TABLE = 1000  # noise levels in `KDenoiser.sigmas` of a model in continuous time
NAMES = {  # of extra_args, and what they are here; None: what ComfyUI passes to every model
    "labels": "labels", "y": "labels", "class_cond": "labels", "guidance": "guidance", "cond_scale": "guidance",
    "model_options": None, "seed": None,
}  # fmt: skip


class KDenoiser(nn.Module):
    """A diffusion model as a function ``(x, sigma, **extra_args) -> denoised``; made by `denoiser`.

    Attributes:
        inner_model: the model.
        sigmas, log_sigmas: float32 [N], increasing: the levels of a DDPM's chain, or `TABLE` of a model in continuous
            time, evenly spaced in t.
        sigma_min, sigma_max: the first and the last of them, scalars.
    """

    sigmas: Tensor
    log_sigmas: Tensor
    cond: Tensor | None

    def __init__(
        self, model: DiffusionModel, labels: object, guidance: Guidance | None, cond: Tensor | None = None
    ) -> None:
        super().__init__()
        self.inner_model, self.labels, self.guidance = model, labels, guidance
        gamma = _gamma_at(model.gamma, torch.linspace(0.0, 1.0, _levels(model), dtype=torch.float64))
        self.register_buffer("cond", cond, persistent=False)
        self.register_buffer("sigmas", torch.exp(0.5 * gamma).float(), persistent=False)
        self.register_buffer("log_sigmas", (0.5 * gamma).float(), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "KDenoiser":
        kept = {"sigmas": self.sigmas, "log_sigmas": self.log_sigmas}
        super()._apply(fn, recurse)  # moves them; with a network in 16 bits they stay in float32
        for name, value in kept.items():
            moved = getattr(self, name)
            if moved.dtype.itemsize < value.dtype.itemsize:
                setattr(self, name, value.to(moved.device))
        return self

    @property
    def sigma_min(self) -> Tensor:
        """The lowest level, e^{gamma_0 / 2}, a scalar."""
        return self.sigmas[0]

    @property
    def sigma_max(self) -> Tensor:
        """The highest level, e^{gamma_1 / 2}, a scalar."""
        return self.sigmas[-1]

    def get_sigmas(self, n: int | None = None) -> Tensor:
        """Return n levels evenly spaced in t, decreasing, and a final 0, float32 [n + 1]; all of the table for None."""
        if n is None:
            return torch.cat([self.sigmas.flip(0), self.sigmas.new_zeros(1)])
        return sigmas(self.inner_model, n, "time")

    def forward(self, x: Tensor, sigma: Tensor | float, **extra_args: object) -> Tensor:
        """Return x_hat like x.

        Args:
            x: float [B, C, H, W], which is z_t / alpha_t; (x_t - cond) / alpha_t in formulation 2 of a conditional
                model. Arithmetic is float32.
            sigma: float [B], or one number for the batch. Levels may differ within the batch. Outside of
                [sigma_min, sigma_max], which samplers with churn reach, the network is called at the nearest level of
                the model.
            extra_args: ``labels``, or ``y``, ``class_cond``: in place of those of `denoiser`. ``guidance``, or
                ``cond_scale``: the same.

        Raises:
            InvalidTypeError, InvalidValueError: arguments that do not fit the model, or an unknown one.
        """
        model = self.inner_model
        check_latents("denoiser", x, model.shape)
        level = checked_sigma("denoiser", sigma, x)
        options = self._options(extra_args)
        labels = _labels(model, options["labels"], len(x))
        guidance = guidance_of_request(options["guidance"], labels)  # pyright: ignore[reportArgumentType]
        if self.cond is not None and len(self.cond) != len(x):
            raise InvalidValueError(f"denoiser: cond must hold {len(x)} images, as x does, got {len(self.cond)}")
        low, high = 2.0 * self.log_sigmas[:1], 2.0 * self.log_sigmas[-1:]
        gamma = torch.minimum(torch.maximum(2.0 * level.log(), low), high)
        z = x.float() * column(torch.rsqrt(1.0 + level.square()), x)
        with evaluating(model):
            eps_hat = self._eps_hat(z, gamma, labels, guidance)
        return (x.float() - column(level, x) * eps_hat).to(x.dtype)

    def _options(self, extra_args: dict[str, object]) -> dict[str, object]:
        """Return labels and guidance of a call."""
        options: dict[str, object] = {"labels": self.labels, "guidance": self.guidance}
        for name, value in extra_args.items():
            if name not in NAMES:
                known = ", ".join(name for name, kind in NAMES.items() if kind)
                raise InvalidTypeError(f"denoiser: extra_args must be among {known}, got {name}")
            if NAMES[name] is not None and value is not None:
                options[NAMES[name] or ""] = value
        return options

    def _eps_hat(self, z: Tensor, gamma: Tensor, labels: Tensor | None, guidance: Guidance | None) -> Tensor:
        """Return eps_hat, with guidance by one call on twice the batch."""
        model, cond = self.inner_model, self.cond
        if guidance is None or labels is None:
            return model.predict(z, gamma, labels, cond)[0]
        both = torch.cat([labels, torch.full_like(labels, model.null_label)])
        twice = None if cond is None else torch.cat([cond, cond])
        conditional, u = model.predict(torch.cat([z, z]), torch.cat([gamma, gamma]), both, twice)[0].chunk(2)
        low, high = _gamma_at(model.gamma, torch.tensor(guidance.interval, dtype=torch.float64)).float()
        rounding = 1e-6 * gamma.abs().clamp(min=1.0)
        inside = (gamma >= low - rounding) & (gamma <= high + rounding)
        return u + column(torch.where(inside, guidance.weight, 1.0), z) * (conditional - u)


def denoiser(
    model: DiffusionModel,
    labels: object = None,
    guidance: float | Guidance | None = None,
    cond: Tensor | None = None,
) -> KDenoiser:
    """Return a model as k-diffusion's samplers call it: ``(x, sigma, **extra_args) -> denoised``.

    Args:
        model: a diffusion model (`fastdiff.load`).
        labels: one class, or a class for each sample of the batch; ``labels`` in ``extra_args`` takes its place.
        guidance: weight of classifier-free guidance, or a `Guidance`; ``guidance`` in ``extra_args`` takes its place.
        cond: the conditioning images of a conditional model, as in `fastdiff.sample`, one for each sample.

    Raises:
        InvalidTypeError, InvalidValueError: a model without a diffusion, or arguments that do not fit it.
    """
    model = _checked("denoiser", model)
    conditional = "cond" in model.sampling_options
    if conditional != isinstance(cond, Tensor):
        wanted = "a tensor of conditioning images" if conditional else "None"
        raise InvalidTypeError(f"denoiser: cond must be {wanted} for a {model.kind} model, got a {type(cond).__name__}")
    if cond is not None:
        cond = model.prepare_cond(Request(len(cond), cond=cond))(0, len(cond))
    if labels is not None:
        _labels(model, labels, labels.numel() if isinstance(labels, Tensor) else 1)
    return KDenoiser(model, labels, guidance_of_request(guidance, labels="perhaps in extra_args"), cond)


def sigmas(model: DiffusionModel, steps: int, spacing: str | Times = "karras", rho: float = RHO) -> Tensor:
    """Return the levels of a sampler with ``steps`` steps, as k-diffusion's ``get_sigmas_karras`` and others do.

    From the model's highest level to its lowest one, and then 0, so that the last step ends at x_hat. One step
    starts at the highest level; with ``"leading"`` and ``"linspace"`` at the lowest one, which these take first.

    Args:
        model: a diffusion model.
        steps: number of steps, >= 1.
        spacing: one of the spacings of `fastdiff.diffusion.Sampler`, or ``steps`` times increasing from 0 to 1.
            ``"karras"`` is ``get_sigmas_karras``, and ``"gamma"`` is ``get_sigmas_exponential``.
        rho: exponent of the spacing ``"karras"``, > 0.

    Returns:
        float32 [steps + 1] on the model's device, decreasing.

    Raises:
        InvalidTypeError, InvalidValueError: arguments that are not allowed.
    """
    model = _checked("sigmas", model)
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise InvalidTypeError(f"sigmas: steps must be an integer >= 1, got {steps!r}")
    if steps < 1:
        raise InvalidValueError(f"sigmas: steps must be an integer >= 1, got {steps}")
    sampler = DDIM(spacing=spacing, rho=rho)
    if steps == 1:  # which no plan with a network decoder has
        gamma = _gamma_at(model.gamma, torch.tensor([_only_time(model, spacing)], dtype=torch.float64))
    else:  # the last row of a network decoder is what a final sigma of 0 is
        gamma = make_plan(sampler, model.gamma, steps, network_decoder=True, spacings=model.spacings).gamma
    levels = torch.cat([torch.exp(0.5 * gamma), gamma.new_zeros(1)])
    return levels.float().to(model.device)


@torch.no_grad()
def to_images(model: DiffusionModel, x: Tensor) -> Tensor:
    """Return the images of samples, uint8 [B, C, H, W] in 0 .. 255, as `fastdiff.sample` does.

    Args:
        model: a diffusion model.
        x: float [B, C, H, W], the result of a sampler at sigma 0 or at the lowest level.

    Raises:
        InvalidTypeError, InvalidValueError: x has another shape or dtype.
    """
    model = _checked("to_images", model)
    check_latents("to_images", x, model.shape)
    return to_uint8(model.nearest_level(x.float()), model.levels)


def _only_time(model: DiffusionModel, spacing: str | Times) -> float:
    """Return the time at which a sampler with one step starts."""
    if spacing in CHAIN_SPACINGS:
        if not isinstance(model.gamma, BetaSchedule):
            raise InvalidValueError(f"sigmas: spacing must be other than {spacing!r} for a model that is not a DDPM")
        return chain_steps(str(spacing), _levels(model), 1)[0] / (_levels(model) - 1)
    if spacing == MODEL_SPACING or not isinstance(spacing, str):
        raise InvalidValueError(f"sigmas: steps must be an integer >= 2 with the spacing {spacing!r}, got 1")
    return 1.0


def _checked(where: str, model: object) -> DiffusionModel:
    found = check_model(where, model)
    if "x_T" not in found.latent_variables:
        raise InvalidTypeError(f"{where}: model must be a diffusion model, got a {found.kind} model")
    return cast(DiffusionModel, found)


def _labels(model: DiffusionModel, labels: object, count: int) -> Tensor | None:
    if labels is not None and not model.num_classes:
        raise InvalidValueError(f"denoiser: labels must be None for a {model.kind} model without classes, got {labels}")
    found = labels_of_request(labels, count, model.config)
    return None if found is None else found.to(model.device)


def _levels(model: DiffusionModel) -> int:
    transitions = model.num_transitions(model.T)
    return TABLE if transitions is None else transitions + 1


@torch.no_grad()
def _gamma_at(schedule: Schedule, t: Tensor) -> Tensor:
    """Return gamma at times float64 [N], float64 on the schedule's device."""
    return schedule(t.to(device_of(schedule))).double()
