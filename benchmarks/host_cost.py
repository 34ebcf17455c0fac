"""Host time of one eager call of an operation, without the launch of its kernel. No GPU is needed.

    python benchmarks/host_cost.py [--json PATH]

The launch is replaced by a call that does nothing. The rest runs as on a GPU: checks of arguments, autograd, allocation
of results, and the choice of the grid. Not measured: the launch, a change of the current device, and the difference
between the device's allocator and the CPU's.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before the first import of a kernel: CPU tensors go to the launchers
os.environ.pop("FASTDIFF_BACKEND", None)

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter

import torch
from fastdiff_kernels import (
    Noise,
    decoder_nll,
    diffuse,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_silu,
    reparameterize,
    sampler_step,
)
from report import machine

MODULES = (
    "decoder_nll_kernels", "diffuse", "eps_loss", "fourier", "gaussian_log_ratio", "group_norm_kernels",
    "group_norm_gradient", "noise_kernels", "reparameterize", "sampler_step_kernels",
)  # fmt: skip
CALLS, REPEATS = 1000, 9


class NoLaunch:
    """Replaces a kernel: ``kernel[grid](...)`` does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def without_launches() -> None:
    """Replace every kernel of the package, and leave out the checks of values, which are made on CPU tensors only."""
    for name in ("decoder_nll", "sampler_step"):
        import_module(f"fastdiff_kernels.{name}").values_visible = lambda x: False
    for name in MODULES:
        module = import_module(f"fastdiff_kernels.{name}")
        for attribute in list(vars(module)):
            if attribute.endswith("_kernel"):
                setattr(module, attribute, NoLaunch())


def calls(grad: bool) -> dict[str, Callable[[], object]]:
    """Operations on tensors of 32 elements, with or without recording for a gradient."""
    x = torch.randn(2, 4, 2, 2, requires_grad=grad)
    other, levels, noise = torch.randn(2, 4, 2, 2), torch.zeros(2, 4, 2, 2, dtype=torch.uint8), Noise(1)
    vector, channel = torch.zeros(2), torch.ones(4)
    row = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    multistep = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    return {
        "diffuse": lambda: diffuse(x, vector, noise),
        "eps_loss": lambda: eps_loss(x, noise, vector),
        "fourier_features": lambda: fourier_features(x),
        "sampler_step": lambda: sampler_step(x, other, row, noise, keep_x_hat=False),
        "sampler_step, one estimate": lambda: sampler_step(x, other, multistep, history=(other,)),
        "reparameterize": lambda: reparameterize(x, other, noise),
        "gaussian_log_ratio": lambda: gaussian_log_ratio(x, other, other, other, other),
        "decoder_nll": lambda: decoder_nll(levels, x, vector),
        "group_norm_silu": lambda: group_norm_silu(x, 2, channel, channel),
    }


def microseconds(call: Callable[[], object]) -> float:
    """The minimum over some repeats, per call, which excludes interruptions of the host."""
    for _ in range(100):
        call()
    best = float("inf")
    for _ in range(REPEATS):
        start = perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, perf_counter() - start)
    return 1e6 * best / CALLS


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    without_launches()
    plain, recorded = calls(grad=False), calls(grad=True)
    print("host microseconds per eager call without the launch\n")
    print(f"{'operation':<28}{'no gradient':>12}{'recorded':>12}")
    rows = []
    for name in plain:
        row = {"operation": name, "plain": microseconds(plain[name]), "recorded": microseconds(recorded[name])}
        rows.append(row)
        print(f"{name:<28}{row['plain']:>12.1f}{row['recorded']:>12.1f}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
