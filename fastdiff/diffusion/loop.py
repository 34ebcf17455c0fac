"""The sampling loop, the same for every diffusion model and every sampler: one row of coefficients per step."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import FastdiffError, Noise, Stream, reparameterize, sampler_step
from .plan import C_1, D, Plan, S, W

Predict = Callable[..., tuple[Tensor, Tensor | None]]
Callback = Callable[[int, int, Tensor, Tensor], object]
Inputs = tuple[Tensor | None, ...]


class SamplingError(FastdiffError, RuntimeError):
    """A sample that is not finite."""


@dataclass(frozen=True)
class Denoiser:
    """A network's prediction, and what it is called with beside the latents.

    predict: ``predict(z_t, gamma, *inputs)``, for z_t [B, C, H, W] and gamma [B], returns eps_hat like z_t and v in
    [0, 1], which interpolates the log-variances, for a model with learned variances; else None. inputs: its further
    arguments, tensors [B, ...] on the device of z_t, or None. null_inputs: the same without labels, for classifier-free
    guidance: a row whose weight w is not 1 calls ``predict`` on twice the batch, with both. Without them no row is
    guided.
    """

    predict: Predict
    inputs: Inputs = ()
    null_inputs: Inputs | None = None

    def tensors(self) -> Inputs:
        """Return all inputs."""
        return *self.inputs, *(self.null_inputs or ())

    def guided_rows(self, plan: Plan) -> list[bool]:
        """Return which rows of a plan need the unconditional estimate as well."""
        return [False] * len(plan.gamma) if self.null_inputs is None else plan.guided

    def doubled(self) -> Inputs | None:
        """Return the inputs of a call on twice the batch; None without guidance."""
        if self.null_inputs is None:
            return None
        pairs = zip(self.inputs, self.null_inputs, strict=True)
        return tuple(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)


@dataclass(frozen=True)
class Traits:
    """What a plan needs of the loop, the same for all its rows; a captured graph serves all plans of equal traits.

    stochastic: whether rows draw noise. estimates, latents: how many earlier x_hat and z they read. third_is_latent:
    whether C_3 multiplies z_{-2}. d_is_eps_hat: whether D multiplies eps_hat. clip: bound of |x_hat|, or None. learned:
    whether variances are learned. nodes: how many normals of a Brownian path the noise of a row is made of; 0 draws it
    as one.
    """

    rows: int
    stochastic: bool
    estimates: int
    latents: int
    third_is_latent: bool
    d_is_eps_hat: bool
    clip: float | None
    learned: bool
    nodes: int

    @classmethod
    def of(cls, plan: Plan) -> "Traits":
        """Return the traits of a plan."""
        used = (plan.table[:, C_1 : D + 1].float() != 0).any(0).tolist()  # C_1, C_2, C_3, D
        estimates = max((k for k, is_used in enumerate(used[:3], 1) if is_used), default=0)
        latents = int(used[3] and not plan.d_is_eps_hat)
        if plan.third_is_latent and used[2]:
            estimates, latents = 2, 2
        return cls(
            len(plan.gamma), bool((plan.table[:, S].float() != 0).any()), estimates, latents, plan.third_is_latent,
            plan.d_is_eps_hat, 1.0 if plan.clip_denoised else None, plan.log_variance is not None,
            0 if plan.brownian is None else plan.brownian.nodes.shape[1],
        )  # fmt: skip


@dataclass
class State:
    """What one row hands to the next: the latent, earlier latents and estimates, the most recent first."""

    z: Tensor
    latents: list[Tensor] = field(default_factory=list)
    estimates: list[Tensor] = field(default_factory=list)
    x_hat: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return all tensors. Those of a row and of the row before differ by a shift towards the end of the lists."""
        return [self.z, *self.latents, *self.estimates, *([] if self.x_hat is None else [self.x_hat])]


