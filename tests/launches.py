"""Checks of `launcher` with compiled kernels, as a program: the tests' own process has Triton's interpreter.

Each function that begins with ``check_`` is one check; `test_launcher` runs the program and reports each as a test. The
driver launches nothing and records what it is given.
"""

import inspect
import json
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import torch
import triton
from fastdiff_kernels import Noise, _triton, diffuse, gaussian_log_ratio, launcher, reparameterize, sampler_step
from fastdiff_kernels._triton import constexpr, jit, tl
from no_device import Launcher, NoDevice
from triton import knobs
from triton.runtime.driver import driver


@dataclass
class Launch:
    """What a launcher was given, and by which compiled kernel."""

    metadata: Any
    source: Any
    grid: tuple[int, int, int]
    stream: int
    hooks: tuple[Any, Any]
    args: tuple[Any, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Everything in which two compiled kernels of one function differ."""
        constants = {name: str(value) for name, value in self.source.constants.items()}
        options = self.metadata.num_warps, self.metadata.debug, self.metadata.enable_fp_fusion
        return self.metadata.target, dict(self.source.signature), constants, str(self.source.attrs), *options


launches: list[Launch] = []


class Recorder(Launcher):
    """Records launches."""

    def __call__(self, x: int, y: int, z: int, stream: int, *others: Any) -> None:
        _, _, metadata, enter, leave, *args = others
        launches.append(Launch(self.metadata, self.source, (x, y, z), stream, (enter, leave), tuple(args)))
        for hook in (enter, leave):
            if hook is not None:
                hook(metadata)


@jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, factor, BLOCK: constexpr, MORE: constexpr):
    """x + factor y, or x alone where there is no y."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    out = tl.load(x_ptr + i, mask=i < n)
    if y_ptr is not None:
        out += factor * tl.load(y_ptr + i, mask=i < n)
    tl.store(out_ptr + i, out + MORE, mask=i < n)


@jit
def names_kernel(x, device, stream, key, grid, y, z, BLOCK: constexpr):
    """Parameters with names that a launcher might use for something else."""
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(y + i) + device + stream + key + grid + z)


@jit
def underscore_kernel(_x_ptr, _n, BLOCK: constexpr = 16):
    """Parameters that begin with an underscore, or have a default."""
    i = tl.arange(0, BLOCK)
    tl.store(_x_ptr + i, 1.0, mask=i < _n)


_triton.load()
MEMORY = torch.zeros(4096)
X, Y, OUT = MEMORY[:1024], MEMORY[1024:2048], MEMORY[2048:3072]
USUAL: dict[str, Any] = {"x_ptr": X, "y_ptr": Y, "out_ptr": OUT, "n": 160, "factor": 0.5, "BLOCK": 64, "MORE": 1}
CHANGES: dict[str, dict[str, Any]] = {
    "another value of n": {"n": 320},
    "n no multiple of 16": {"n": 161},
    "n = 1": {"n": 1},
    "n = 0": {"n": 0},
    "n beyond 32 bits": {"n": 2**31},
    "n beyond 63 bits": {"n": 2**63},
    "another float": {"factor": 2.0},
    "a float that is 1": {"factor": 1.0},
    "an integer in a float's place": {"factor": 1},
    "a bool in an integer's place": {"n": True},
    "no y": {"y_ptr": None},
    "another dtype": {"x_ptr": X.bfloat16()},
    "a parameter": {"x_ptr": torch.nn.Parameter(X)},
    "a misaligned x": {"x_ptr": MEMORY[1:]},
    "a misaligned out": {"out_ptr": MEMORY[2047:]},
    "an x aligned to 8 bytes": {"x_ptr": MEMORY[2:]},
    "another block": {"BLOCK": 128},
    "another constant": {"MORE": 0},
    "a constant that is a bool": {"MORE": True},
    "other warps": {"num_warps": 8},
    "no fusion": {"enable_fp_fusion": False},
    "warps and stages": {"num_warps": 8, "num_stages": 1},
}


def launch(kernel: Any, grid: Any = (3,), **changes: Any) -> Launch:
    """Launch once, and return what was launched."""
    values = USUAL | {"num_warps": 2} | changes
    positional = [values.pop(name) for name in ("x_ptr", "y_ptr", "out_ptr", "n", "factor")]
    before = len(launches)
    kernel[grid](*positional, **values)
    assert len(launches) == before + 1
    return launches[-1]


def same(a: Launch, b: Launch) -> None:
    """Two launches are the same but for the identity of the compiled kernel."""
    assert a.kind == b.kind, f"{a.kind}\n{b.kind}"
    assert (a.grid, a.stream) == (b.grid, b.stream)
    assert len(a.args) == len(b.args)
    assert all(x is y or x == y for x, y in zip(a.args, b.args, strict=True))


def check_every_specialisation_equals_that_of_triton() -> None:
    """The first and later launches of each kind launch what Triton launches for the same arguments."""
    plain = triton.jit(add_kernel.fn)
    for _ in range(2):
        for name, change in CHANGES.items():
            for changes in ({}, change):
                expected, found = launch(plain, **changes), launch(add_kernel, **changes)
                try:
                    same(found, expected)
                except AssertionError as error:
                    raise AssertionError(f"{name}: {error}") from None


def check_a_second_launch_does_not_ask_triton() -> None:
    """Of what is remembered; the rest goes to Triton each time."""
    slow = {"no fusion", "warps and stages", "a bool in an integer's place"}
    for name, change in {"as usual": {}, **CHANGES}.items():
        launch(add_kernel, **change)
        with mock.patch.object(triton.JITFunction, "run", autospec=True, side_effect=triton.JITFunction.run) as run:
            launch(add_kernel, **change)
        assert run.called == (name in slow), name


