"""Every operation on the machine against float64, within the tolerances that are meant for a GPU.

The sizes, alignments and tolerances are those of `benchmarks/test_correctness.py`, and the cases those of `cases.py`.
Approximate instructions run exactly, and at the bounds of the PTX ISA upwards, downwards and by chance.
"""

import math

import pytest
import torch
from cases import DTYPES, EVERY_CASE, Case, run
from fastdiff_kernels import Noise, Stream, use_backend
from fastdiff_kernels.launch import WARPS, grid_of
from fastdiff_kernels.noise_kernels import draw_kernel
from machine.approximate import MODES
from machine.backend import on_machine
from machine.driver import settings
from test_correctness import FAST_RMS, NORMAL_ERROR, PLACES, SHAPES, placed, tolerance
from torch import Tensor

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = ((3, 2, 5, 7), (2, 1, 1, 1031))  # one block, and several
HOW = [{"mode": mode, "seed": 1} for mode in MODES]
# Group norm is compiled anew for every number of channels: these combine its arguments at all sizes, others at `SMALL`.
WIDEST = {f"group_norm_silu{what}" for what in (", whole groups", ", everything", " in tiles", " in tiles, everything")}


def evaluated(case: Case, tensors: list[Tensor], backend: str) -> list[tuple[Tensor, bool]]:
    """Values and gradients, each with whether it is a gradient."""
    function = case.exact if backend == "torch" else case.ours
    with use_backend(backend):
        if not case.differentiable:
            return [(function(*tensors), False)]
        values, gradients = run(function, tensors, case.differentiable)
    return [(x, False) for x in values] + [(x, True) for x in gradients]


def exact(case: Case, tensors: list[Tensor]) -> list[tuple[Tensor, bool]]:
    """In float64; noise is drawn by the reference."""
    return evaluated(case, [t.double() if t.is_floating_point() else t for t in tensors], "torch")


def check(name: str, dtype: torch.dtype, tensors: list[Tensor], expected, alignment: str, what: str) -> None:
    """Errors relative to the largest entry are within the tolerance for a GPU."""
    found = evaluated(EVERY_CASE[name], [placed(t, CPU, alignment) for t in tensors], "interpreter")
    noisy = f"{name}, drawn" if name.startswith("draw") else name  # its error counts as that of drawn noise
    for (ours, is_gradient), (right, _) in zip(found, expected, strict=True):
        assert ours.shape == right.shape
        if not right.numel():
            continue
        scale = max(1.0, float(right.abs().max()))
        error = float((ours.double() - right).abs().max())
        allowed = tolerance(noisy, dtype if is_gradient else ours.dtype, dtype, GPU)
        assert error <= allowed * scale, f"{name} {what}: error {error / scale:.3g}, allowed {allowed:.3g}"
        if ours.dtype != torch.float32 and not is_gradient and not rounds_twice(name):
            beyond = float(((ours.double() - right).abs() - half_unit(right, ours.dtype)).max())
            allowed = tolerance(noisy, torch.float32, dtype, GPU)
            assert beyond <= allowed * scale, f"{name} {what}: not rounded to nearest, by {beyond / scale:.3g}"


