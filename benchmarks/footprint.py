"""What whole models launch and move, counted on a CPU, with diffusers' network of the same size beside them.

    python benchmarks/footprint.py [--model NAME ...] [--what forward,training] [--by-operation] [--json PATH]

`dispatch_counts` says what counts as an operation, as element-wise bytes, and as a launch. The batch has two images.
Weights, activations and the network's input are channels-last, as both libraries are used on a GPU, and the biases of
our residual blocks' convolutions are added by the norms behind them, as on a GPU.

forward: the call ``model.eps_hat(z_t, gamma)`` of a preset's model in evaluation, without gradients; for diffusers
    ``UNet2DModel(z_t, timesteps)``.
training: the loss of the preset ``model(x, noise, loss=...)`` in training mode, its mean over the batch, and
    ``backward()``; for diffusers the noise, ``DDPMScheduler.add_noise``, the network and ``mse_loss`` on the noise,
    and ``backward()``. What the host prepares is left out: drawing indices, augmentation.
optimizer: the same, and one step of AdamW, fused, which counts as one operation and with its bytes.

The operations of forward and training do not depend on the batch size; the bytes grow with it, apart from weights.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))

from dispatch_counts import Count, counted
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.kernels import Noise
from fastdiff.models import DiffusionModel
from fastdiff.networks import sums
from fastdiff.presets import PRESETS, preset

BATCH = 2
DIFFUSERS = "diffusers"  # stands for its UNet2DModel of google/ddpm-cifar10-32
MODELS = ("ddpm-cifar10", "vdm-cifar10", DIFFUSERS)
WHAT = ("forward", "training", "optimizer")
# The most operations and element-wise megabytes that a model may need
BARS = {
    ("ddpm-cifar10", "forward"): (195, 95.0),
    ("ddpm-cifar10", "training"): (750, 350.0),
    ("vdm-cifar10", "forward"): (430, 600.0),
}
GOOGLE_DDPM_CIFAR10 = {
    "sample_size": 32, "in_channels": 3, "out_channels": 3, "center_input_sample": False, "freq_shift": 1,
    "flip_sin_to_cos": False, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "mid_block_scale_factor": 1,
    "downsample_padding": 0, "attention_head_dim": None, "norm_eps": 1e-6, "norm_num_groups": 32,
}  # fmt: skip
GOOGLE_SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "variance_type": "fixed_large", "clip_sample": True,
}  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """What a model needs for one of `WHAT`, in all and by operation."""

    model: str
    what: str
    total: Count
    by_operation: dict[str, Count]


def footprint(name: str, what: str) -> Footprint:
    """Count one of `WHAT` for a preset's model, or for diffusers' network."""
    torch.manual_seed(0)
    call = diffusers_call(what) if name == DIFFUSERS else preset_call(name, what)
    with mock.patch.object(sums, "bias_is_a_pass", return_value=True):  # as on a GPU
        counts = counted(call)
    return Footprint(name, what, sum(counts.values(), Count()), counts)


def preset_call(name: str, what: str) -> Callable[[], object]:
    """The call to count for a preset's model with fresh weights."""
    chosen = preset(name)
    model = chosen.build()
    if not isinstance(model, DiffusionModel):
        raise SystemExit(f"--model must name presets of diffusion models, got {name}")
    labels = torch.zeros(BATCH, dtype=torch.int64) if model.num_classes else None
    if what == "forward":
        z_t, gamma = channels_last(torch.randn(BATCH, *model.shape)), torch.zeros(BATCH)
        return without_gradients(model, lambda: model.eps_hat(z_t, gamma, labels))
    x, noise = torch.randint(model.levels, (BATCH, *model.shape), dtype=torch.uint8), Noise(0)

    def loss() -> Tensor:
        return model(x, noise, labels, chosen.train.loss).loss.mean()

    return training(model, loss, what)


def diffusers_call(what: str) -> Callable[[], object]:
    """The call to count for diffusers' network of google/ddpm-cifar10-32 with fresh weights."""
    from diffusers import DDPMScheduler, UNet2DModel

    network = UNet2DModel(**GOOGLE_DDPM_CIFAR10).to(memory_format=torch.channels_last)
    x, timesteps = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH)
    if what == "forward":
        z_t = channels_last(x)
        return without_gradients(network, lambda: network(z_t, timesteps).sample)
    scheduler = DDPMScheduler(**GOOGLE_SCHEDULER)

    def loss() -> Tensor:
        noise = torch.randn_like(x)
        t = torch.randint(1000, (BATCH,))
        return F.mse_loss(network(channels_last(scheduler.add_noise(x, noise, t)), t).sample, noise)

    return training(network, loss, what)


def without_gradients(module: nn.Module, call: Callable[[], Tensor]) -> Callable[[], object]:
    """A call in evaluation mode that records nothing."""
    module.eval()
    return torch.no_grad()(call)


def training(module: nn.Module, loss: Callable[[], Tensor], what: str) -> Callable[[], object]:
    """Loss and backward in training mode, and for ``"optimizer"`` a step of AdamW."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)

    def step() -> None:
        loss().backward()
        if what == "optimizer":
            optimizer.step()

    if what == "optimizer":
        step()  # allocates the moments
        optimizer.zero_grad(set_to_none=True)
    return step


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def table(found: list[Footprint]) -> list[str]:
    """One line per model and measurement, with its bar if there is one."""
    lines = [f"{'model':<20}{'what':<11}{'operations':>11}{'element-wise MB':>17}{'launches':>10}"]
    for row in found:
        total = row.total
        line = f"{row.model:<20}{row.what:<11}{total.calls:>11}{total.bytes / 1e6:>17.1f}{total.launches:>10}"
        if (row.model, row.what) in BARS:
            operations, megabytes = BARS[row.model, row.what]
            reached = total.calls <= operations and total.bytes <= 1e6 * megabytes
            line += f"   bar: {operations} and {megabytes:g}{'' if reached else ', not reached'}"
        lines.append(line)
    return lines


def details(row: Footprint) -> list[str]:
    """The operations of one measurement, those that move most first."""
    lines = ["", f"{row.model}, {row.what}", f"{'operation':<52}{'count':>7}{'launches':>10}{'MB':>9}"]
    for name, count in row.by_operation.items():
        lines.append(f"{name:<52}{count.calls:>7}{count.launches:>10}{count.bytes / 1e6:>9.2f}")
    return lines


def main() -> int:
    """Count, print, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    names = [*PRESETS, DIFFUSERS]
    parser.add_argument("--model", nargs="+", choices=names, metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--what", default=",".join(WHAT), help=f"a list of {', '.join(WHAT)}")
    parser.add_argument("--by-operation", action="store_true", help="also list the operations of each")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the counts as JSON")
    options = parser.parse_args()
    what = options.what.split(",")
    if unknown := sorted(set(what) - set(WHAT)):
        parser.error(f"--what must list some of {', '.join(WHAT)}, got {', '.join(unknown)}")
    models = options.model or [name for name in MODELS if name != DIFFUSERS or find_spec(DIFFUSERS)]
    found = [footprint(name, each) for name in models for each in what]
    print("\n".join(table(found)))
    for row in found if options.by_operation else []:
        print("\n".join(details(row)))
    if options.json is not None:
        rows = [asdict(row) for row in found]
        for row in [] if options.by_operation else rows:
            del row["by_operation"]
        content = {"torch": torch.__version__, "batch": BATCH, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
