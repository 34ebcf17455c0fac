"""The U-Net of `ddpm-cifar10`, forward and in training, against its reference and diffusers' network of the same size.

"reference" is the same network on the plain-PyTorch implementations of its operations. "diffusers" is the UNet2DModel
of google/ddpm-cifar10-32, with as many parameters and weights of its own, where diffusers is installed. All are
channels-last. "graph" times replays of a captured CUDA graph, "wall" calls from an idle device to an idle device.

On a CPU the network runs on the reference as it is. With --quick a small network is compared all the same, which checks
this file.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from clocks import Call, graph_of, wall_clock
from footprint import GOOGLE_DDPM_CIFAR10
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.kernels import use_backend
from fastdiff.models import ConcatUNetConfig, DDPMConfig, model_of
from fastdiff.presets import preset

Networks = tuple[nn.Module, nn.Module | None]
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of |ours - reference| / |reference|
SETTINGS = [
    ("cpu", 2, torch.float32),
    ("cuda", 16, torch.float32),
    ("cuda", 16, torch.bfloat16),
    ("cuda", 128, torch.float32),
    ("cuda", 128, torch.bfloat16),
]
IDS = [f"{device}-{batch}-{str(dtype).removeprefix('torch.')}" for device, batch, dtype in SETTINGS]
NAMES = ("device", "batch", "dtype")
EACH = pytest.mark.parametrize(NAMES, SETTINGS, indirect=["device"], ids=IDS)
ON_GPU = pytest.mark.parametrize(NAMES, SETTINGS[1:], indirect=["device"], ids=IDS[1:])


@pytest.fixture
def networks(device: torch.device, dtype: torch.dtype, quick: bool) -> Networks:
    """Our network with random weights, since what starts at zero could be faster, and diffusers' or None."""
    if device.type == "cpu" and not quick:
        pytest.skip("a CPU runs the reference: nothing to compare")
    small = DDPMConfig(shape=(3, 32, 32), levels=256, network=ConcatUNetConfig(width=32, multipliers=(1, 2), blocks=1))
    ours = model_of(small if quick else preset("ddpm-cifar10").model).to(device).network
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    if quick or not find_spec("diffusers"):
        return ours.to(dtype), None
    from diffusers import UNet2DModel

    theirs = UNet2DModel(**GOOGLE_DDPM_CIFAR10).to(device, dtype).to(memory_format=torch.channels_last)
    return ours.to(dtype), theirs


def on_reference(call: Call) -> Call:
    """The same call on the plain-PyTorch implementations."""

    def run() -> object:
        with use_backend("torch"):
            return call()

    return run


def forwards(networks: Networks, x: Tensor) -> dict[str, Call]:
    """One call of each network without gradients, checked."""
    ours, theirs = (module if module is None else module.eval() for module in networks)
    level, timesteps = torch.rand(len(x), device=x.device), torch.randint(1000, (len(x),), device=x.device)
    forward = torch.no_grad()(partial(ours, x, level.to(x.dtype)))
    calls: dict[str, Call] = {"fastdiff": forward, "reference": on_reference(forward)}
    check_same(calls, TOLERANCE[x.dtype])
    if theirs is not None:
        calls["diffusers"] = torch.no_grad()(lambda: theirs(x, timesteps).sample)
    return calls


def images(batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normals in channels-last memory."""
    return torch.randn(batch, 3, 32, 32, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)


@EACH
def test_forward(
    device: torch.device, batch: int, dtype: torch.dtype, networks: Networks, compare: Callable[..., None]
) -> None:
    """One call of the network without gradients."""
    x = images(batch, dtype, device)
    what = "U-Net forward", "ddpm-cifar10", device, dtype, tuple(x.shape)
    compare(what, forwards(networks, x), wall_clock(device), "wall")


@ON_GPU
def test_forward_replayed(
    device: torch.device, batch: int, dtype: torch.dtype, networks: Networks, compare: Callable[..., None]
) -> None:
    """The same call as a captured graph."""
    x = images(batch, dtype, device)
    calls = forwards(networks, x)
    graphs: dict[str, Call] = {name: torch.no_grad()(graph_of)(call).replay for name, call in calls.items()}
    what = "U-Net forward", "ddpm-cifar10, replayed", device, dtype, tuple(x.shape)
    compare(what, graphs, wall_clock(device), "graph")


@EACH
def test_training(
    device: torch.device, batch: int, dtype: torch.dtype, networks: Networks, compare: Callable[..., None]
) -> None:
    """Squared error on noise, and the gradients to all weights."""
    ours, theirs = (module if module is None else module.train() for module in networks)
    x = images(batch, dtype, device)
    level, timesteps = torch.rand(len(x), device=device), torch.randint(1000, (len(x),), device=device)
    noise = torch.randn_like(x)
    step = gradients(ours, lambda: F.mse_loss(ours(x, level.to(dtype)), noise))
    calls: dict[str, Call] = {"fastdiff": step, "reference": on_reference(step)}
    if theirs is not None:
        calls["diffusers"] = gradients(theirs, lambda: F.mse_loss(theirs(x, timesteps).sample, noise))
    compare(
        ("U-Net forward and backward", "ddpm-cifar10", device, dtype, tuple(x.shape)), calls, wall_clock(device), "wall"
    )


def gradients(module: nn.Module, loss: Callable[[], Tensor]) -> Call:
    """A call of loss and gradients that accumulates nothing."""
    parameters = list(module.parameters())
    return lambda: torch.autograd.grad(loss(), parameters)


def check_same(calls: dict[str, Call], tolerance: float) -> None:
    """Check that our network and the reference compute the same. A NaN does not pass."""
    ours, exact = calls["fastdiff"](), calls["reference"]()
    assert isinstance(ours, Tensor)
    assert isinstance(exact, Tensor)
    error = float(torch.linalg.vector_norm(ours.float() - exact.float()) / torch.linalg.vector_norm(exact.float()))
    assert error < tolerance, f"the network and its reference differ by {error:.2g}"
