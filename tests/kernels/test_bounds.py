"""The guard of `guards.py` itself, and that no kernel's offsets overflow.

That kernels stay inside their arguments and write every output once is checked for every example of `test_properties`.
Everything in `EVERY_CASE` is covered, and a test fails for a kernel that no case launches: add a case, in `MORE_CASES`
if it does not belong in `CASES`. A module whose programs are not blocks of samples needs an entry in `FAR`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import fastdiff_kernels
import numpy as np
import pytest
import torch
from cases import EVERY_CASE, LAST, TABLE, evaluate, normal
from fastdiff_kernels import sampler_step, use_backend
from fastdiff_kernels._triton import constexpr, jit, tl
from fastdiff_kernels.launch import BLOCK
from guards import LAYOUTS, MARGIN, Launch, guarded, poisoned, surrounded
from lengths import usually

# ------------------------------------------------------------------------------------------------ what is covered


def kernels() -> dict[str, Callable]:
    """Every jitted function of the package whose name ends in _kernel, as module.function."""
    found = {}
    for info in pkgutil.iter_modules(fastdiff_kernels.__path__):
        module = importlib.import_module(f"fastdiff_kernels.{info.name}")
        for name, value in vars(module).items():
            if name.endswith("_kernel") and getattr(value, "fn", value).__module__ == module.__name__:
                found[f"{info.name}.{name}"] = value
    return found


# ------------------------------------------------------------------------------------------------ the guard itself


@jit
def shifted_kernel(x_ptr, out_ptr, n, read, write, BLOCK: constexpr):
    """Copy n elements, reading and writing at shifted places."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i + read, mask=i < n, other=0.0)
    tl.store(out_ptr + i + write, x, mask=i < n)


@jit
def narrow_kernel(x_ptr, out_ptr, n, BLOCK: constexpr):
    """One sample per program, with its base offset in 32 bits."""
    i = tl.program_id(0) * n + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i))


def shift(x, out, read=0, write=0, n=20, block=16, programs=2):
    with guarded() as guard:
        shifted_kernel[(programs,)](x, out, n, read, write, BLOCK=block)
    return guard.launches[0]


@pytest.mark.parametrize(
    ("read", "write", "message"),
    [
        (1, 0, r"shifted_kernel: read of 4 bytes at byte 80 of x_ptr, torch.float32 \(20,\) of bytes 0 to 80.*\(1, 0"),
        (-1, 0, "read of 4 bytes at byte -4 of x_ptr"),
        (0, 1, "write of 2 bytes at byte 40 of out_ptr"),
        (0, -1, "write of 2 bytes at byte -2 of out_ptr"),
        (1 << 20, 0, "read of 4 bytes at byte 4194304 of x_ptr"),
    ],
)
def test_the_guard_catches_one_element_too_many(read, write, message):
    memory = torch.arange(100.0)  # the neighbours are in the same storage, but not in the arguments
    out = torch.zeros(100, dtype=torch.bfloat16)
    with pytest.raises(AssertionError, match=message):
        shift(memory[40:60], out[40:60], read, write)
    assert not out[:40].any() and not out[60:].any()  # noqa: PT018


def test_the_guard_allows_correct_accesses():
    """Values arrive, the masked tail is counted and not accessed, and everything is restored afterwards."""
    x, out = torch.arange(20.0), torch.zeros(20)
    launch = shift(x, out)
    assert torch.equal(out, x)
    launch.assert_written_once()
    assert launch.grid == (2, 1, 1)
    assert launch.regions["x_ptr"].spared == launch.regions["out_ptr"].spared == 12
    assert launch.regions["x_ptr"].reads.tolist() == [1] * 80
    memory = torch.zeros(21)
    shifted_kernel[(2,)](x, memory[:20], 20, 0, 1, BLOCK=16)  # no guard any more
    assert torch.equal(memory[1:], x)


