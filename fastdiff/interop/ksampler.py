"""Samplers of fastdiff as functions of k-diffusion's kind, which run on any denoiser ``model(x, sigma) -> denoised``.

With gamma = 2 ln sigma and z = x / sqrt(1 + sigma²) a denoiser of the variance-exploding process is one of eps in the
variance-preserving process, eps_hat = (x - denoised) / sigma, and a sampler's rows apply to it. See
`fastdiff.interop.kdiffusion`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from fastdiff_kernels.registration import values_visible
from torch import Tensor
from tqdm import tqdm

from ..diffusion.loop import Denoiser, sample_latents
from ..diffusion.plan import Plan, coefficient_rows
from ..diffusion.planning import make_plan
from ..diffusion.samplers import Sampler, as_sampler
from ..diffusion.schedules import Schedule
from ..kernels import InvalidTypeError, InvalidValueError, Noise

KModel = Callable[..., Tensor]  # model(x, sigma, **extra_args) -> denoised


class KSampler(Protocol):
    """A sampler of k-diffusion's kind, see `sampler`."""

    def __call__(
        self,
        model: KModel,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, object] | None = None,
        callback: Callable[..., object] | None = None,
        disable: bool | None = None,
        *,
        seed: int | None = None,
        first_sample: int = 0,
    ) -> Tensor: ...


def sampler(sampler: str | Sampler | Callable[[Tensor], Plan]) -> KSampler:
    """Return a sampler of fastdiff as a function of k-diffusion's kind.

    Args:
        sampler: a name (``"ancestral"``, ``"ddim"``, ``"dpm-solver"``, ``"heun"``, ``"euler"``, ``"unipc"``,
            ``"deis"``, ``"dpm-solver-sde"``, ``"dpm-solver-sde-2s"``, ``"euler-a"``), a sampler object such as
            ``DDIM(eta=0.5)``, or a function from gammas to a `Plan`. Its spacing, betas and temperature must be the
            defaults: ``sigmas`` and ``x`` say what they would.

    Returns:
        A function ``sample(model, x, sigmas, extra_args=None, callback=None, disable=None, *, seed=None,
        first_sample=0)`` that returns the sample at the last sigma, like x, with arguments

        - model: ``model(x, sigma, **extra_args) -> denoised``, for x like the argument and sigma float32 [B].
        - x: float [B, ...], the sample at sigmas[0], such as sigmas[0] times noise. Arithmetic is float32.
        - sigmas: float [N + 1], N >= 1, decreasing, > 0 but for the last, which may be 0: the last step then ends at
          the estimate of x.
        - callback: called at each step with a dictionary of ``x, i, sigma, sigma_hat, denoised``, before the sample
          moves on.
        - disable: whether to hide the progress bar; None hides it where the output is no terminal.
        - seed, first_sample: sample b takes the noise of (seed, first_sample + b), whatever the batch. None stands for
          ``extra_args["seed"]`` where there is one, else for 0.

    Raises:
        InvalidTypeError, InvalidValueError: a sampler, sigmas or x that are not allowed; a denoiser's result of
            another shape.
        SamplingError: a sample that is not finite.
    """
    chosen = as_sampler(sampler)
    for name, default in (("spacing", "time"), ("betas", None), ("temperature", 1.0)):
        if getattr(chosen, name) != default:
            raise InvalidValueError(f"sampler: {name} must be {default!r} here, got {getattr(chosen, name)!r}")

    @torch.no_grad()
    def sample(
        model: KModel,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, object] | None = None,
        callback: Callable[..., object] | None = None,
        disable: bool | None = None,
        *,
        seed: int | None = None,
        first_sample: int = 0,
    ) -> Tensor:
        extra_args = {} if extra_args is None else extra_args
        seed = _seed_of(extra_args) if seed is None else seed
        check_latents("sampler", x)
        plan = plan_at_sigmas(chosen, sigmas)
        with tqdm(total=len(sigmas) - 1, disable=disable) as bar:
            steps = Steps(model, x.dtype, plan, sigmas, extra_args, callback, bar)
            first = x.float() * torch.rsqrt(1.0 + sigmas[0].double().square()).float().to(x.device)
            z = sample_latents(Denoiser(steps.predict), first, plan, Noise(seed, first_sample=first_sample))
            bar.update(bar.total - bar.n)
        last = sigmas[-1].double()
        return (z * torch.sqrt(1.0 + last.square()).float().to(x.device)).to(x.dtype)  # alpha is 1 at sigma 0

    return sample