class Loop:
    """The rows of a plan on a device, and how one of them is applied; eager loops and captured graphs share it.

    Args:
        denoiser, plan, noise, shared_noise: see `sample_latents`.
        device: where the latents are.
        keeps_x_hat: whether the state holds the estimate of the last row.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        plan: Plan,
        noise: Noise,
        device: torch.device,
        shared_noise: bool = False,
        keeps_x_hat: bool = False,
    ) -> None:
        self.denoiser, self.shared_noise, self.keeps_x_hat = denoiser, shared_noise, keeps_x_hat
        self.traits = Traits.of(plan)
        self.rows, self.gamma = plan.table.float().to(device), plan.gamma.float().to(device)
        self.bounds = None if plan.log_variance is None else plan.log_variance.float().to(device)
        self.path = None if plan.brownian is None else plan.brownian.to(device)
        self.noise = noise.to(device).at(step=0, stream=Stream.SAMPLER)  # its counter on the device selects the row
        self.doubled = denoiser.doubled()

    def start(self, initial: Tensor) -> State:
        """Return the state before the first row."""
        latents = [torch.zeros_like(initial) for _ in range(self.traits.latents)]
        estimates = [torch.zeros_like(initial) for _ in range(self.traits.estimates)]
        return State(initial, latents, estimates, torch.zeros_like(initial) if self.keeps_x_hat else None)

    def advance(self, state: State, guided: bool) -> State:
        """Apply the row that the counter selects, and advance the counter. Nothing here waits for the device.

        A ``guided`` row calls the network once on twice the batch.
        """
        traits, z, counter = self.traits, state.z, self.noise.counter
        eps_hat, v, eps_hat_uncond = self._predict(z, self.gamma.index_select(0, counter), guided)
        noise = self._step_noise(z)
        z_prev = state.latents[0] if traits.latents else None
        if traits.d_is_eps_hat:
            z_prev = eps_hat if eps_hat_uncond is None else self._guided(eps_hat, eps_hat_uncond)
        z_s, x_hat = sampler_step(
            z, eps_hat, self.rows, noise if traits.stochastic else None, clip=traits.clip,
            history=[*state.estimates, *(state.latents[1:] if traits.third_is_latent else [])],
            z_prev=z_prev, eps_hat_uncond=eps_hat_uncond, step=counter,
            keep_x_hat=traits.estimates > 0 or self.keeps_x_hat,
        )  # fmt: skip
        if self.bounds is not None:
            z_s = _add_learned_noise(z_s, self.bounds.index_select(0, counter), v, noise)
        self.noise.advance()
        latents = [z, *state.latents][: traits.latents]
        estimates = [] if x_hat is None else [x_hat, *state.estimates][: traits.estimates]
        return State(z_s, latents, estimates, x_hat if self.keeps_x_hat else None)

    def _predict(self, z: Tensor, gamma: Tensor, guided: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return eps_hat, v, and the unconditional eps_hat of a guided row."""
        if not guided or self.doubled is None:
            return *self.denoiser.predict(z, gamma.expand(len(z)), *self.denoiser.inputs), None
        eps_hat, v = self.denoiser.predict(torch.cat([z, z]), gamma.expand(2 * len(z)), *self.doubled)
        conditional, unconditional = eps_hat.chunk(2)
        return conditional, None if v is None else v.chunk(2)[0], unconditional

    def _guided(self, eps_hat: Tensor, eps_hat_uncond: Tensor) -> Tensor:
        """Return the estimate of classifier-free guidance, as `sampler_step` has it in x_hat."""
        weight = self.rows.index_select(0, self.noise.counter)[0, W]
        return eps_hat_uncond + weight * (eps_hat - eps_hat_uncond)

    def _step_noise(self, z: Tensor) -> Tensor | Noise:
        if not self.shared_noise and self.path is None:
            return self.noise
        shape = (1 if self.shared_noise else len(z), *z.shape[1:])
        return (self.noise.normal(shape) if self.path is None else self.path.draw(self.noise, shape)).expand_as(z)


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser | Predict,
    initial: Tensor,
    plan: Plan,
    noise: Noise,
    shared_noise: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Run a sampler from z_1 to its end, float32 [B, C, H, W].

    Args:
        denoiser: the network's prediction and its inputs, or a function ``predict(z_t, gamma)``, see `Denoiser`.
        initial: z_1, float32 [B, C, H, W].
        plan: the steps (`fastdiff.diffusion.make_plan`).
        noise: the step noise; ``first_sample`` is the index of the batch's first sample in the request.
        shared_noise: use the noise of the first sample for the whole batch.
        callback: called after each row as ``callback(step, nfe, z, x_hat)``, with contiguous copies: changes in place
            do not reach the sampler.

    Raises:
        SamplingError: the result is not finite.
    """
    denoiser = denoiser if isinstance(denoiser, Denoiser) else Denoiser(denoiser)
    loop = Loop(denoiser, plan, noise, initial.device, shared_noise, keeps_x_hat=callback is not None)
    state = loop.start(initial)
    calls = 0
    for row, guided in enumerate(denoiser.guided_rows(plan)):
        state = loop.advance(state, guided)
        calls += 1 + guided
        if callback is not None and state.x_hat is not None:
            callback(row // plan.calls_per_step, calls, copy_of(state.z), copy_of(state.x_hat))
    return check_finite(state.z, calls)


def copy_of(tensor: Tensor) -> Tensor:
    """Return a contiguous copy for a callback."""
    return tensor.clone(memory_format=torch.contiguous_format)


def check_finite(z: Tensor, calls: int) -> Tensor:
    """Return the result of a loop; raise a SamplingError if it is not finite."""
    if not torch.isfinite(z).all():
        raise SamplingError(
            f"the sample is not finite after {calls} calls of the network; "
            "check the weights, the schedule, the temperature and the guidance weight"
        )
    return z


def _add_learned_noise(mean: Tensor, bounds: Tensor, v: Tensor | None, noise: Tensor | Noise) -> Tensor:
    """Return z_s = mean + exp(½ log-variance) eps, the log-variance interpolated by v (Nichol and Dhariwal, eq. 15)."""
    assert v is not None, "a plan with learned variances needs a model that predicts v"
    low, high = bounds.unbind(1)
    return reparameterize(mean, torch.lerp(low, high, v), noise)[0]
