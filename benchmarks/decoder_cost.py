"""Time and memory of `decoder_nll` on a CPU, compared with logits for every level and a cross entropy.

    python benchmarks/decoder_cost.py            2^20 elements, forward and backward, one core; 5 GiB, half a minute

The comparison needs 256 floats per element. Each form runs in its own process. Memory is the increase of the peak of
the resident set during the call (Linux).
"""

import math
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import naive
import torch

from fastdiff.kernels import decoder_nll, to_unit_range

ELEMENTS, LEVELS = 1 << 20, 256
LOGVARS = (-13.3, -8.0, 0.0)


def peak_kib() -> int:
    """Peak of the resident set since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def reset_peak() -> None:
    """Reset the peak to the current resident set."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(form: str, logvar: float) -> None:
    """Print seconds and MiB of one form."""
    torch.set_num_threads(1)
    function = decoder_nll if form == "fastdiff" else naive.level_nll
    for elements in (64, ELEMENTS):  # the first warms up
        x = torch.randint(LEVELS, (16, elements // 16), dtype=torch.uint8)
        mean = (to_unit_range(x, LEVELS) + math.exp(0.5 * logvar) * torch.randn(x.shape)).requires_grad_()
        spread = torch.full((16,), logvar, requires_grad=True)
        reset_peak()
        before, start = peak_kib(), perf_counter()
        function(x, mean, spread, LEVELS).sum().backward()
        seconds, mib = perf_counter() - start, (peak_kib() - before) / 1024
    print(f"{form:<10}{logvar:>8}{seconds:>10.3f} s{mib:>10.1f} MiB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], float(sys.argv[2]))
    else:
        print(f"{'form':<10}{'logvar':>8}{'time':>12}{'memory':>14}", flush=True)
        for arguments in [*(("fastdiff", str(value)) for value in LOGVARS), ("eager", str(LOGVARS[0]))]:
            subprocess.run([sys.executable, __file__, *arguments], check=True)
