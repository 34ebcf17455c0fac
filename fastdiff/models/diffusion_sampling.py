"""How a diffusion model draws images: from noise, from images (editing), and from images to latents (inversion)."""

from collections.abc import Callable
from types import MappingProxyType
from typing import ClassVar

import torch
from attrs import evolve
from torch import Tensor, nn

from ..diffusion.loop import Callback, Denoiser, Inputs
from ..diffusion.plan import Plan
from ..diffusion.planning import make_plan
from ..diffusion.process import alpha, eps_from_x, sigma
from ..diffusion.samplers import Ancestral, Sampler
from ..diffusion.schedules import Schedule, device_of
from ..diffusion.spacings import Spacings
from ..kernels import InvalidValueError, Noise, Stream
from .base import Model
from .requests import Draw, Edit, Guidance, Request, guidance_of_request, labels_of_request, rows_of

DEFAULT_STEPS = 250  # of a sampler


class DiffusionSampling(Model):
    """The sampling of a `DiffusionModel`.

    network_decoder: whether the decoder p(x | z_0) calls the network. variance: that of p(z_s | z_t), one of
    `fastdiff.diffusion.VARIANCES`. spacings: times for the samplers' spacing ``"model"``, by the name of the sampler
    and the number of steps; they are saved with the model.
    """

    latent_variables = ("x_T",)
    spacings: Spacings = MappingProxyType({})
    network_decoder: ClassVar[bool] = False
    gamma: Schedule
    network: nn.Module

    @property
    def variance(self) -> str:
        """Variance of p(z_s | z_t), one of `fastdiff.diffusion.VARIANCES`."""
        return "fixed_small"

    def predict(
        self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return eps_hat, and v for a model with learned variances.

        Args:
            z_t: latents float32 [B, C, H, W].
            gamma: float32 [B].
            labels: int64 [B], or None.
            cond: conditioning images float32 [B, C, H, W] of a conditional model; else None.

        Returns:
            eps_hat like z_t, and v like z_t in [0, 1], which interpolates the log-variances; None without them.
        """
        raise NotImplementedError

    def predict_unknown(
        self,
        z_t: Tensor,
        gamma: Tensor,
        labels: Tensor | None,
        cond: Tensor | None,
        unknown: Tensor,
        known: Tensor,
        v_unknown: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `predict`, with eps_hat = (z_t - alpha_t x) / sigma_t, that is x_hat = x, where the image x is known.

        A step of ancestral sampling then draws the known pixels of z_s from q(z_s | z_t, x), so that they follow the
        forward process, and every other sampler leads them to x as well.

        Args:
            z_t, gamma, labels, cond: as in `predict`.
            unknown: bool [B, C, H, W], where x is not known.
            known: x float32 [B, C, H, W] in [-1, 1].
            v_unknown: float32 [B, 1, 1, 1], v of the unknown pixels in place of the network's; None for the network's.
                That of the known ones is 0, the variance of q(z_s | z_t, x).
        """
        eps_hat, v = self.predict(z_t, gamma, labels, cond)
        v = v if v_unknown is None else v_unknown
        eps_hat = torch.where(unknown, eps_hat, eps_from_x(z_t, known, gamma[:, None, None, None]))
        return eps_hat, None if v is None else torch.where(unknown, v, 0.0)

    def most_likely(self, z_0: Tensor) -> Tensor:
        """Return the images uint8 [B, C, H, W] of a sampler's result z_0, or x_hat of a network decoder."""
        raise NotImplementedError

    @property
    def sampling_options(self) -> frozenset[str]:
        labels = {"labels", "guidance"} if self.num_classes else set()
        return frozenset({"steps", "sampler", "initial", "edit"} | labels)

    def prepare(self, request: Request) -> Draw:
        self.check_options(request)
        labels = labels_of_request(request.labels, request.n, self.config)
        guidance = guidance_of_request(request.guidance, labels)
        plan, v_unknown = self._plan(request)
        plan = self._guided(plan, guidance)
        cond_of = self.prepare_cond(request)
        last_call = len(plan.gamma) + sum(plan.guided)

        def batch(first: int, count: int, callback: Callback | None) -> Tensor:
            noise = Noise(request.seed, first_sample=0 if request.shared_noise else first).to(self.device)
            y = None if labels is None else rows_of(labels, first, count).to(self.device)
            null = None if guidance is None or y is None else torch.full_like(y, self.null_label)
            cond = cond_of(first, count)
            z = request.execution.sample_latents(
                self,
                self._denoiser(request.edit, first, count, y, null, cond, v_unknown),
                self.initial_latents(request, plan, first, count, noise),
                plan,
                noise,
                request.shared_noise,
                self.shown_callback(callback, cond, last_call),
            )
            return z if request.edit is not None and request.edit.inverse else self.most_likely(z)

        return Draw(len(plan.gamma), batch)

    def _plan(self, request: Request) -> tuple[Plan, float | None]:
        """Return the plan of a request without guidance, and v of unknown pixels where the network's is not used.

        Known pixels have the variance of q(z_s | z_t, x). Where the sampler's is another, "fixed_large", the variance
        is that of each pixel: v = 0 for known ones, 1 for the others.
        """
        sampler, variance, edit, v_unknown = request.sampler, self.variance, request.edit, None
        if edit is not None and edit.unknown is not None:
            own = variance_of(sampler.for_variance(variance))
            if own == "learned" and edit.resample > 1:
                raise InvalidValueError(
                    "resample must be 1 for ancestral sampling with learned variances; choose ddim, or "
                    f"Ancestral(variance='fixed_small'), got {edit.resample}"
                )
            if own == "fixed_large":
                sampler, variance, v_unknown = evolve(sampler, variance=None), "learned", 1.0
        steps = DEFAULT_STEPS if request.steps is None else request.steps
        options = (1.0, 1, False) if edit is None else (edit.strength, edit.resample, edit.inverse)
        plan = make_plan(sampler, self.gamma, steps, variance, self.network_decoder, self.spacings, *options)
        return plan, v_unknown

    def _denoiser(
        self,
        edit: Edit | None,
        first: int,
        count: int,
        labels: Tensor | None,
        null_labels: Tensor | None,
        cond: Tensor | None,
        v_unknown: float | None,
    ) -> Denoiser:
        """Return the prediction of a batch with its inputs; without null labels it is not guided."""
        predict, further = self.predict, ()
        if edit is not None and edit.unknown is not None:
            unknown, x = rows_of(edit.unknown, first, count).to(self.device), self._unit_images(edit, first, count)
            v = None if v_unknown is None else x.new_full((count, 1, 1, 1), v_unknown)
            predict, further = self.predict_unknown, (unknown, x, v)
        null_inputs: Inputs | None = None if null_labels is None else (null_labels, cond, *further)
        return Denoiser(predict, (labels, cond, *further), null_inputs)

    def _unit_images(self, edit: Edit, first: int, count: int) -> Tensor:
        """Return the images of a batch in [-1, 1], float32 [count, C, H, W]."""
        return self.to_unit(rows_of(edit.images, first, count).to(self.device))

    def _guided(self, plan: Plan, guidance: Guidance | None) -> Plan:
        """Return the plan with the guidance's weight in the rows whose noise level lies in its interval of times."""
        if guidance is None:
            return plan.with_guidance(None)
        with torch.no_grad():
            place = device_of(self.gamma)
            low, high = self.gamma(torch.tensor(guidance.interval, dtype=torch.float64, device=place)).tolist()
        rounding = 1e-6 * max(1.0, abs(low), abs(high))  # of schedules in float32
        return plan.with_guidance(guidance.weight, low - rounding, high + rounding)

    def initial_latents(self, request: Request, plan: Plan, first: int, count: int, noise: Noise) -> Tensor:
        """Return what a batch of a request starts from, [count, C, H, W], in the layout that the network returns."""
        temperature = request.sampler.temperature
        if request.initial is not None:
            z = rows_of(request.initial, first, count).to(self.device) * temperature
        else:
            drawn = 1 if request.shared_noise else count
            z = noise.at(stream=Stream.INITIAL).normal((drawn, *self.shape)).expand(count, *self.shape)
            edit = request.edit
            z = z * temperature if edit is None else self._edited_latents(edit, plan, first, z, temperature)
        # Our networks are channels-last, and a sampler's step keeps the layout of z. A user's network may call view.
        return z.contiguous(memory_format=torch.contiguous_format if "network" in self.custom else torch.channels_last)

    def _edited_latents(self, edit: Edit, plan: Plan, first: int, eps: Tensor, temperature: float) -> Tensor:
        """Return z_t = alpha_t x + sigma_t eps at the plan's first noise level; alpha_0 x for an inversion.

        At strength 1 the unknown pixels are noise alone, and nothing of the image below the mask is left in them. The
        temperature scales the noise of unknown pixels.
        """
        gamma = plan.gamma[0]
        signal, scale = float(alpha(gamma)), float(sigma(gamma))
        x = self._unit_images(edit, first, len(eps))
        if edit.inverse:
            return signal * x
        if edit.unknown is None:
            return signal * x + scale * temperature * eps
        changed = temperature * eps
        if edit.strength < 1.0:
            changed = signal * x + scale * changed
        return torch.where(rows_of(edit.unknown, first, len(eps)).to(x.device), changed, signal * x + scale * eps)

    def prepare_cond(self, request: Request) -> Callable[[int, int], Tensor | None]:
        """Check the part of a request that conditions the model; return what gives a batch's conditioning images."""
        return lambda first, count: None

    def shown_callback(self, callback: Callback | None, cond: Tensor | None, last_call: int) -> Callback | None:
        """Return the callback that the sampling loop calls for a batch with conditioning images ``cond``.

        ``last_call`` is the number of function evaluations after the last step.
        """
        return callback


def variance_of(sampler: Sampler) -> str | None:
    """Return the reverse variance of ancestral sampling; None for any other sampler."""
    return sampler.variance if isinstance(sampler, Ancestral) else None
