"""Every kernel compiles to machine code without a GPU, and stays within its budget.

In a subprocess, since the interpreter and the compiler cannot share a process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lengths import usually

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks/static_cost.py"
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}

# Machine instructions per element on sm_90 at most, slightly above the measured numbers. On an H200 arithmetic and
# memory take the same time at 62 instructions per 8 bytes.
BUDGETS = {
    ("diffuse", "noise drawn", "float32"): 50,
    ("diffuse", "noise drawn", "bfloat16"): 34,
    ("fourier_features", "2 frequencies", "float32"): 30,
    ("fourier_features", "2 frequencies", "bfloat16"): 30,
    ("dropout", "contiguous", "float32"): 12,
    ("dropout", "contiguous", "bfloat16"): 14,
    ("dropout", "channels last", "float32"): 13,
    ("dropout", "channels last", "bfloat16"): 15,
    ("eps_loss", "noise drawn", "float32"): 50,
    ("eps_loss", "noise drawn", "bfloat16"): 34,
    ("eps_loss", "gradient, drawn", "float32"): 50,
    ("eps_loss", "gradient, drawn", "bfloat16"): 34,
    ("diffuse", "noise drawn in 16 bits, many programs", "bfloat16"): 26,
    ("eps_loss", "noise drawn in 16 bits, many programs", "bfloat16"): 26,
    ("eps_loss", "gradient, drawn in 16 bits, many programs", "bfloat16"): 25,
    ("sampler_step", "ancestral in 16 bits, many programs", "bfloat16"): 31,
    ("diffuse", "noise drawn, 3 channels last", "float32"): 50,
    ("diffuse", "noise drawn, 3 channels last", "bfloat16"): 34,
    ("eps_loss", "noise drawn, 3 channels last", "float32"): 50,
    ("eps_loss", "noise drawn, 3 channels last", "bfloat16"): 34,
    ("sampler_step", "ancestral, 3 channels last", "float32"): 50,
    ("sampler_step", "ancestral, 3 channels last", "bfloat16"): 34,
    ("fourier_features", "2 frequencies, 3 channels last", "float32"): 115,
    ("fourier_features", "2 frequencies, 3 channels last", "bfloat16"): 118,
    ("sampler_step", "ancestral", "float32"): 50,
    ("sampler_step", "ancestral", "bfloat16"): 34,
    ("sampler_step", "multistep", "float32"): 16,
    ("sampler_step", "multistep", "bfloat16"): 20,
    ("reparameterize", "noise drawn", "float32"): 56,
    ("reparameterize", "noise drawn", "bfloat16"): 47,
    ("gaussian_log_ratio", "", "float32"): 26,
    ("gaussian_log_ratio", "", "bfloat16"): 32,
    ("group_norm_silu", "whole groups", "float32"): 22,
    ("group_norm_silu", "whole groups of 16 bits", "bfloat16"): 22,
    ("group_norm_silu", "whole groups, pre_shift", "float32"): 23,
    ("group_norm_silu", "whole groups, residual", "float32"): 23,
    ("group_norm_silu", "whole groups, residual", "bfloat16"): 28,
    ("group_norm_silu", "whole groups, skip", "float32"): 22,
    ("group_norm_silu", "whole groups, skip", "bfloat16"): 28,
    ("group_norm_silu", "moments", "float32"): 11,
    ("group_norm_silu", "apply", "float32"): 16,
    ("group_norm_silu", "gradient, whole groups", "float32"): 31,
    ("group_norm_silu", "gradient, whole groups of 16 bits", "bfloat16"): 42,
    ("group_norm_silu", "gradient, whole groups, pre_shift", "float32"): 35,
    ("group_norm_silu", "gradient, whole groups, residual", "float32"): 31,
    ("group_norm_silu", "gradient, whole groups, residual", "bfloat16"): 40,
    ("group_norm_silu", "gradient, whole groups, skip", "float32"): 33,
    ("group_norm_silu", "gradient, whole groups, skip", "bfloat16"): 42,
    ("group_norm_silu", "sums of the gradient", "float32"): 26,
    ("group_norm_silu", "sums of the gradient, 16 bits", "bfloat16"): 32,
    ("group_norm_silu", "gradient", "float32"): 24,
    ("group_norm_silu", "gradient", "bfloat16"): 29,
}


def costs_of_all(path: Path, number: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROGRAM), number, "--cached", "--json", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())["rows"]


def faults(cost: dict) -> Iterator[str]:
    """What is wrong with the machine code of one kernel on one target."""
    if cost["spills"] or cost["stack"]:
        yield f"{cost['spills']} spills, {cost['stack']} bytes of stack"
    if (
        not cost["aside"] and not cost["scalar"]
    ):  # aligned data move 128 bits at a time, but for results of one number per program
        # the tiles of channels-last data have half an access for each thread where a warp has 64 of them
        widest = 64 if cost["target"] == "gfx942" and "channels last" in cost["variant"] else 128
        if cost["store"] < widest and not cost["reduces"]:
            yield f"stores of {cost['store']} bits"
        if cost["load"] < widest and cost["kernel"] not in ("draw", "noise_sum"):
            yield f"loads of {cost['load']} bits"
    if cost["variant"] == "everything" and cost["target"].startswith("sm_") and not cost["keeps_nan"]:
        yield "the clip does not keep NaN, which would hide that a network has diverged"
    if "many programs" in cost["variant"] and cost["target"] == "sm_90" and cost["registers"] > 64:
        yield f"{cost['registers']} registers, of which 64 keep half of the warps of a multiprocessor"
    budget = BUDGETS.get((cost["kernel"], cost["variant"], cost["dtype"]))
    if budget is not None and cost["target"] == "sm_90" and cost["instructions"] > budget:
        yield f"{cost['instructions']} instructions per element, budget {budget}"


@pytest.mark.parametrize("number", usually(["--sample"], ["--sample", "--brief"]))
def test_machine_code(tmp_path, number):
    """One test, so that the kernels are compiled by one process of a parallel run."""
    costs = costs_of_all(tmp_path / "costs.json", number)
    assert {cost["target"] for cost in costs} == TARGETS
    measured = {(c["kernel"], c["variant"], c["dtype"]) for c in costs if c["target"] == "sm_90"}
    assert set(BUDGETS) <= measured if number == "--brief" else set(BUDGETS) & measured
    names = ("kernel", "variant", "dtype", "target")
    found = [", ".join([*(cost[name] for name in names), fault]) for cost in costs for fault in faults(cost)]
    assert not found, "\n".join(found)


def test_every_kernel_is_measured():
    """Each function that ends in _kernel appears in the table."""
    root = PROGRAM.parents[1]
    table = (root / "benchmarks/kernel_variants.py").read_text()
    names = {
        line.removeprefix("def ").partition("(")[0]
        for path in (root / "kernels/fastdiff_kernels").glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.partition("(")[0].endswith("_kernel")
    }
    assert names
    assert not {name for name in names if f".{name}," not in table}