def check_grids() -> None:
    """Of one to three axes, and as a function."""
    plain = triton.jit(add_kernel.fn)
    for grid in ((3,), (3, 2), (3, 2, 5), [4], lambda constants: (constants["BLOCK"],)):
        for _ in range(2):
            same(launch(add_kernel, grid), launch(plain, grid))


def check_hooks_are_called() -> None:
    """Of a profiler, around each launch, with the kernel's name; none is called after it is removed."""
    seen = []

    def enter(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    launch(add_kernel)
    knobs.runtime.launch_enter_hook.add(enter)
    try:
        assert all(hook is not None for hook in launch(add_kernel).hooks)
    finally:
        knobs.runtime.launch_enter_hook.remove(enter)
    launch(add_kernel)
    assert seen == ["add_kernel"]
    before = []
    add_kernel.add_pre_run_hook(lambda *args, **kwargs: before.append(1))
    try:
        launch(add_kernel)
    finally:
        add_kernel.pre_run_hooks.clear()
    assert before == [1]


def check_settings_of_triton() -> None:
    """Debugging is another kernel, and the first one is found again afterwards."""
    usual = launch(add_kernel)
    with knobs.runtime.scope():
        knobs.runtime.debug = True
        assert launch(add_kernel).metadata.debug
    same(launch(add_kernel), usual)


def check_another_device() -> None:
    """Each device has a compiled kernel and a stream of its own."""
    first = launch(add_kernel)
    driver.active.device = 1
    try:
        second, again = launch(add_kernel), launch(add_kernel)
    finally:
        driver.active.device = 0
    assert (first.stream, second.stream, again.stream) == (100, 101, 101)
    assert second.metadata is again.metadata
    assert first.metadata is not second.metadata
    assert launch(add_kernel).metadata is first.metadata


def check_another_driver() -> None:
    """A kernel that was compiled for one target is never launched on another, in either direction."""
    before = driver.active
    for architecture in (80, 100, 90, 80):
        driver.set_active(NoDevice(architecture, Recorder))
        for _ in range(2):
            assert launch(add_kernel).metadata.target.arch == architecture
    driver.set_active(before)
    assert launch(add_kernel).metadata.target.arch == 90


def check_unknown_versions_use_the_public_call() -> None:
    """The same launches where the arguments of ``CompiledKernel.run`` are not known."""
    with mock.patch.object(launcher, "KNOWN", False):
        other = launcher.CachedKernel(add_kernel.fn)
        for change in CHANGES.values():
            for _ in range(2):
                same(launch(other, **change), launch(add_kernel, **change))


def check_any_names_of_parameters() -> None:
    """Whatever a kernel calls its parameters, they arrive."""
    for _ in range(2):
        names_kernel[(1,)](X, 2, 3, 4, 5, Y, 6, BLOCK=16, num_warps=1)
        x, device, stream, key, grid, y, z, block = launches[-1].args
        assert (device, stream, key, grid, z, block) == (2, 3, 4, 5, 6, 16)
        assert x is X
        assert y is Y
        underscore_kernel[(1,)](X, 7)
        assert launches[-1].args[1:] == (7, 16)


def check_threads() -> None:
    """Threads that launch at once, each with kinds of its own, all get what they ask for."""
    fresh, wrong = launcher.CachedKernel(add_kernel.fn), []

    def work(number: int) -> None:
        for k in range(300):
            n = 16 + (k + number) % 5
            compiled = fresh[(3,)](X, Y, OUT, n, 0.5, BLOCK=64, MORE=1, num_warps=2)
            divisible = "tt.divisibility" in str(compiled.src.attrs.get((3,), ""))
            wrong.extend([(number, k)] * (divisible != (n == 16)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def check_memory_is_bounded() -> None:
    """A kernel forgets what it remembers when there is too much of it."""
    fresh = launcher.CachedKernel(add_kernel.fn)
    with mock.patch.object(launcher, "LIMIT", 4):
        for n in range(16, 400, 16):
            launch(fresh, n=n)
            assert len(fresh._known) <= 4


def check_operations() -> None:
    """Whole operations launch the same, remembered or not, with the kernels of Triton alone."""
    from fastdiff_kernels import registration

    x, vector, row = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([1.0] * 6 + [0.0] * 4)

    def calls() -> None:
        diffuse(x, vector, Noise(1))
        diffuse(x, vector, x)
        reparameterize(x, x, Noise(1))
        gaussian_log_ratio(x, x, x, x, x)
        sampler_step(x, x, row[None].contiguous(), Noise(1), step=torch.tensor([0]))

    with mock.patch.object(registration, "backend", return_value="interpreter"):
        rounds = []
        for _ in range(3):
            start = len(launches)
            calls()
            rounds.append(launches[start:])
    for later in rounds[1:]:
        assert len(later) == 5
        for a, b in zip(rounds[0], later, strict=True):
            assert a.kind == b.kind
            assert a.grid == b.grid


def main() -> int:
    """Run every check, and print a JSON object of names and failures, None for none."""
    driver.set_active(NoDevice(launcher_cls=Recorder))
    results: dict[str, str | None] = {}
    for name, check in inspect.getmembers(sys.modules[__name__], inspect.isfunction):
        if not name.startswith("check_"):
            continue
        try:
            check()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