def test_the_guard_knows_the_gaps_of_a_view():
    memory = torch.zeros(8, 4)
    with pytest.raises(AssertionError, match="read of 4 bytes at byte 8 of x_ptr"):
        shift(memory[:, :2], torch.zeros(20))


@pytest.mark.parametrize(("n", "write", "programs", "times"), [(10, 0, 1, 0), (20, 2, 2, 0)])
def test_the_guard_counts_what_was_written(n, write, programs, times):
    launch = shift(torch.zeros(30), torch.zeros(30), write=write, n=n, programs=programs)
    with pytest.raises(AssertionError, match=rf"element \[\d+\] of out_ptr.* was written {times} times"):
        launch.assert_written_once()


def test_the_guard_counts_what_was_written_twice():
    with guarded() as guard:
        narrow_kernel[(2,)](torch.zeros(40), torch.zeros(24), 8, BLOCK=16)
    with pytest.raises(AssertionError, match=r"element \[8\] of out_ptr.* was written 2 times"):
        guard.launches[0].assert_written_once()


def test_allocations_are_poisoned():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with poisoned():
            like = torch.zeros(3, 4, dtype=dtype)
            fresh = [torch.empty(5, dtype=dtype), torch.empty_like(like), like.new_empty(7)]
        assert all(bool(value.isnan().all()) for value in fresh)


