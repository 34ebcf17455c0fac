"""The conditional diffusion model: a DDPM whose network sees a conditioning image ``cond`` beside the latent.

`DiffuseVAE` conditions on the image of a VAE (Pandey et al. 2022, arXiv:2201.00308), `Restoration` on a degraded image.
In formulation 1 the diffusion is that of a DDPM. In formulation 2 the forward process is shifted by cond,

    q(x_1 | x_0, cond) = N(sqrt(1 - beta_1) x_0 + cond, beta_1),
    q(x_t | x_{t-1}, cond) = N(sqrt(1 - beta_t) x_{t-1} + (1 - sqrt(1 - beta_t)) cond, beta_t),  t > 1,

with the prior x_T ~ N(cond, I). It is a DDPM in y_t = x_t - cond for t >= 1 and y_0 = x_0, and so it runs here: data,
loss, clipping and the last step are those of a DDPM on x, and the network sees [y_t + cond, cond]. The prior term of
the bound is KL(q(x_T | x, cond) || N(cond, I)), which equals KL(q(y_T | x) || N(0, I)).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion.loop import Callback
from ..io.configuration import ConfigError, configuration, field, one_of
from ..kernels import InvalidTypeError, InvalidValueError, to_unit_range
from .base import Diffusion
from .ddpm import DDPM, DDPMConfig
from .requests import Request, rows_of


@configuration
class ConditionalDDPMConfig(DDPMConfig):
    """The configuration of a conditional DDPM.

    Args:
        shape, ..., network: the diffusion model, see `DDPMConfig`.
        formulation: 1 or 2, see the module.
    """

    formulation: int = field(one_of(1, 2), default=1)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.pixels != "centers":
            raise ConfigError(f"{type(self).__name__}: pixels must be 'centers' for a conditional model")

    @property
    def channels_in(self) -> int:
        """Channels of the network's input: the latent and the conditioning image."""
        return 2 * self.shape[0]


class ConditionalDDPM(DDPM):
    """A DDPM of p(x | cond). Subclasses implement `draw_cond` for data and `prepare_cond` for sampling."""

    config_class = ConditionalDDPMConfig
    config: ConditionalDDPMConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def unconditional_diffusion(self) -> Diffusion:
        raise InvalidTypeError(f"a {self.kind} model is one of p(x | cond); the ODE is defined for models of p(x)")

    def predict(
        self, z_t: Tensor, gamma: Tensor, labels: Tensor | None = None, cond: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `DDPM.predict`, for conditioning images float32 [B, C, H, W]; z_t is y_t in formulation 2.

        Raises:
            InvalidValueError: cond is missing or of another shape than z_t.
        """
        if cond is None or cond.shape != z_t.shape:
            got = "None" if cond is None else f"shape {tuple(cond.shape)}"
            raise InvalidValueError(f"predict: cond must have the shape of z_t, {tuple(z_t.shape)}, got {got}")
        x_t = z_t if self.config.formulation == 1 else z_t + cond
        return self.predict_from(torch.cat([x_t, cond], dim=1), z_t, gamma, labels)

    @property
    def cond_shape(self) -> tuple[int, int, int]:
        """Shape of the conditioning image of one sample in `fastdiff.sample`."""
        return self.shape

    @property
    def cond_limit(self) -> float:
        """Upper bound of the absolute value of a conditioning image in `fastdiff.sample`."""
        return math.inf

    @property
    def sampling_options(self) -> frozenset[str]:
        return super().sampling_options | {"cond"}

    def shown_callback(self, callback: Callback | None, cond: Tensor | None, last_call: int) -> Callback | None:
        """Show x_t = y_t + cond in formulation 2, for t >= 1."""
        if callback is None or cond is None or self.config.formulation == 1:
            return callback
        return lambda step, nfe, y, x_hat: callback(step, nfe, y if nfe == last_call else y + cond, x_hat)

    def check_cond(self, cond: object, n: int) -> Tensor:
        """Return the conditioning images of a request in [-1, 1], float32 [n, *cond_shape].

        Raises:
            InvalidTypeError, InvalidValueError: another dtype or shape, values out of range.
        """
        shape = (n, *self.cond_shape)
        if not isinstance(cond, Tensor) or not (cond.dtype == torch.uint8 or cond.is_floating_point()):
            got = f"dtype {cond.dtype}" if isinstance(cond, Tensor) else f"a {type(cond).__name__}"
            raise InvalidTypeError(f"sample: cond must be a tensor of uint8 levels, or of floats in [-1, 1], got {got}")
        if tuple(cond.shape) != shape:
            raise InvalidValueError(f"sample: cond must have shape {shape}, got {tuple(cond.shape)}")
        if cond.dtype == torch.uint8:
            if cond.numel() and int(cond.max()) >= self.levels:
                raise InvalidValueError(f"sample: cond must lie in 0 .. {self.levels - 1}, got {int(cond.max())}")
            return to_unit_range(cond, self.levels)
        cond = cond.float()
        if not torch.isfinite(cond).all():
            raise InvalidValueError("sample: cond must be finite")
        if cond.numel() and not float(cond.abs().max()) <= self.cond_limit:
            low, high = float(cond.min()), float(cond.max())
            raise InvalidValueError(f"sample: cond must lie within ±{self.cond_limit:g}, got {low:g} .. {high:g}")
        return cond

    def batches_of(self, cond: Tensor) -> Callable[[int, int], Tensor]:
        """Return what gives the images first .. first + count - 1 on the model's device."""
        return lambda first, count: rows_of(cond, first, count).to(self.device)

    def prepare_cond(self, request: Request) -> Callable[[int, int], Tensor]:
        raise NotImplementedError