def half_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance of neighbouring numbers of a dtype at x: the largest error of rounding to nearest.

    The results of the kernels exceed it by 2.1e-6 of the largest entry at most where noise is drawn, else by 2e-7.
    """
    smallest = torch.finfo(dtype).smallest_normal
    return 0.5 * torch.finfo(dtype).eps * torch.exp2((torch.frexp(x.abs().clamp(min=smallest))[1] - 1).double())


def rounds_twice(name: str) -> bool:
    """Whether a value is computed from one that was rounded: y from the total of x and a residual."""
    return "residual" in name or "everything" in name


def is_part(name: str) -> bool:
    """Whether a case uses some of the arguments of group norm that a case in `WIDEST` uses too."""
    return name.startswith("group_norm_silu") and name not in WIDEST


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EVERY_CASE)
def test_values_and_gradients(name, dtype):
    """At sizes from no block to several blocks, aligned and not; `SMALL` sizes in every mode that can matter."""
    case = EVERY_CASE[name]
    for shape in SMALL if is_part(name) else SHAPES:
        tensors = case.make(shape, dtype)
        expected = exact(case, tensors)
        for alignment in PLACES[:2]:
            if alignment == "misaligned" and shape == SHAPES[4]:
                continue  # compiles to the same code as SHAPES[3], but for the number of blocks
            with settings() as exactly:
                check(name, dtype, tensors, expected, alignment, f"{shape} {alignment}")
            if not exactly.approximation.used or shape not in SMALL or alignment == "misaligned":
                continue
            for how in HOW[1:]:
                with settings(**how):
                    check(name, dtype, tensors, expected, alignment, f"{shape} {how}")


@pytest.mark.brief
@pytest.mark.parametrize("name", EVERY_CASE)
def test_a_small_size(name):
    """The subset that the default suite runs: float32 aligned, bfloat16 misaligned, one mode each."""
    for dtype, alignment, mode in ((torch.float32, "aligned", "up"), (torch.bfloat16, "misaligned", "exact")):
        tensors = EVERY_CASE[name].make(SMALL[0], dtype)
        with settings(mode=mode):
            check(name, dtype, tensors, exact(EVERY_CASE[name], tensors), alignment, f"{alignment} {mode}")


@pytest.mark.parametrize(("arch", "dtype"), [(80, torch.bfloat16), (100, torch.float32)], ids=str)
@pytest.mark.parametrize("name", [name for name in EVERY_CASE if not is_part(name)])
def test_other_architectures(name, arch, dtype):
    tensors = EVERY_CASE[name].make(SHAPES[2], dtype)
    expected = exact(EVERY_CASE[name], tensors)
    with on_machine(arch):
        check(name, dtype, tensors, expected, "aligned", f"sm_{arch}")


@pytest.mark.parametrize("name", EVERY_CASE)
def test_two_runs_are_bit_identical(name):
    """Also where several threads of a warp store copies of a sum to one word: whichever of them is kept."""
    tensors = EVERY_CASE[name].make(SHAPES[2], torch.float32)
    runs = []
    for winner in ("last", "last", "first"):
        with settings(winner=winner):
            runs.append(evaluated(EVERY_CASE[name], tensors, "interpreter"))
    for results in zip(*runs, strict=True):
        assert all(torch.equal(results[0][0], result) for result, _ in results[1:])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("group_norm_silu, modulated", (70, 32, 2, 2)), ("group_norm_silu in tiles", (1, 129, 64, 64))],
)
def test_sums_in_several_turns(name, shape):
    """More samples, chunks and channels of a group than the loops of the sums add up in one turn."""
    tensors = EVERY_CASE[name].make(shape, torch.float32)
    check(name, torch.float32, tensors, exact(EVERY_CASE[name], tensors), "aligned", str(shape))


@pytest.mark.parametrize("how", HOW, ids=str)
def test_normals_keep_their_contract(how):
    """float32 normals within 4e-6; those for 16-bit results, written in float32, within 1e-5 root mean square."""
    noise, shape = Noise(2**63 + 11, step=7, first_sample=5, stream=Stream.SAMPLER), (7, 3, 60, 68)
    with settings(**how), use_backend("interpreter"):
        uniform, normal = noise.uniform(shape), noise.normal(shape)
        fast = torch.empty(shape)
        programs, n, blocks, block = grid_of(fast)
        draw_kernel[(programs,)](noise.key, fast, n, blocks, NORMAL=True, FAST=True, BLOCK=block, num_warps=WARPS)
    assert torch.equal(uniform, noise.uniform(shape))  # of the reference, as the contract wants them bit for bit
    right = box_muller(uniform.flatten(1))
    assert (normal.flatten(1).double() - right).abs().max() <= NORMAL_ERROR
    assert (fast.flatten(1).double() - right).square().mean().sqrt() <= FAST_RMS


def box_muller(uniform: Tensor) -> Tensor:
    """Normals [B, n] in float64 from the uniforms, n a multiple of 4."""
    pairs = uniform.double().view(len(uniform), -1, 2)
    radius, angle = (-2.0 * pairs[..., 0].log()).sqrt(), 2.0 * math.pi * pairs[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)


def test_masks_of_the_last_block():
    """An error of one in the number of elements leaves the tensor, and the machine says whose."""
    from fastdiff_kernels.diffuse import diffuse_kernel
    from machine.faults import OutOfBounds

    x, z, gamma = torch.randn(2, 1031), torch.empty(2, 1031), torch.zeros(2)
    programs, n, blocks, block = grid_of(x)
    with pytest.raises(
        OutOfBounds, match=r"diffuse_kernel, line \d+: .*argument (x|noise|z)_ptr of 8248 bytes; program"
    ):
        diffuse_kernel[(programs,)](
            x, gamma, x, z, n + 1, blocks, DRAWN=False, FAST=False, C=1, BLOCK=block, num_warps=WARPS
        )


class Opcodes:
    """Records the instructions that run."""

    def __init__(self):
        self.seen = set()

    def launch(self, name, grid, threads, arguments):
        self.seen = set()

    def instruction(self, chunk, step, group, active):
        self.seen.add(step.opcode)

    def access(self, chunk, step, addresses, lanes):
        pass


def test_data_of_16_bits_draw_with_approximate_instructions():
    """As on a GPU, and float32 data do not."""
    opcodes = Opcodes()
    for dtype, approximate in ((torch.bfloat16, True), (torch.float32, False)):
        with settings(observer=opcodes), use_backend("interpreter"):
            Noise(1).normal((2, 8), dtype)
        assert ("sin.approx.ftz.f32" in opcodes.seen) == approximate
        assert "fma.rn.f32" in opcodes.seen
