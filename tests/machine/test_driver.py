"""The launch path: Triton's binding and specialisation, compiled kernels called directly, hooks, and refusals."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from machine import driver
from machine.backend import on_machine
from machine.driver import settings
from machine.faults import BadLaunch, OutOfBounds


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, scale, WITH_Y: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x_ptr + i, mask=i < n) * scale
    if WITH_Y:
        value += tl.load(y_ptr + i, mask=i < n)
    tl.store(out_ptr + i, value, mask=i < n)


@triton.jit
def numbers_kernel(out_ptr, a, b, c, d, BLOCK: tl.constexpr):
    """Scalars of several types, and a loop that depends on one."""
    total = a.to(tl.float32) + b.to(tl.float32) + c
    for k in range(d):
        total += k
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, total + tl.program_id(1))


def launch_add(x, y, out, **others):
    return add_kernel[(triton.cdiv(x.numel(), 64),)](
        x, y, out, x.numel(), 2.0, WITH_Y=y is not None, BLOCK=64, **others
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64])
@pytest.mark.parametrize("n", [1, 48, 131])
def test_kernels_run_on_tensors(n, dtype):
    """Sizes of 1 are constants and None is no argument; misaligned pointers compile differently."""
    memory = torch.arange(1, 2 * n + 3).to(dtype)
    for start in (0, 1):
        x, out = memory[start : start + n], torch.zeros(n, dtype=dtype)
        launch_add(x, None, out)
        assert torch.equal(out, (x * 2).to(dtype))
        launch_add(x, memory[n : 2 * n], out)
        assert torch.equal(out, (x * 2.0 + memory[n : 2 * n]).to(dtype))


def test_a_compiled_kernel_called_directly():
    """As a launcher that keeps the compiled kernel would: with a grid, and by ``run`` with all that it takes."""
    x, y = torch.randn(100), torch.randn(100)
    compiled = launch_add(x, y, torch.empty(100))
    arguments = (x + 1.0, y, torch.empty(100), 100, 2.0, True, 64)
    compiled[(2, 1, 1)](*arguments)
    assert torch.equal(arguments[2], torch.addcmul(y, x + 1.0, torch.tensor(2.0)))
    out = torch.empty(100)
    arguments = (x, y, out, 100, 3.0, True, 64)
    compiled.run(2, 1, 1, 0, compiled.function, compiled.packed_metadata, None, None, None, *arguments)
    torch.testing.assert_close(out, x * 3.0 + y)


def test_launch_hooks_are_called():
    seen = []
    x, out = torch.ones(8), torch.empty(8)
    compiled = launch_add(x, None, out)
    arguments = (x, None, out, 8, 2.0, False, 64)
    compiled.run(
        1, 1, 1, 0, compiled.function, compiled.packed_metadata, "metadata", seen.append, seen.append, *arguments
    )
    assert seen == ["metadata", "metadata"]


def test_scalars_and_grids():
    out = torch.zeros(3 * 32)
    numbers_kernel[(1, 3)](out, True, -5, 2.5, 4, BLOCK=32, num_warps=1)
    assert np.array_equal(out.numpy(), np.repeat([4.5, 5.5, 6.5], 32))
    numbers_kernel[(1, 3)](out, False, 2**40, 0.5, 0, BLOCK=32, num_warps=1)
    assert torch.equal(out[:32], torch.full((32,), 2.0**40 + 0.5))


def test_the_text_of_a_kernel_can_be_transformed():
    """Before it is decoded, also of a kernel that has run before."""
    x, out = torch.randn(64), torch.empty(64)
    launch_add(x, None, out)
    seen = []

    def doubled(name, text):
        seen.append(name)
        assert "mul.f32" in text
        return text.replace("mul.f32", "add.f32")

    with settings(transform=doubled):
        launch_add(x, None, out)
    assert torch.equal(out, x + 2.0)
    launch_add(x, None, out)
    assert torch.equal(out, x * 2.0)
    assert seen == ["add_kernel"]


def test_settings_are_restored():
    before = driver.active().settings
    with settings(mode="up", seed=3) as changed:
        assert (changed.mode, changed.seed) == ("up", 3)
    with pytest.raises(ZeroDivisionError), settings(mode="up"):
        raise ZeroDivisionError
    assert driver.active().settings == before
    with pytest.raises(ValueError, match="mode"), settings(mode="sideways"):
        pass


def test_a_fault_names_kernel_instruction_program_thread_and_argument():
    message = (
        r"add_kernel, line \d+: @%p1 ld\.global\S+ .*; \d+ bytes at byte 1024 of argument x_ptr of 1024 bytes; "
        r"program \(4, 0, 0\), thread 0"
    )
    with pytest.raises(OutOfBounds, match=message):
        add_kernel[(5,)](torch.zeros(256), None, torch.zeros(320), 320, 2.0, WITH_Y=False, BLOCK=64)


def test_kernels_of_another_target_are_refused():
    x, out = torch.ones(64), torch.empty(64)
    compiled = launch_add(x, None, out)
    with on_machine(80):
        assert ".target sm_80" in launch_add(x, None, out).function.text
        with pytest.raises(BadLaunch, match="another target than sm_80"):
            compiled[(1, 1, 1)](x, None, out, 64, 2.0, False, 64)


def test_what_is_no_tensor_on_the_cpu_is_refused():
    with pytest.raises(BadLaunch, match=r"out_ptr.*meta"):
        launch_add(torch.ones(64), None, torch.empty(64, device="meta"))


def test_other_targets_have_no_machine():
    with pytest.raises(ValueError, match="80, 90, 100"):
        driver.MachineDriver(75)


def test_without_a_machine_nothing_launches():
    kept, driver._active[:] = list(driver._active), []
    try:
        with pytest.raises(BadLaunch, match="no machine is active"):
            driver.active()
    finally:
        driver._active[:] = kept