def test_surrounded_values_are_the_same_and_nan_is_next_to_them():
    for shape in ((3, 2, 5, 4), (3, 7), (5,), (0, 3, 2, 2), (2, 3, 0, 1)):
        x = normal(shape, torch.float32)
        for layout in LAYOUTS:
            view = surrounded(x, layout)
            first = x[(slice(1),) * x.dim()].expand(shape)
            same = {"expanded": x[:1].expand(shape), "constant": first}
            assert torch.equal(view, same.get(layout, x))
            memory = view.as_strided((view.untyped_storage().nbytes() // 4,), (1,), 0)
            held = int((~memory.isnan()).sum())
            assert held == x.numel() or layout in same
            assert memory[:MARGIN].isnan().all()
            assert memory[-MARGIN:].isnan().all()


@pytest.mark.parametrize("step", [-1, 3, 2**62])
def test_no_step_reads_outside_its_table(step):
    z_t, eps_hat = normal((2, 5), torch.float32), normal((2, 5), torch.float32, 1)
    with use_backend("interpreter"), guarded():
        sampler_step(z_t, eps_hat, TABLE, step=torch.tensor([step]))


# ----------------------------------------------------------------------------------------------- offsets beyond 32 bits

FAR_SHAPE = (1, 2, 21, 53)  # a sample of 3 blocks; the last is not full
MORE_FAR_SHAPES = {
    "group_norm_silu in tiles": [(1, 2226)],  # one pixel: as many partial sums as elements
    **{f"{name}, channels last": [(1, 3, 25, 24)] for name in LAST if "drawn" in name},  # 3 blocks of pixels
    "dropout, channels last": [(1, 48, 16, 16)],  # calls of Philox that give 16 pixels, several blocks of channels
}


@dataclass(frozen=True)
class Far:
    """A program whose offsets exceed 2³¹: from ``start``, each jump by some programs is repeated a number of times."""

    start: tuple[int, int, int]
    jumps: tuple[tuple[tuple[int, int, int], int], ...]
    arguments: dict = field(default_factory=dict)  # that replace those of the launch


def distant_samples(launch: Launch) -> list[Far]:
    """The first and last program of a sample beyond element 2³¹ and of one beyond 2³³; samples are outermost.

    The largest tensor may hold two numbers per element, hence 2³² and 2³⁴.
    """
    programs = launch.grid[0]
    n = max(region.tensor.numel() for region in launch.regions.values())
    distant = (2**32 // n + 1, 2**34 // n + 1)
    distant = [sample for sample in distant if programs * (sample + 1) < 2**31]  # no grid is larger
    return [Far((p, 0, 0), (((programs, 0, 0), sample),)) for sample in distant for p in {0, programs - 1}]


def distant_blocks(launch: Launch) -> list[Far]:
    """Distant samples, and the last block of the third sample if each has as many elements as a launcher accepts."""
    n, channels = 2**31 - BLOCK - 1, launch.arguments.get("C", 1)
    if channels > 1:  # blocks of pixels, and pixels that are a multiple of any access
        n = (2**31 - 2**16 - 1) // (8 * channels) * 8 * channels
    blocks = -(-n // (channels * launch.arguments["BLOCK"]))
    last = Far((0, 0, 0), (((blocks, 0, 0), 2), ((1, 0, 0), blocks - 1)), {"n": n, "blocks": blocks})
    return [*distant_samples(launch), last]


def distant_channels(launch: Launch) -> list[Far]:
    """A grid of blocks, channels and samples: the last of each, for as many features as the launcher accepts."""
    arguments = launch.arguments
    n = (2**31 - BLOCK - 1) // (arguments["channels"] * (1 + 2 * arguments["FEATURES"]))
    blocks = -(-n // arguments["BLOCK"])
    jumps = (((0, 0, 1), 65534), ((0, 1, 0), arguments["channels"] - 1), ((1, 0, 0), blocks - 1))
    return [Far((0, 0, 0), jumps, {"n": n})]


def distant_pixels(launch: Launch) -> list[Far]:
    """Distant samples, and the last block of the third sample with as many features as the launcher accepts."""
    arguments = launch.arguments
    channels, features = arguments["C"], 1 + 2 * arguments["FEATURES"]
    pixels = (2**31 - 2**16 - 1) // (channels * features)
    n = pixels if launch.kernel.endswith("last_kernel") else channels * pixels
    blocks = -(-n // arguments["BLOCK"])
    last = Far((0, 0, 0), (((blocks, 0, 0), 2), ((1, 0, 0), blocks - 1)), {"n": n, "blocks": blocks})
    return [*distant_samples(launch), last]


def distant_tiles(launch: Launch) -> list[Far]:
    """Distant samples, and for programs of pixels and channels the last tile of the third sample of nearly 2³¹."""
    arguments = launch.arguments
    if not {"pixels", "chunks", "BLOCK_P", "BLOCK_C"} <= set(arguments):
        return distant_samples(launch)
    pixels, blocks = (2**31 - BLOCK - 1) // arguments["C"], -(-arguments["C"] // arguments["BLOCK_C"])
    chunks = -(-pixels // arguments["BLOCK_P"])
    jumps = (((blocks * chunks, 0, 0), 2), ((blocks, 0, 0), chunks - 1), ((1, 0, 0), blocks - 1))
    large = {"pixels": pixels, "chunks": chunks}
    return [*distant_samples(launch), Far((0, 0, 0), jumps, large)]


def distant_groups(launch: Launch) -> list[Far]:
    """For channels-last data the last groups of pixels and channels of the third sample of nearly 2³¹ elements."""
    arguments = launch.arguments
    if "pixels" not in arguments:
        return distant_blocks(launch)
    channels, group = arguments["channels"], arguments["GROUP"]
    pixels = (2**31 - BLOCK - 1) // (16 * channels) * 16
    chunks, blocks = -(-pixels // (group * arguments["BLOCK_P"])), -(-channels // arguments["BLOCK_C"])
    jumps = (((chunks, 0, 0), 2), ((1, 0, 0), chunks - 1), *([((0, 1, 0), blocks - 1)] if blocks > 1 else []))
    return [*distant_samples(launch), Far((0, 0, 0), jumps, {"pixels": pixels, "chunks": chunks})]


# Modules whose programs are not blocks of samples of n elements with the arguments ``n`` and ``blocks``.
FAR: dict[str, Callable[[Launch], list[Far]]] = {
    "dropout": distant_groups,
    "fourier": distant_channels,
    "fourier_last": distant_pixels,
    "group_norm_kernels": distant_tiles,
    "group_norm_gradient": distant_tiles,
    "group_norm_sums": distant_samples,
}


@cache
def launches_of(name: str) -> list[Launch]:
    """The launches of a case for a single sample. Only their arguments matter: one program of each is interpreted."""
    case = EVERY_CASE[name]
    with use_backend("interpreter"), guarded(record_only=True, program=(0, 0, 0)) as guard:
        for shape in (FAR_SHAPE, *MORE_FAR_SHAPES.get(name, [])):
            evaluate(case.ours, case.make(shape, torch.float32), case.differentiable)
    return guard.launches


def test_every_kernel_is_covered():
    """A new kernel needs a case that launches it, and a name that ends in _kernel."""
    assert {launch.kernel for name in EVERY_CASE for launch in launches_of(name)} == set(kernels())


def offsets(kernel, arguments, program):
    """(argument, kind, elements) of every access of one program, in a grid larger than any real one."""
    with guarded(record_only=True, program=program, programs=(2**29, 2**16, 2**16)) as guard:
        kernel[(1,)](**arguments)
    return guard.launches[0].offsets


def common(a, b):
    """The lanes that are active in both: the last block has fewer."""
    lanes = min(len(a), len(b))
    return a[:lanes], b[:lanes]


def assert_linear(kernel, arguments, far: Far, known: dict):
    """Offsets are linear: a jump taken once stays below 2³¹, and many jumps must lead as many times as far.

    ``known`` keeps the offsets of programs from which other jumps of the same launch begin as well.
    """
    arguments = {**arguments, **far.arguments}

    def near(program):
        key = (*map(int, program), *sorted(far.arguments.items()))
        if key not in known:
            known[key] = offsets(kernel, arguments, program)
        return known[key]

    start, target = near(far.start), np.array(far.start)
    expected = [at for _, _, at in start]
    for programs, count in far.jumps:
        target += count * np.array(programs)
        once = near(np.add(far.start, programs))
        for k, ((_, _, after), (_, _, before)) in enumerate(zip(once, start, strict=True)):
            step = np.subtract(*common(after, before))
            expected[k] = np.add(*common(expected[k], count * step))
    largest = 0
    for (name, kind, at), wanted in zip(offsets(kernel, arguments, target), expected, strict=True):
        found, right = common(at, wanted)
        assert np.array_equal(found, right), f"{kind} of {name}: offset {found[0]} instead of {right[0]}"
        largest = max(largest, int(right.max(initial=0)))
    assert largest >= 2**31, f"offsets reach only {largest}: this tests nothing"


def test_an_offset_that_overflows_is_noticed():
    arguments = {"x_ptr": torch.zeros(1), "out_ptr": torch.zeros(1), "n": 2**20 + 7, "BLOCK": 16}
    with pytest.raises(AssertionError, match="read of x_ptr: offset -2147469312 instead of 2147497984"):
        assert_linear(narrow_kernel, arguments, Far((0, 0, 0), (((1, 0, 0), 2**11),)), {})
    with pytest.raises(AssertionError, match="this tests nothing"):
        assert_linear(narrow_kernel, arguments, Far((0, 0, 0), (((1, 0, 0), 2**10),)), {})


LONG = {  # other cases have the same kernels with more arguments, or the same order of the noise in another kernel
    "group_norm_silu in tiles", "group_norm_silu in tiles, pre_shift", "group_norm_silu in tiles, residual",
    "eps_loss drawn, channels last", "sampler_step drawn, channels last", "reparameterize drawn, channels last",
}  # fmt: skip


@pytest.mark.parametrize("name", usually([name for name in EVERY_CASE if name not in LONG], list(EVERY_CASE)))
def test_no_offset_overflows(name):
    """Far beyond 2³¹ elements, and with samples of nearly 2³¹, where 32-bit arithmetic overflows."""
    for launch in launches_of(name):
        kernel, module = kernels()[launch.kernel], launch.kernel.partition(".")[0]
        known: dict = {}
        for far in FAR.get(module, distant_blocks)(launch):
            assert_linear(kernel, launch.arguments, far, known)
