"""Host time of one eager call of an operation: our part, and Triton's launch. No GPU is needed.

    python benchmarks/host_cost.py [--json PATH]

Kernels are compiled for Hopper and launched through a driver whose launcher does nothing (`no_device`). The rest runs
as on a GPU: checks of arguments, autograd, allocation of results, the choice of the grid, and the search for the
compiled kernel. Our part is measured with every launch replaced by a call that does nothing; Triton's part is the
difference. Not measured: the call of CUDA's own launch, a change of the current device, and the difference between the
device's allocator and the CPU's.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)  # before the first import of a kernel: they are compiled here
os.environ.pop("FASTDIFF_BACKEND", None)

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from time import perf_counter
from unittest import mock

import torch
from fastdiff_kernels import (
    Noise,
    _triton,
    decoder_nll,
    diffuse,
    dropout,
    eps_loss,
    fourier_features,
    gaussian_log_ratio,
    group_norm_silu,
    registration,
    reparameterize,
    sampler_step,
)
from no_device import NoDevice
from report import machine
from triton.runtime.driver import driver

MODULES = (
    "decoder_nll_kernels", "diffuse", "dropout", "eps_loss", "fourier", "fourier_last", "gaussian_log_ratio",
    "group_norm_kernels", "group_norm_gradient", "group_norm_sums", "noise_kernels", "reparameterize",
    "sampler_step_kernels",
)  # fmt: skip
CALLS, REPEATS = 500, 25


class NoLaunch:
    """Replaces a kernel: ``kernel[grid](...)`` does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def on_no_device() -> None:
    """Send CPU tensors to the launchers, without the checks of values, which are made on CPU tensors only."""
    driver.set_active(NoDevice())
    _triton.load()
    registration.backend = lambda: "interpreter"  # the backend whose launchers take CPU tensors
    for name in ("decoder_nll", "sampler_step"):
        import_module(f"fastdiff_kernels.{name}").values_visible = lambda x: False


@contextmanager
def without_launches() -> Iterator[None]:
    """Replace every kernel of the package."""
    with ExitStack() as stack:
        for name in MODULES:
            module = import_module(f"fastdiff_kernels.{name}")
            for attribute in [name for name in vars(module) if name.endswith("_kernel")]:
                stack.enter_context(mock.patch.object(module, attribute, NoLaunch()))
        yield


def calls(grad: bool) -> dict[str, Callable[[], object]]:
    """Operations on tensors of 32 elements, with or without recording for a gradient."""
    x = torch.randn(2, 4, 2, 2, requires_grad=grad)
    other, levels, noise = torch.randn(2, 4, 2, 2), torch.zeros(2, 4, 2, 2, dtype=torch.uint8), Noise(1)
    vector, channel = torch.zeros(2), torch.ones(4)
    row = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    multistep = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    return {
        "diffuse": lambda: diffuse(x, vector, noise),
        "dropout": lambda: dropout(x, 0.3, noise),
        "eps_loss": lambda: eps_loss(x, noise, vector),
        "fourier_features": lambda: fourier_features(x),
        "sampler_step": lambda: sampler_step(x, other, row, noise, keep_x_hat=False),
        "sampler_step, one estimate": lambda: sampler_step(x, other, multistep, history=(other,)),
        "reparameterize": lambda: reparameterize(x, other, noise),
        "gaussian_log_ratio": lambda: gaussian_log_ratio(x, other, other, other, other),
        "decoder_nll": lambda: decoder_nll(levels, x, vector),
        "group_norm_silu": lambda: group_norm_silu(x, 2, channel, channel),
    }


def seconds(call: Callable[[], object]) -> float:
    """The time of `CALLS` calls."""
    start = perf_counter()
    for _ in range(CALLS):
        call()
    return perf_counter() - start


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """Per call with its launch, and without: the minima over some repeats, which exclude interruptions of the host.

    The two are measured in turns, so that a busy machine disturbs both alike.
    """
    whole = ours = float("inf")
    seconds(call)
    for _ in range(REPEATS):
        whole = min(whole, seconds(call))
        with without_launches():
            ours = min(ours, seconds(call))
    return 1e6 * whole / CALLS, 1e6 * ours / CALLS


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    on_no_device()
    cases = {"plain": calls(grad=False), "recorded": calls(grad=True)}
    print("host microseconds per eager call: ours + Triton's = all\n")
    print(f"{'operation':<28}{'no gradient':>20}{'recorded':>20}")
    rows = []
    for name in cases["plain"]:
        row: dict[str, str | float] = {"operation": name}
        columns = ""
        for kind, group in cases.items():
            whole, ours = microseconds(group[name])
            row |= {kind: whole, f"{kind}_launch": whole - ours}
            columns += f"{f'{ours:.1f} + {whole - ours:.1f} = {whole:.1f}':>20}"
        rows.append(row)
        print(f"{name:<28}{columns}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
