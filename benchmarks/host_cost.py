"""What one eager call of an operation costs the host beside the launch of its kernel. No GPU is needed.

    python benchmarks/host_cost.py [--json PATH]

The launch itself is replaced by a call that does nothing, and the operations run as they would on a GPU: checks,
dispatcher, autograd, allocation of results, grid. What is left out: the launch, the switch of devices where the data
is not on the current one, and what the device's allocator costs more than the CPU's.
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

MODULES = ("decoder_nll", "diffuse", "eps_loss", "fourier", "gaussian", "group_norm_kernels", "noise", "sampler_step")
CALLS, REPEATS = 1000, 9


class NoLaunch:
    """Stands in for a kernel: ``kernel[grid](...)`` does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def without_launches() -> None:
    """Replace every kernel of the package."""
    for name in MODULES:
        module = import_module(f"fastdiff_kernels.{name}")
        for attribute in list(vars(module)):
            if attribute.endswith("_kernel"):
                setattr(module, attribute, NoLaunch())


def calls(grad: bool) -> dict[str, Callable[[], object]]:
    """Operations on tensors of 32 elements, with or without a gradient to record."""
    x = torch.randn(2, 4, 2, 2, requires_grad=grad)
    other, levels, noise = torch.randn(2, 4, 2, 2), torch.zeros(2, 4, 2, 2, dtype=torch.uint8), Noise(1)
    vector, row, channel = torch.zeros(2), torch.ones(7), torch.ones(4)
    return {
        "diffuse": lambda: diffuse(x, vector, noise),
        "eps_loss": lambda: eps_loss(x, noise, vector),
        "fourier_features": lambda: fourier_features(x),
        "sampler_step": lambda: sampler_step(x, other, row, noise, keep_x_hat=False),
        "reparameterize": lambda: reparameterize(x, other, noise),
        "gaussian_log_ratio": lambda: gaussian_log_ratio(x, other, other, other, other),
        "decoder_nll": lambda: decoder_nll(levels, x, vector),
        "group_norm_silu": lambda: group_norm_silu(x, 2, channel, channel),
    }


def microseconds(call: Callable[[], object]) -> float:
    """The least of some repeats, per call: what interrupts the host is no cost of ours."""
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
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the table as JSON, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    without_launches()
    plain, recorded = calls(grad=False), calls(grad=True)
    print("host microseconds per eager call beside the launch\n")
    print(f"{'operation':<20}{'no gradient':>12}{'recorded':>12}")
    rows = []
    for name in plain:
        row = {"operation": name, "plain": microseconds(plain[name]), "recorded": microseconds(recorded[name])}
        rows.append(row)
        print(f"{name:<20}{row['plain']:>12.1f}{row['recorded']:>12.1f}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
