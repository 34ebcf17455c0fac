"""The two networks of `side_by_side`: diffusers' UNet2DModel and a `DDPM` of ours with the same weights.

``35.7M`` is google/ddpm-cifar10-32, which is our `ddpm-cifar10`. ``6.5M`` has half of its width and three of its four
resolutions; ``28x28`` is for images of one channel and 28 × 28 pixels, like the letters; ``tiny`` is for trying the
benchmark. Without diffusers ours has random weights of its own.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from footprint import GOOGLE_DDPM_CIFAR10, GOOGLE_SCHEDULER
from torch import Tensor, nn

from fastdiff.diffusion import DDIM, Sampler
from fastdiff.models import DDPM
from fastdiff.models.formats.diffusers_config import read_config
from fastdiff.models.formats.diffusers_names import entries_of
from fastdiff.models.formats.tensor_map import read_tensors
from fastdiff.networks.concat_unet import ConcatUNet

TIMESTEPS = 1000


def _narrower(channels: tuple[int, ...], groups: int, layers: int, **more: Any) -> dict[str, Any]:
    count = len(channels)
    down = tuple("AttnDownBlock2D" if k == 1 else "DownBlock2D" for k in range(count))
    up = tuple("AttnUpBlock2D" if k == count - 2 else "UpBlock2D" for k in range(count))
    changes = {"block_out_channels": channels, "norm_num_groups": groups, "layers_per_block": layers}
    return {**GOOGLE_DDPM_CIFAR10, "down_block_types": down, "up_block_types": up, **changes, **more}


SIZES = {
    "6.5M": _narrower((64, 128, 128), 32, 2),
    "35.7M": GOOGLE_DDPM_CIFAR10,
    "28x28": _narrower((32, 64, 64), 16, 1, sample_size=28, in_channels=1, out_channels=1),
    "tiny": _narrower((16, 32), 8, 1),
}
DROPOUT = 0.1  # of the paper, on both sides; only training applies it
# A network with random weights predicts little of the noise, and DDIM divides latents and predictions by alpha, 0.0077
# at timestep 980: nearly all pixels would be clipped, and wrong images look alike. So the initial latents and the last
# convolution are scaled, on both sides; the time of neither depends on them.
TEMPERATURE, LAST_SCALE = 0.005, 0.01


@dataclass(frozen=True)
class Pair:
    """Our model and diffusers' network, None where diffusers is not installed; both in evaluation mode."""

    ours: DDPM
    theirs: nn.Module | None

    @property
    def network(self) -> ConcatUNet:
        """Our network."""
        assert isinstance(self.ours.network, ConcatUNet)
        return self.ours.network

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of an image."""
        return self.ours.shape

    @property
    def parameters(self) -> int:
        """Number of parameters of our network."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def pair_of(size: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Pair:
    """Build both networks of one of `SIZES` with the same weights, channels-last, of some dtype, on a device.

    In 16 bits our network has that dtype; the model around it computes in float32.
    """
    theirs = {**SIZES[size], "dropout": DROPOUT}
    config = read_config(theirs, GOOGLE_SCHEDULER, size).config
    torch.manual_seed(0)
    ours, other = DDPM(config).eval(), None
    network = ours.network
    assert isinstance(network, ConcatUNet)
    if find_spec("diffusers"):
        from diffusers import UNet2DModel
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it warns of an empty list
        other = UNet2DModel(**theirs).eval()
        scale_last(other)
        state, expected = other.state_dict(), network.state_dict()
        network.load_state_dict(read_tensors(entries_of(network), state, expected, size, "a UNet2DModel"))
        other = other.to(device, dtype).to(memory_format=torch.channels_last)
    else:
        with torch.no_grad():
            for parameter in network.parameters():  # what starts at zero could be faster
                parameter.add_(0.02 * torch.randn_like(parameter))
        scale_last(network)
    network.to(dtype)
    return Pair(ours.to(device), other)


def scale_last(network: nn.Module) -> None:
    """Scale the last convolution."""
    for parameter in network.get_submodule("conv_out").parameters():
        parameter.data *= LAST_SCALE


def level_of(timesteps: Tensor) -> Tensor:
    """The noise level with which our model of a `Pair` is called for timesteps 0, ..., 999."""
    return timesteps.float() / (TIMESTEPS - 1)


def timesteps_of(steps: int) -> Tensor:
    """The timesteps of ``DDIMScheduler``, "leading": multiples of 1000 // steps, the largest first."""
    return torch.arange(steps - 1, -1, -1) * (TIMESTEPS // steps)


def ddim_of() -> Sampler:
    """DDIM at the timesteps of ``DDIMScheduler``."""
    return DDIM(spacing="leading", temperature=TEMPERATURE)


def scheduler_of(steps: int) -> Any:
    """``DDIMScheduler`` of google/ddpm-cifar10-32, without the clipping of x_hat (see `TEMPERATURE`)."""
    from diffusers import DDIMScheduler

    settings = {name: value for name, value in GOOGLE_SCHEDULER.items() if name != "variance_type"}
    scheduler = DDIMScheduler(**{**settings, "clip_sample": False})
    scheduler.set_timesteps(steps)
    return scheduler
