"""The machine and its cases find every fault of `tests/mutants/mutations.py`, by the check that it names.

`make mutants` also runs the whole of each test without the fault.
"""

import pytest
from mutants.mutations import MUTATIONS, NoPlace, changed
from mutants.run_mutations import caught


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_is_caught(name):
    by, message = caught(MUTATIONS[name])
    assert by == MUTATIONS[name].by, message


def test_there_are_mutations_of_every_operation():
    kernels = " ".join(mutation.kernel for mutation in MUTATIONS.values())
    for part in ("draw", "diffuse", "gamma_gradient", "squared_error", "error_gradient", "fourier", "step_kernel",
                 "step_gradient", "nll", "reparameterize", "log_ratio", "norm_silu", "moments", "norm_apply",
                 "whole_gradient", "norm_gradient", "collect_sums", "add_rows", "noise_sum"):  # fmt: skip
        assert part in kernels
    assert {mutation.by for mutation in MUTATIONS.values()} == {
        "numbers", "Race", "OutOfBounds", "Misaligned", "Uninitialised", "BarrierFault"
    }  # fmt: skip


def test_a_mutation_changes_one_statement():
    ptx = "add.s32 \t%r1, %r2, 4;\nadd.s32 \t%r1, %r1, 4;"
    assert changed(ptx, r"add\.s32 %r1, %r1, (?P<old>4);", "8") == ptx[:-2] + "8;"
    assert changed(ptx, r", (?P<old>4);", "8", -1) == ptx[:-2] + "8;"
    with pytest.raises(NoPlace, match="2 places"):
        changed(ptx, r", (?P<old>4);", "8", 2)
    for pattern, new in ((r"(?P<old>add.*)", ""), (r", (?P<old>4);", "4")):
        with pytest.raises(ValueError, match="one statement"):
            changed(ptx, pattern, new)
