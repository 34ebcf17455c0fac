"""What the kernels execute and move, counted launch by launch on the machine of tests/machine. No GPU is needed.

    python benchmarks/executed_cost.py                      everything, for sm_90; some minutes
    python benchmarks/executed_cost.py decoder_nll --arch 80 --json PATH

`static_cost` counts a loop once, however often it runs, and does not see addresses. This runs the launchers on data and
counts what happens. TRITON_INTERPRET must not be set. `machine.counters` defines the counts; all are per element of the
data. Instructions of threads are counted, so one of a warp counts 32.

machine code: instructions of the kernel's machine code, as `static_cost` counts them: each once.
static: PTX instructions of the kernel's text, each once.
executed: PTX instructions that are issued. PTX is not machine code: ptxas merges, splits and removes instructions. The
    number serves to compare runs of one kernel, and exceeds ``static`` by what loops repeat.
global, shared, exchange, special: those of the executed that access memory, that exchange values within a warp or wait
    at a barrier, and the approximate special functions.
conflicts: passes over shared memory that bank conflicts add, 32 for each. A multiprocessor makes one pass per cycle, in
    which it can issue four instructions of warps: 1 here takes as long as issuing 4 of ``executed``.
asked: transactions of 32 bytes that the requests of the warps ask for.
needed: transactions of 32 bytes that the launch touches at all, reading and writing.
used: the bytes that it touches, as a share of those transactions; below 1 some are partly used.

Data are normal numbers of the sizes of training. The sums of partial results that PyTorch computes are left out.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import triton

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # for the machine
sys.path.insert(0, str(Path(__file__).parent))

from executed_runs import RUNS, Run
from machine.backend import on_machine
from machine.counters import FAMILIES, SECTOR, Counter, Counts
from machine.driver import settings
from machine.program import decode
from machine_code import assembled, read_nvidia

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Cost:
    """One kernel of a run, all of its launches together; see the top of the file. Numbers are per element.

    Args:
        parts: executed instructions by family.
        arguments: asked and needed transactions, and bytes, of each argument and direction.
    """

    operation: str
    data: str
    shape: tuple[int, ...]
    dtype: str
    kernel: str
    launches: int
    machine_code: float
    static: float
    executed: float
    parts: dict[str, float]
    passes: float
    conflicts: float
    asked: float
    needed: float
    bytes: float
    arguments: dict[str, tuple[float, float, float]]


class Texts:
    """Remembers the PTX of each launch, as the transform of the machine's settings."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, name: str, text: str) -> str:
        self.seen.append(text)
        return text


def execute(run: Run, dtype: torch.dtype) -> None:
    """Run forward and backward."""
    torch.manual_seed(0)
    tensors = run.make(run.shape, dtype)
    tensors = [t.contiguous(memory_format=run.order) if t.dim() == 4 else t for t in tensors]
    leaves = [t.requires_grad_(k in run.differentiable) for k, t in enumerate(tensors)]
    outputs = run.function(*leaves)
    if run.differentiable:
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        upstream = [torch.randn_like(out) for out in outputs]
        torch.autograd.grad(outputs, [leaves[k] for k in run.differentiable], upstream)


def count(run: Run, dtype: str, arch: int = 90) -> list[Cost]:
    """Execute a run on the machine of one architecture: a cost for each of its kernels."""
    counter, texts = Counter(), Texts()
    blocks = import_module("fastdiff_kernels.group_norm_blocks")
    tiles = mock.patch.object(blocks, "ON_CHIP", 1) if run.tiles else nullcontext()
    with tiles, on_machine(arch), settings(observer=counter, transform=texts):
        execute(run, DTYPES[dtype])
    by_kernel: dict[str, list[tuple[Counts, str]]] = {}
    for counts, text in zip(counter.launches, texts.seen, strict=True):
        by_kernel.setdefault(counts.name, []).append((counts, text))
    return [cost(run, dtype, launches) for launches in by_kernel.values()]


