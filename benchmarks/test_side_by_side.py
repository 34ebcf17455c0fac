"""fastdiff at its best against diffusers with the same weights: the network, sampling and training.

"fastdiff" is compiled, and on a GPU a captured graph (sampling: `fastdiff.Engine`); "eager" is fastdiff without either.
"diffusers compiled" is its network under ``torch.compile``, "diffusers reduce-overhead" as CUDA graphs. Both sides
compute the same, see `side_calls`. Where diffusers is not installed our sides run alone. `side_by_side.py` measures the
same and more by itself. A CPU takes minutes, and runs the small network of --quick only.
"""

from collections.abc import Callable

import pytest
import torch
from clocks import Call, wall_clock
from side_by_side import Case, sides_of
from side_calls import BEST, FASTDIFF

MODES = {"cpu": (), "cuda": ("default", "reduce-overhead")}  # on a CPU, where this only tries the file, none
SETTINGS = [("cpu", 2, "fp32"), *(("cuda", batch, "bf16") for batch in (16, 1, 128)), ("cuda", 16, "fp32")]
EACH = pytest.mark.parametrize(
    ("device", "batch", "precision"), SETTINGS, indirect=["device"], ids=["-".join(map(str, each)) for each in SETTINGS]
)
TRAINING = [("cpu", 2, "fp32"), ("cuda", 128, "bf16")]
EACH_TRAINING = pytest.mark.parametrize(
    ("device", "batch", "precision"), TRAINING, indirect=["device"], ids=["-".join(map(str, each)) for each in TRAINING]
)


@pytest.fixture
def beside(quick: bool, compare: Callable[..., None]) -> Callable[..., None]:
    """Compare the sides of a case."""

    def run(what: str, name: str, device: torch.device, batch: int, precision: str, size: str = "35.7M") -> None:
        if device.type == "cpu" and not quick:
            pytest.skip("takes minutes on a CPU: python benchmarks/side_by_side.py")
        size, steps = ("tiny" if quick and size == "35.7M" else size), (5 if quick else 50)
        case = Case(what, size, batch, precision, device.type, steps)
        sides, _, shape = sides_of(case, MODES[device.type])
        eager, best = sides.pop(FASTDIFF), sides.pop(BEST)
        if quick and device.type == "cpu":  # compiling takes longer than all else
            best = eager
        calls: dict[str, Call] = {"fastdiff": best(), "eager": eager()}
        for side, make in sides.items():
            try:
                call = make()
                call()
            except Exception as error:  # of diffusers' network in a mode of the compiler: ours are measured without it
                print(f"{side} does not run: {error}")
            else:
                calls[side] = call
        title = f"{name}, {steps} steps" if what == "sampling" else name
        compare((title, size, device, case.dtype, (batch, *shape)), calls, wall_clock(device), "wall")

    return run


@EACH
def test_sampling(device: torch.device, batch: int, precision: str, beside: Callable[..., None]) -> None:
    """50 steps of DDIM."""
    beside("sampling", "DDIM", device, batch, precision)


@EACH
def test_forward(device: torch.device, batch: int, precision: str, beside: Callable[..., None]) -> None:
    """One call of the network without gradients."""
    beside("forward", "denoiser", device, batch, precision)


@EACH_TRAINING
def test_training(device: torch.device, batch: int, precision: str, beside: Callable[..., None]) -> None:
    """Noise, network, loss, gradients and AdamW."""
    beside("training", "training with AdamW", device, batch, precision)


@pytest.mark.parametrize(("what", "name"), [("sampling", "DDIM"), ("training", "training with AdamW")])
@EACH_TRAINING
def test_28_by_28(
    what: str, name: str, device: torch.device, batch: int, precision: str, beside: Callable[..., None]
) -> None:
    """The same for a small network on images of one channel and 28 × 28 pixels, like the letters."""
    beside(what, name, device, batch, precision, "28x28")


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_training_of_vdm(device: torch.device, beside: Callable[..., None]) -> None:
    """Training steps of `vdm-cifar10`, of our sides alone: 128 images a step."""
    beside("vdm", "training of vdm-cifar10", device, 128, "bf16")
