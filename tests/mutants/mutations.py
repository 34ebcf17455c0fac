"""Mutations of PTX: faults of a compiler, or of a kernel, that the tests on the machine must find.

A mutation changes one statement of one kernel's PTX, wherever the kernel runs in one ordinary test of
`tests/machine/test_cases.py`. It is a function from text to text that finds its place by the form of the statement and
of its neighbours, never by the number of a register, so that it survives a renumbering. `run_mutations.py` runs them.

This file imports nothing but the standard library: `run.py` lists the mutations without loading PyTorch.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

NUMBERS = "numbers"  # caught by a comparison, not by a check of the machine


class NoPlace(Exception):
    """A mutation does not find its place in a text of PTX."""


@dataclass(frozen=True)
class Mutation:
    """A fault in the PTX of one kernel, and the test that must find it.

    Args:
        name: that of the function.
        fault: what is wrong.
        kernel: whose PTX is changed.
        change: from the kernel's PTX to that with the fault; raises `NoPlace`.
        by: what must find it: the class of `machine.faults`, or `NUMBERS`. A race that only spoils numbers would say
            that the check for races fails.
        test: function of `test_cases.py`.
        arguments: names and values of that function's arguments; a dtype is given by its name.
    """

    name: str
    fault: str
    kernel: str
    change: Callable[[str], str]
    by: str
    test: str
    arguments: dict[str, object]

    def call(self) -> str:
        """The test as it is written in Python."""
        return f"{self.test}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


MUTATIONS: dict[str, Mutation] = {}


def mutation(
    fault: str, kernel: str, by: str, case: str = "", dtype: str = "float32", *,
    test: str = "test_values_and_gradients", **other: object,
) -> Callable:  # fmt: skip
    """Register a function as a mutation that the values and gradients of a case find, or ``test(**other)``."""

    def registered(change: Callable[[str], str]) -> Callable[[str], str]:
        name = change.__name__.replace("_", "-")
        arguments = {"name": case, "dtype": dtype} if case else other
        MUTATIONS[name] = Mutation(name, fault, kernel, change, by, test, arguments)
        return change

    return registered


def changed(ptx: str, pattern: str, new: str, which: int = 0) -> str:
    """The text with the group ``old`` of one match of a pattern replaced: the ``which``-th, -1 for the last.

    White space in the pattern stands for any white space.

    Raises:
        NoPlace: there are too few matches.
        ValueError: the match is more than one statement, or would not change.
    """
    found = list(re.finditer(pattern.replace(" ", r"\s+"), ptx, re.DOTALL))
    if not -len(found) <= which < len(found):
        raise NoPlace(f"{len(found)} places of {pattern}")
    old, (start, end) = found[which]["old"], found[which].span("old")
    if ";" in old[:-1] or old == new:
        raise ValueError(f"a mutation must change one statement: {old!r} to {new!r}")
    return ptx[:start] + new + ptx[end:]


R = r"%r\d+"  # a register of 32 bits
ADDRESS = r"\[ %rd\d+ \+ "  # of an access that Triton writes, up to the offset
WITHOUT_SHARED = r"(?:(?!shared|bar\.)[^;]*;)*?[^;]*?"  # statements between an access to shared memory and a barrier


# --------------------------------------------------------------------------------------- barriers, warps, shared memory


@mutation("dropped barrier before a read", "squared_error_kernel", "Race", "eps_loss drawn")
def dropped_barrier_before_a_read(ptx: str) -> str:
    return changed(ptx, r"st\.shared\.b32[^;]*;[^;]*?(?P<old>bar\.sync 0;)", "")


@mutation("dropped barrier after a read", "gamma_gradient_kernel", "Race", "diffuse drawn")
def dropped_barrier_after_a_read(ptx: str) -> str:
    return changed(ptx, rf"ld\.shared\.b32 {R}, \[global_smem\];{WITHOUT_SHARED}(?P<old>bar\.sync 0;)", "")


@mutation("wrong lanes of a shuffle", "moments_kernel", NUMBERS, "group_norm_silu in tiles")
def wrong_lanes(ptx: str) -> str:
    return changed(ptx, rf"shfl\.sync\.bfly\.b32 {R}, {R}, (?P<old>16),", "8")


@mutation("wrong mode of a shuffle", "reparameterize_kernel", NUMBERS, "reparameterize drawn")
def wrong_mode_of_a_shuffle(ptx: str) -> str:
    return changed(ptx, rf"shfl\.sync\.(?P<old>bfly)\.b32 {R}, {R}, 16,", "up")


@mutation("member mask without half of the warp", "norm_sums_kernel", "BarrierFault", "group_norm_silu in tiles")
def wrong_members_of_a_shuffle(ptx: str) -> str:
    return changed(ptx, r"shfl\.sync\.bfly\.b32[^;]*, (?P<old>-1);", "65535")


@mutation("wrong address of a read from shared memory", "log_ratio_kernel", NUMBERS, "gaussian_log_ratio")
def wrong_shared_read(ptx: str) -> str:
    return changed(ptx, rf"ld\.shared\.b32 {R}, \[(?P<old>global_smem)\];", "global_smem+4")


@mutation("one address for the sums of two warps", "squared_error_kernel", "Race", "eps_loss")
def wrong_shared_write(ptx: str) -> str:
    return changed(ptx, rf"shr\.u32 {R}, {R}, 3;[^;]*and\.b32 {R}, {R}, (?P<old>4);", "8")


# -------------------------------------------------------------------------------------------- accesses to global memory


@mutation("store shifted by an element", "diffuse_kernel", "OutOfBounds", "diffuse")
def shifted_store(ptx: str) -> str:
    return changed(ptx, rf"st\.global\S* {ADDRESS}(?P<old>0) \]", "4", -1)


@mutation("load of four elements shifted by one", "step_kernel", "Misaligned", "sampler_step guided")
def shifted_vector_load(ptx: str) -> str:
    return changed(ptx, rf"ld\.global\.v4\.b32 \{{[^}}]*\}}, {ADDRESS}(?P<old>0) \]", "4")


@mutation("store of two elements in place of one", "squared_error_kernel", "OutOfBounds", "eps_loss")
def widened_store(ptx: str) -> str:
    value = re.search(rf"st\.global\.b32 \[[^\]]*\], \{{ ({R}) \}};", ptx)
    if value is None:
        raise NoPlace("no store of one element")
    one = r"st\.global\.(?P<old>b32 \[[^\]]*\], \{ %r\d+ \});"
    return changed(ptx, one, f"v2.{value[0][10:-4].replace('{', '{ ' + value[1] + ',')} }}")


@mutation("mask off by one", "step_gradient_kernel", "OutOfBounds", "sampler_step plain", "bfloat16")
def mask_off_by_one(ptx: str) -> str:
    return changed(ptx, r"setp\.(?P<old>lt)\.s32", "le", -1)


@mutation("load without its mask", "nll_kernel", "OutOfBounds", "decoder_nll", "bfloat16")
def load_without_mask(ptx: str) -> str:
    return changed(ptx, r"(?P<old>@%p\d+ )ld\.global", "", -1)


@mutation("store without its mask", "step_kernel", "OutOfBounds", "sampler_step drawn", "bfloat16")
def store_without_mask(ptx: str) -> str:
    return changed(ptx, r"(?P<old>@%p\d+ )st\.global", "", -1)


@mutation("size of an element halved in an address", "error_gradient_kernel", NUMBERS, "eps_loss drawn")
def wrong_width_of_an_element(ptx: str) -> str:
    return changed(ptx, r"shl\.b64 %rd\d+, %rd\d+, (?P<old>2);", "1")


# ----------------------------------------------------------------------------------------------------------- arithmetic


@mutation("bfloat16 truncated", "diffuse_kernel", NUMBERS, "diffuse", "bfloat16")
def truncated_bfloat16(ptx: str) -> str:
    return changed(ptx, r"cvt\.(?P<old>rn)\.bf16(?:x2)?\.f32", "rz")


@mutation("fma rounded towards zero", "draw_kernel", NUMBERS, test="test_normals_keep_their_contract", how={})
def truncated_fma(ptx: str) -> str:
    return changed(ptx, rf"fma\.(?P<old>rn)\.f32 {R}, {R}, 0f2F800000, 0f2F000000;", "rz")


@mutation("coefficient wrong in its last digit", "fourier_kernel", NUMBERS, "fourier_features")
def coefficient_in_its_last_digit(ptx: str) -> str:
    """6.283231 in place of 6.283185, the first coefficient of sin(2 pi x)."""
    return changed(ptx, r"(?P<old>0f40C90FDA);", "0f40C9103A")


@mutation("swapped operands of a difference", "log_ratio_gradient_kernel", NUMBERS, "gaussian_log_ratio")
def swapped_difference(ptx: str) -> str:
    operands = re.search(rf"sub\.f32\s+{R}, ({R}), ({R});", ptx)
    if operands is None:
        raise NoPlace("no difference of registers")
    return changed(ptx, rf"sub\.f32 {R}, (?P<old>{R}, {R});", f"{operands[2]}, {operands[1]}")


@mutation("swapped operands of a quotient", "collect_sums_kernel", NUMBERS, "group_norm_silu in tiles")
def swapped_quotient(ptx: str) -> str:
    operands = re.search(rf"div\.full\.f32\s+{R}, ({R}), ({R});", ptx)
    if operands is None:
        raise NoPlace("no quotient of registers")
    return changed(ptx, rf"div\.full\.f32 {R}, (?P<old>{R}, {R});", f"{operands[2]}, {operands[1]}")


@mutation("swapped operands of a choice", "norm_silu_kernel", NUMBERS, "group_norm_silu, whole groups")
def swapped_choice(ptx: str) -> str:
    value = re.search(rf"selp\.f32\s+{R}, ({R}), 0f00000000", ptx)
    if value is None:
        raise NoPlace("no choice between a value and 0")
    return changed(ptx, rf"selp\.f32 {R}, (?P<old>{R}, 0f00000000)", f"0f00000000, {value[1]}")


@mutation("e to the power of x becomes 2 to the power of x", "norm_apply_kernel", NUMBERS, "group_norm_silu in tiles")
def wrong_base_of_an_exponential(ptx: str) -> str:
    return changed(ptx, rf"mul\.f32 {R}, {R}, (?P<old>0fBFB8AA3B);", "0fBF800000")


@mutation("maximum in place of a minimum of counts", "merge_moments_kernel", NUMBERS, "group_norm_silu in tiles")
def wrong_count_of_a_chunk(ptx: str) -> str:
    return changed(ptx, r"(?P<old>min)\.s32", "max")


@mutation("minimum in place of a maximum in a clamp", "step_kernel", NUMBERS, "sampler_step clipped", "float16")
def wrong_clamp(ptx: str) -> str:
    return changed(ptx, r"(?P<old>max)\.NaN\.f32", "min")


@mutation("bfloat16 read as float16", "norm_gradient_kernel", NUMBERS, "group_norm_silu in tiles", "bfloat16")
def wrong_type(ptx: str) -> str:
    return changed(ptx, r"cvt\.f32\.(?P<old>bf16)", "f16")


@mutation("dropped instruction", "whole_gradient_kernel", "Uninitialised", "group_norm_silu, whole groups")
def dropped_instruction(ptx: str) -> str:
    return changed(ptx, r"(?P<old>fma\.rn\.f32[^;]*;)", "")


# --------------------------------------------------------------------------------------------------- noise and branches


@mutation("wrong constant of Philox", "draw_kernel", NUMBERS, "draw")
def wrong_constant_of_philox(ptx: str) -> str:
    return changed(ptx, r"(?P<old>-845247145);", "-845247146")


@mutation("every second node of a sum", "noise_sum_kernel", NUMBERS, "draw, a sum of three")
def wrong_stride_of_nodes(ptx: str) -> str:
    return changed(ptx, r"add\.s64 (%rd\d+), \1, (?P<old>8);", "16")


@mutation("wrong shift in Philox", "diffuse_kernel", NUMBERS, "diffuse drawn", "bfloat16")
def wrong_shift_in_philox(ptx: str) -> str:
    return changed(ptx, r"shr\.u64 %rd\d+, %rd\d+, (?P<old>32);", "31")


@mutation("signed product in Philox", "step_kernel", NUMBERS, "sampler_step drawn")
def signed_product_in_philox(ptx: str) -> str:
    return changed(ptx, rf"mul\.wide\.(?P<old>u32) %rd\d+, {R}, -\d+;", "s32")


@mutation("random word taken as signed", "reparameterize_gradient_kernel", NUMBERS, "reparameterize drawn")
def signed_random_word(ptx: str) -> str:
    return changed(ptx, r"cvt\.rn\.f32\.(?P<old>u32)", "s32")


@mutation("inverted branch", "nll_kernel", NUMBERS, "decoder_nll, logvar like mean")
def inverted_branch(ptx: str) -> str:
    return changed(ptx, r"@(?P<old>)%p\d+ bra", "!")


@mutation(
    "rows left out of a loop", "add_rows_kernel", NUMBERS,
    test="test_sums_in_several_turns", name="group_norm_silu, modulated", shape=(70, 32, 2, 2),
)  # fmt: skip
def wrong_step_of_a_loop(ptx: str) -> str:
    """The step of a loop becomes twice its own: every second block of rows."""
    step = re.search(rf"add\.s32\s+({R}), \1, (\d+);", ptx)
    if step is None:
        raise NoPlace("no counter of a loop")
    return changed(ptx, rf"add\.s32 (?P<counter>{R}), (?P=counter), (?P<old>{step[2]});", str(2 * int(step[2])))