def cost(run: Run, dtype: str, launches: list[tuple[Counts, str]]) -> Cost:
    """Put the launches of one kernel together."""
    elements = torch.Size(run.shape).numel()
    all_counts = [counts for counts, _ in launches]

    def each(value: float) -> float:
        return round(value / elements, 4)

    def total(what: Callable[[Counts], float]) -> float:
        return each(sum(map(what, all_counts)))

    arguments = {}
    for key in dict.fromkeys(key for counts in all_counts for key in counts.global_memory):
        found = [counts.global_memory[key] for counts in all_counts if key in counts.global_memory]
        name = " ".join(reversed(key))
        arguments[name] = tuple(each(sum(getattr(t, what) for t in found)) for what in ("asked", "needed", "bytes"))
    threads = [(counts.programs * counts.threads, text) for counts, text in launches]
    return Cost(
        run.operation, run.data, run.shape, dtype, all_counts[0].name, len(launches),
        machine_code=each(sum(size * instructions(text) for size, text in threads)),
        static=each(sum(size * len(decode(text).steps) for size, text in threads)),
        executed=total(lambda counts: 32 * counts.issued),
        parts={name: total(lambda counts, name=name: 32 * counts.instructions[name]) for name in FAMILIES},
        passes=total(lambda counts: 32 * counts.shared_memory.passes),
        conflicts=total(lambda counts: 32 * counts.shared_memory.conflicts),
        asked=total(lambda counts: counts.sectors("asked")),
        needed=total(lambda counts: counts.sectors("needed")),
        bytes=total(lambda counts: counts.sectors("bytes")),
        arguments=arguments,
    )  # fmt: skip


@cache
def instructions(ptx: str) -> int:
    """Machine instructions of a kernel."""
    return read_nvidia(assembled(ptx), ptx, 1)["instructions"]


def counted(pattern: str = "", arch: int = 90) -> list[Cost]:
    """Count the runs whose operation and data match a pattern, in processes of their own."""
    numbers = [k for k, run in enumerate(RUNS) if re.search(pattern, f"{run.operation} {run.data}")]
    work = [(number, dtype) for number in numbers for dtype in DTYPES]
    found = []
    with ProcessPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, costs in enumerate(pool.map(partial(_count_one, arch=arch), work), 1):
            found += costs
            print(f"\r{done} of {len(work)} counted", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def _count_one(job: tuple[int, str], arch: int) -> list[Cost]:
    torch.set_num_threads(1)
    return count(RUNS[job[0]], job[1], arch)


def table(costs: list[Cost]) -> str:
    """Format the costs as columns."""
    families = [name for name in FAMILIES if name != "other"]
    figures = ["machine code", "static", "executed", *families, "conflicts", "asked", "needed", "asked/needed", "used"]
    lines = [["operation", "data", "shape", "dtype", "kernel", *figures]]
    for one in costs:
        counts = [one.machine_code, one.static, one.executed, *(one.parts[name] for name in families), one.conflicts]
        moved = [f"{one.asked:.3f}", f"{one.needed:.3f}"]
        if one.needed:
            moved += [f"{one.asked / one.needed:.2f}", f"{one.bytes / (SECTOR * one.needed):.2f}"]
        what = [one.operation, one.data, "×".join(map(str, one.shape)), one.dtype, one.kernel]
        line = [*what, *(f"{figure:.2f}" for figure in counts), *moved]
        lines.append(line + [""] * (len(lines[0]) - len(line)))
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    places = [str.ljust] * 5 + [str.rjust] * len(figures)
    return "\n".join(
        "  ".join(place(*cell) for place, *cell in zip(places, line, widths, strict=True)) for line in lines
    )


def write_json(costs: list[Cost], arch: int, path: Path) -> None:
    """Write the costs to a file, one on each line."""
    rows = ",\n".join(json.dumps(asdict(one)) for one in costs)
    path.write_text(f'{{"triton": "{triton.__version__}", "target": "sm_{arch}", "rows": [\n{rows}\n]}}\n')


def main() -> int:
    """Count, print the table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("pattern", nargs="?", default="", help="only runs whose operation and data match this pattern")
    parser.add_argument("--arch", type=int, default=90, choices=(80, 90, 100), help="compute capability times ten")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table as JSON")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET must not be set, since interpreted kernels cannot be compiled")
    costs = counted(options.pattern, options.arch)
    if not costs:
        parser.error(f"no run matches {options.pattern!r}; see RUNS in {Path(__file__).name}")
    print(table(costs))
    if options.json is not None:
        write_json(costs, options.arch, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
