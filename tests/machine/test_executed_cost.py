"""The counts of `benchmarks/executed_cost.py`, where they can be calculated."""

import json
import math
from dataclasses import replace

import executed_cost
import pytest
from executed_runs import RUNS
from fastdiff_kernels.launch import BLOCK

SMALL = (2, 3, 32, 32)
ELEMENTS = math.prod(SMALL)


def costs(operation, data, dtype="float32", arch=90):
    (run,) = (run for run in RUNS if (run.operation, run.data) == (operation, data))
    return {cost.kernel: cost for cost in executed_cost.count(replace(run, shape=SMALL), dtype, arch)}


def levels_summed(logvar):
    """Levels within the distance j of the nearest one for which half of q j (j - 1) stays below 20."""
    q = math.exp(-logvar) * (2 / 256) ** 2
    return 2 * math.floor(math.sqrt(0.25 + 40 / q) + 0.5) + 1


def test_the_loop_of_decoder_nll():
    """It runs once for each level of the window: 3 of them at a log-variance of -13.3, and 31 at -8."""
    narrow, wide = (costs("decoder_nll", f"logvar {logvar}") for logvar in (-13.3, -8.0))
    more = levels_summed(-8.0) - levels_summed(-13.3)
    assert more == 31 - 3
    for kernel, per_level in (("nll_kernel", 7), ("nll_gradient_kernel", 9)):
        few, many = narrow[kernel], wide[kernel]
        assert many.parts["special"] - few.parts["special"] == more  # one exponential per level
        assert (many.machine_code, many.static) == (few.machine_code, few.static)
        further = (many.executed - few.executed) / more
        assert per_level < further < per_level + 1  # what the 16 elements of a thread share is a fraction


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_bytes_of_forward_and_backward(dtype, width):
    """fourier_features reads z and writes 5 channels for each; backward reads z and 5 gradients, and writes one."""
    found = costs("fourier_features", "2 frequencies", dtype)
    for kernel, moved in (("fourier_kernel", 6), ("fourier_gradient_kernel", 7)):
        assert found[kernel].bytes == moved * width
        assert 32 * found[kernel].needed == moved * width


@pytest.mark.parametrize("arch", [80, 100])
def test_without_a_loop_each_instruction_runs_once(arch):
    """On other architectures too, with the machine code of their own assembler."""
    (cost,) = costs("sampler_step", "ancestral", arch=arch).values()
    assert cost.executed == cost.static
    assert 30 < cost.machine_code < 50
    assert cost.conflicts == cost.passes == 0
    assert cost.launches == 1
    assert ELEMENTS % BLOCK == 0  # no thread is idle


@pytest.mark.brief
def test_the_table_and_the_file(tmp_path):
    found = [*costs("diffuse", "noise given").values()]
    lines = executed_cost.table(found).splitlines()
    assert [line.split()[-1] for line in lines] == ["used", "1.00", "1.00"]
    executed_cost.write_json(found, 90, tmp_path / "costs.json")
    content = json.loads((tmp_path / "costs.json").read_text())
    assert content["target"] == "sm_90"
    assert [row["kernel"] for row in content["rows"]] == ["diffuse_kernel", "gamma_gradient_kernel"]
    assert content["rows"][0]["arguments"]["load x_ptr"] == [0.125, 0.125, 4.0]