class Steps:
    """The calls of a denoiser that a plan makes: what the sampling loop predicts from, callbacks and progress."""

    def __init__(
        self,
        model: KModel,
        dtype: torch.dtype,
        plan: Plan,
        sigmas: Tensor,
        extra_args: Mapping[str, object],
        callback: Callable[..., object] | None,
        bar: tqdm,
    ) -> None:
        self.model, self.dtype, self.sigmas, self.extra_args = model, dtype, sigmas, extra_args
        self.callback, self.bar, self.calls_per_step, self.row = callback, bar, plan.calls_per_step, 0
        # the levels as the caller wrote them, which models may look for in ``sigmas``
        levels = sigmas.double().cpu()
        same = plan.gamma[:, None] == gamma_of(levels)[None]
        self.levels = torch.where(same.any(1), levels[same.int().argmax(1)], torch.exp(0.5 * plan.gamma)).to(sigmas)

    def predict(self, z: Tensor, gamma: Tensor) -> tuple[Tensor, None]:
        """Return eps_hat of the plan's next row."""
        step, within = divmod(self.row, self.calls_per_step)
        sigma = self.levels[self.row].to(z.device)
        self.row += 1
        x = (z * torch.sqrt(1.0 + sigma.double().square()).float()).to(self.dtype)
        denoised = self.model(x, sigma.float().expand(len(z)).clone(), **self.extra_args)
        if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
            got = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
            raise InvalidValueError(f"sampler: model must return a tensor of shape {tuple(x.shape)}, got {got}")
        if within == 0:
            self.bar.update(step - self.bar.n)
            if self.callback is not None:
                level = self.sigmas[step]
                self.callback({"x": x, "i": step, "sigma": level, "sigma_hat": level, "denoised": denoised})
        return (x.float() - denoised.float()) / sigma.float(), None


def plan_at_sigmas(sampler: Sampler, sigmas: Tensor) -> Plan:
    """Return the plan of a sampler at levels float [N + 1], decreasing; a last level of 0 is a row that ends at x_hat.

    Raises:
        InvalidTypeError, InvalidValueError: sigmas that are not allowed.
    """
    wanted = "sampler: sigmas must be a float tensor [steps + 1], decreasing and > 0 but for a last 0"
    if not isinstance(sigmas, Tensor) or not sigmas.is_floating_point():
        raise InvalidTypeError(f"{wanted}, got {sigmas.dtype if isinstance(sigmas, Tensor) else type(sigmas).__name__}")
    levels = sigmas.detach().double().cpu()
    allowed = levels.dim() == 1 and len(levels) >= 2 and bool(torch.isfinite(levels).all())
    if not allowed or not (levels.diff() < 0).all() or levels[-1] < 0:
        raise InvalidValueError(f"{wanted}, got shape {tuple(levels.shape)}: {levels.flatten()[:8].tolist()}")
    to_x = bool(levels[-1] == 0)
    gamma = gamma_of(levels[:-1] if to_x else levels).flip(0)
    if len(gamma) == 1:  # the last row alone
        plan = Plan(gamma, coefficient_rows(gamma, torch.zeros_like(gamma), torch.ones_like(gamma)))
        return replace(plan, clip_denoised=sampler.clip_denoised)
    return make_plan(sampler, _Levels(gamma), len(gamma) - 1 + to_x, network_decoder=to_x)


class _Levels(Schedule):
    """The schedule through gammas float64 [steps + 1] at evenly spaced times; defined at these times alone."""

    def __init__(self, gamma: Tensor) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, t: Tensor) -> Tensor:
        return self.gamma[(t * (len(self.gamma) - 1)).round().long()]


def _seed_of(extra_args: Mapping[str, object]) -> int:
    seed = extra_args.get("seed")
    return seed if isinstance(seed, int) else 0


def gamma_of(sigmas: Tensor) -> Tensor:
    """Return gamma = 2 ln sigma."""
    return 2.0 * sigmas.log()


def column(values: Tensor, x: Tensor) -> Tensor:
    """Return values [B] as [B, 1, ...], to multiply x [B, ...] with."""
    return values.view(-1, *[1] * (x.dim() - 1))


def check_latents(where: str, x: object, shape: tuple[int, ...] | None = None) -> None:
    """Check that x is a float tensor [B, ...], of the shape [B, *shape] if that is given.

    Raises:
        InvalidTypeError, InvalidValueError: it is not.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise InvalidTypeError(f"{where}: x must be a float tensor, got {got}")
    if x.dim() < 2 or (shape is not None and tuple(x.shape[1:]) != shape):
        wanted = "..." if shape is None else ", ".join(map(str, shape))
        raise InvalidValueError(f"{where}: x must have shape [B, {wanted}], got {tuple(x.shape)}")


def checked_sigma(where: str, sigma: Tensor | float, x: Tensor) -> Tensor:
    """Return sigma float32 [B] on the device of x, for a number or a tensor [B] or [].

    Raises:
        InvalidValueError: another shape, or a value that is not finite and >= 0.
    """
    level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
    if level.dim() > 1 or (level.dim() == 1 and len(level) != len(x)):
        raise InvalidValueError(f"{where}: sigma must be a number or of shape ({len(x)},), got {tuple(level.shape)}")
    if values_visible(level) and not bool((torch.isfinite(level) & (level >= 0)).all()):
        raise InvalidValueError(f"{where}: sigma must be finite and >= 0, got {level.flatten()[:8].tolist()}")
    return level.expand(len(x))
