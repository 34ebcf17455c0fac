"""A scheduler for diffusers' pipelines whose step is one call of `sampler_step`.

    pipe.scheduler = FastdiffScheduler.from_config(pipe.scheduler.config)

It has the configuration, the timesteps and the numbers of diffusers' DDPMScheduler and DDIMScheduler
(`fastdiff.interop.scheduler_rows` has the equations). Half-precision samples are computed in float32 and rounded once.
"""

from collections.abc import Iterable, Sequence
from inspect import signature
from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion.spacings import chain_steps
from ..io.extras import MissingPackageError
from ..kernels import InvalidTypeError, InvalidValueError, Noise, Stream, diffuse, reparameterize, sampler_step
from .scheduler_options import check_integer, check_options, checked_betas, method_of
from .scheduler_rows import Steps, StepTable, ddim_table, ddpm_table

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, DDPMSchedulerOutput
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise MissingPackageError(
        f"diffusers must be installed for this: pip install 'fastdiff-triton[interop]' ({error})"
    ) from error

Generators = torch.Generator | list[torch.Generator]


class FastdiffScheduler(SchedulerMixin, ConfigMixin):
    """DDPM (Ho et al. 2020) and DDIM (Song et al. 2021) for diffusers' pipelines.

    Arguments have the names, the meaning and the defaults of diffusers' DDPMScheduler and DDIMScheduler, whose numbers
    the steps have up to float32 rounding. There are three differences. ``timestep_spacing="trailing"`` has as many
    timesteps as were asked for: for some numbers of steps (62 of the first 1000) diffusers adds a timestep -1, by
    rounding. ``variance_type="fixed_large_log"`` is ``"fixed_large"``; diffusers' step is NaN. Samples and noise are
    float32, bfloat16 or float16.

    Args:
        num_train_timesteps: length T of the chain.
        beta_start, beta_end: the first and the last beta, in (0, 1).
        beta_schedule: ``"linear"``, ``"scaled_linear"``, ``"squaredcos_cap_v2"`` or ``"sigmoid"``.
        trained_betas: T betas, in place of the three arguments above.
        method: ``"ddpm"`` or ``"ddim"``. Without it `from_config` takes the method of the class that the
            configuration came from: by its ``_class_name``, and in a configuration that was never saved, and so has
            none, by the arguments that it begins with.
        variance_type: of DDPM: ``"fixed_small"``, the variance of the posterior; ``"fixed_large"``, beta; the same with
            ``"_log"``; ``"learned"``, the network predicts the variance in C further channels; ``"learned_range"``, it
            predicts v in [-1, 1] between both logarithms. With DDIM these channels are ignored.
        clip_sample, clip_sample_range: whether and to what bound x_hat is clipped.
        set_alpha_to_one: of DDIM: whether the last step goes to x_hat. If False, it goes to the first timestep.
        steps_offset: added to all timesteps of the leading spacing.
        prediction_type: what the network predicts: ``"epsilon"``, ``"sample"`` or ``"v_prediction"``.
        timestep_spacing: ``"leading"``, ``"trailing"`` or ``"linspace"`` (Lin et al. 2024, table 2).
        thresholding, rescale_betas_zero_snr: must be False.
        dynamic_thresholding_ratio, sample_max_value: not used, since they belong to thresholding.
        seed: None draws the noise of `step` from torch's generators, as diffusers does. With a seed it is
            ``Noise(seed, step=i, first_sample=first_sample, stream=Stream.SAMPLER)`` for the i-th of the timesteps,
            drawn inside the step, and ``generator`` is not used there. The noise of a sample then depends neither on
            the batch that it is in nor on the device.

    With a seed, sample b of a batch has the index ``first_sample + b``. The attribute ``first_sample`` is 0 at first
    and is not advanced: set it to the number of images before the batch. `initial_sample` draws where sampling starts
    from the same seed.

    Raises:
        InvalidTypeError, InvalidValueError: an argument is not allowed or not supported.
    """

    _compatibles = [each.name for each in KarrasDiffusionSchedulers]  # noqa: RUF012  # whose keys are kept in silence
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        *,
        method: str = "ddpm",
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        seed: int | None = None,
    ) -> None:
        check_options(self.config)
        self.betas = checked_betas(self.config, trained_betas)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]
        kept = self.alphas_cumprod.double()
        self._gamma = torch.log((1.0 - kept) / kept).float()
        self._learned = variance_type.startswith("learned")
        self._clip = float(clip_sample_range) if clip_sample else None
        self.first_sample = 0
        self.num_inference_steps: int | None = None
        self._use(list(range(num_train_timesteps))[::-1], None)

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """Make a scheduler from the configuration of a scheduler of diffusers or of this one.

        Args:
            config: for example ``pipe.scheduler.config``. What only other classes have is kept, as diffusers does.
            return_unused_kwargs: return ``(scheduler, unused arguments)``.
            kwargs: arguments of the class that replace those of the configuration.

        Raises:
            InvalidValueError: ``method`` is absent and the configuration is neither of DDPM nor of DDIM, or does not
                say which; or an argument is not supported.
        """
        if isinstance(config, dict) and "method" not in kwargs:
            arguments = {each.__name__: list(signature(each).parameters) for each in (DDPMScheduler, DDIMScheduler)}
            kwargs["method"] = method_of(config, arguments)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        """Return the length of the chain."""
        return len(self.betas)

    # -------------------------------------------------------------------------------------------- timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the timesteps of a sampling loop, ``self.timesteps``, int64 [steps], from high noise to low.

        Args:
            num_inference_steps: the number of steps, at most the length of the chain.
            device: where ``timesteps`` is put.
            timesteps: the timesteps themselves, decreasing, in place of their number.

        Raises:
            InvalidTypeError, InvalidValueError: both or neither are given, or one has a value that is not allowed.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise InvalidValueError(
                "num_inference_steps or timesteps must be given, and not both, "
                f"got {num_inference_steps!r} and {timesteps!r}"
            )
        if timesteps is not None:
            chosen = self._integers(timesteps)
            decreasing = all(high > low for high, low in pairwise(chosen))
            if not chosen or not decreasing or chosen[0] >= len(self) or chosen[-1] < 0:
                raise InvalidValueError(f"timesteps must decrease and lie in [0, {len(self)}), got {chosen}")
            self.num_inference_steps = len(chosen)
        else:
            steps = check_integer("num_inference_steps", num_inference_steps, 1)
            if steps > len(self):
                raise InvalidValueError(
                    f"num_inference_steps must be <= {len(self)}, the length of the chain, got {steps}"
                )
            spacing = self.config["timestep_spacing"]
            offset = self.config["steps_offset"] if spacing == "leading" else 0
            chosen = [t + offset for t in reversed(chain_steps(spacing, len(self), steps))]
            self.num_inference_steps = steps
        self._use(chosen, device, next_in_list=timesteps is not None or self.config["method"] == "ddpm")

    def _integers(self, timesteps: Sequence[int]) -> list[int]:
        """Return chosen timesteps as a list of ints."""
        found = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
        if not isinstance(found, Iterable):
            raise InvalidTypeError(f"timesteps must be a sequence of integers, got {timesteps!r}")
        numbers = (t.item() if isinstance(t, Tensor) and t.numel() == 1 else t for t in found)
        return [check_integer("each of timesteps", t, 0) for t in numbers]

    def _use(self, timesteps: list[int], device: str | torch.device | None, next_in_list: bool = True) -> None:
        """Take these timesteps; DDIM's steps are T // steps long also where that is not the next in the list."""
        self.timesteps = torch.tensor(timesteps, dtype=torch.int64).to(device)
        self._position = {t: i for i, t in enumerate(timesteps)}
        self._in_list_only = next_in_list
        stride = 1 if self.num_inference_steps is None else len(self) // self.num_inference_steps
        self._previous = torch.arange(len(self)) - stride
        if next_in_list:
            inside = [i for i, t in enumerate(timesteps) if t < len(self)]  # steps_offset may put the first outside
            following = [*timesteps[1:], -1]
            self._previous[[timesteps[i] for i in inside]] = torch.tensor([following[i] for i in inside])
        self._table_key: tuple[float, bool, torch.device] | None = None

    def previous_timestep(self, timestep: int | Tensor) -> int:
        """Return the timestep that `step` goes to from this one, negative for the end."""
        return int(self._previous[self._checked(timestep)])

    def _checked(self, timestep: int | Tensor) -> int:
        """Return a timestep as an int that a row exists for."""
        if isinstance(timestep, Tensor) and timestep.numel() != 1:
            raise InvalidValueError(f"timestep must be one timestep, got a tensor of shape {tuple(timestep.shape)}")
        t = int(timestep)
        if not 0 <= t < len(self):
            raise InvalidValueError(f"timestep must be in [0, {len(self)}), got {t}")
        if (self._in_list_only or self.config["seed"] is not None) and t not in self._position:
            raise InvalidValueError(f"timestep must be one of self.timesteps (set_timesteps chooses them), got {t}")
        return t

    # -------------------------------------------------------------------------------------------- a step

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """Return the sample: this scheduler does not scale the input of the network."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: Generators | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Go from the sample at a timestep to that at the next one.

        Args:
            model_output: what the network predicts, [B, C, ...]; [B, 2C, ...] with a learned variance.
            timestep: the timestep of the sample.
            sample: z_t, [B, C, ...], float32, bfloat16 or float16.
            eta: of DDIM, in [0, 1]: 0 is deterministic and 1 has the noise of DDPM. DDPM ignores it.
            use_clipped_model_output: of DDIM: compute eps_hat from x_hat after it was clipped. DDPM does so always.
            generator: one generator, or one for each sample, for torch's noise. Not used with a seed.
            variance_noise: the noise itself, like the sample, in place of a drawn one.
            return_dict: if False, return the tuple ``(prev_sample, pred_original_sample)``.

        Returns:
            An output with ``prev_sample``, z_s, and ``pred_original_sample``, x_hat, clipped if ``clip_sample``, in the
            dtype of the sample and the prediction.

        Raises:
            InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape, device or value.
        """
        ddim = self.config["method"] == "ddim"
        if ddim and self.num_inference_steps is None:
            raise InvalidValueError("set_timesteps must be called before step")
        t = self._checked(timestep)
        model_output, predicted_variance = self._split(model_output, sample)
        eta = self._checked_eta(eta) if ddim else 1.0
        table = self._table(eta, ddim and not use_clipped_model_output and self._clip is not None, sample.device)
        noise = None
        if eta > 0 and (ddim or t > 0):
            noise = self._noise(t, model_output, generator, variance_noise)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        by_row = table.log_variance is None  # else the mean, and then noise of the predicted variance
        sample = sample.to(dtype) if by_row else sample.float()
        estimate = model_output
        if t >= table.residual_from:
            sigma = (1.0 - self.alphas_cumprod[t]).sqrt()
            estimate = sample.float() - sigma * model_output.float()
        prev_sample, x_hat = sampler_step(
            sample, estimate, table.rows[t], noise if by_row else None, clip=self._clip,
            z_prev=model_output if table.reads_prediction else None,
        )  # fmt: skip
        assert x_hat is not None
        if table.log_variance is not None and noise is not None:
            assert predicted_variance is not None
            log_variance = self._log_variance(predicted_variance, table.log_variance[t])
            prev_sample, _ = reparameterize(prev_sample, log_variance, noise)
        prev_sample, x_hat = prev_sample.to(dtype), x_hat.to(dtype)
        if not return_dict:
            return prev_sample, x_hat
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_hat)

    def _table(self, eta: float, keeps_eps_hat: bool, device: torch.device) -> StepTable:
        """Return the rows of all timesteps on a device; the last table is kept."""
        if self._table_key != (eta, keeps_eps_hat, device):
            method, prediction = self.config["method"], self.config["prediction_type"]
            last = float(self.final_alpha_cumprod) if method == "ddim" else 1.0
            steps = Steps.between(self.alphas_cumprod, self._previous, last)
            if method == "ddim":
                table = ddim_table(steps, prediction, eta, keeps_eps_hat)
            else:
                table = ddpm_table(steps, prediction, self.config["variance_type"])
            self._table_key, self._kept_table = (eta, keeps_eps_hat, device), table.to(device)
        return self._kept_table

    def _split(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the prediction, and the channels of a learned variance."""
        channels = sample.shape[1] if sample.dim() > 1 else 0
        wanted = (len(sample), 2 * channels, *sample.shape[2:]) if self._learned else sample.shape
        if tuple(model_output.shape) != tuple(wanted):
            raise InvalidValueError(
                f"model_output must have shape {tuple(wanted)} for a sample of shape {tuple(sample.shape)} and "
                f"variance_type={self.config['variance_type']!r}, got {tuple(model_output.shape)}"
            )
        if not self._learned:
            return model_output, None
        prediction, variance = model_output.split(channels, dim=1)
        return prediction, variance

    def _log_variance(self, predicted: Tensor, bounds: Tensor) -> Tensor:
        """Return the log-variance that the network predicts, float32."""
        if self.config["variance_type"] == "learned":
            return predicted.float().log()
        return torch.lerp(bounds[0], bounds[1], 0.5 * (predicted.float() + 1.0))

    def _checked_eta(self, eta: float) -> float:
        if not isinstance(eta, (int, float)):
            raise InvalidTypeError(f"eta must be a number in [0, 1], got {eta!r}")
        if not 0 <= eta <= 1:
            raise InvalidValueError(f"eta must be in [0, 1], got {eta}")
        return float(eta)

    # -------------------------------------------------------------------------------------------- noise

    def _noise(
        self, t: int, like: Tensor, generator: Generators | None, variance_noise: Tensor | None
    ) -> Tensor | Noise:
        if variance_noise is not None:
            if generator is not None:
                raise InvalidValueError("generator and variance_noise must not both be given")
            return variance_noise
        if self.config["seed"] is not None:
            noise = self._seeded(Stream.SAMPLER)
            return noise.at(step=self._position[t])
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def _seeded(self, stream: int) -> Noise:
        seed = self.config["seed"]
        if seed is None:
            raise InvalidValueError("seed must be given to the scheduler to draw its noise, got None")
        return Noise(seed, first_sample=self.first_sample, stream=stream)

    def initial_sample(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Tensor:
        """Return where sampling starts, standard normals [B, ...] drawn with the seed in the stream INITIAL.

        Raises:
            InvalidValueError: the scheduler has no seed.
        """
        return self._seeded(Stream.INITIAL).normal(shape, dtype, device)

    def add_noise(self, original_samples: Tensor, noise: Tensor | Noise, timesteps: Tensor) -> Tensor:
        """Return z_t = alpha_t x + sigma_t eps in the dtype of x.

        Args:
            original_samples: x, [B, ...], float32, bfloat16 or float16.
            noise: eps, like x, or a `Noise` that is drawn inside.
            timesteps: int64 [B], or one for all samples.

        Raises:
            InvalidTypeError, InvalidValueError: an argument has the wrong type, dtype, shape, device or value.
        """
        return diffuse(original_samples, self._gammas(timesteps, original_samples), noise)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return v = alpha_t eps - sigma_t x in the dtype of x (Salimans and Ho 2022).

        Args:
            sample: x, [B, ...].
            noise: eps, like x.
            timesteps: int64 [B], or one for all samples.

        Raises:
            InvalidValueError: the timesteps have another shape or lie outside the chain.
        """
        gamma = self._gammas(timesteps, sample).reshape(-1, *[1] * (sample.dim() - 1))
        alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        return (alpha * noise.float() - sigma * sample.float()).to(sample.dtype)

    def _gammas(self, timesteps: Tensor, x: Tensor) -> Tensor:
        """Return gamma of every sample of x, float32 [B]."""
        flat = torch.as_tensor(timesteps).flatten()
        if len(flat) not in (1, len(x)) or flat.is_floating_point():
            raise InvalidValueError(f"timesteps must be {len(x)} integers, or one, got {timesteps!r}")
        if flat.device.type == "cpu" and not bool(((flat >= 0) & (flat < len(self))).all()):
            raise InvalidValueError(f"timesteps must lie in [0, {len(self)}), got {timesteps!r}")
        self._gamma = self._gamma.to(x.device)
        return self._gamma[flat.to(x.device)].expand(len(x)).contiguous()
