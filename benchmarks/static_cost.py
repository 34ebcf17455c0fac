"""Machine code of every kernel: registers, spills, instructions per element, widths of accesses. No GPU is needed.

    python benchmarks/static_cost.py                     every kernel for sm_80, sm_90, sm_100 and gfx942; some minutes
    python benchmarks/static_cost.py diffuse --targets sm_90 --json costs.json
    python benchmarks/static_cost.py --executed          then also what `executed_cost` counts

TRITON_INTERPRET must not be set, since the interpreter and the compiler cannot share a process. Each kernel is compiled
as it is launched, with pointers and sizes that are multiples of 16, or as for small images. Registers and stack come
from the resource usage of the cubin, or from AMD's metadata. Loads and stores are the widest accesses to global memory
in the code. A spill is an access to local memory, or AMD's own count.

Instructions per element are all machine instructions except NOP, divided by the elements of a thread. A loop counts
once, not per iteration, and both sides of a branch count. The number does not include how long an instruction takes (a
special function occupies its unit for several cycles, a 64-bit product for two), waiting for memory, dependencies, or
the launch. It is therefore a lower bound of the time for arithmetic, and serves to compare versions of one kernel.
`executed_cost` counts how often loops run, the transactions with memory, and bank conflicts.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import triton
from kernel_variants import VARIANTS, Variant
from machine_code import read_amd, read_nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {"float32": "*fp32", "bfloat16": "*bf16"}
BYTES = {"float32": 4, "bfloat16": 2}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
COLUMNS = ("registers", "spills", "stack", "instructions", "load", "store", "seconds")


@dataclass(frozen=True)
class Cost:
    """One kernel on one target.

    Args:
        spills: accesses to local memory.
        stack: bytes.
        instructions: per element.
        load, store: bits of the widest global access, 0 for none.
        seconds: time of compilation.
        keeps_nan: whether it contains a minimum or maximum that propagates NaN (NVIDIA only).
        reduces, aside, scalar: as in `Variant`.
        moved: bytes per element, 0 where `Variant` leaves that out.
    """

    kernel: str
    variant: str
    dtype: str
    target: str
    registers: int
    spills: int
    stack: int
    instructions: float
    load: int
    store: int
    seconds: float
    keeps_nan: bool
    reduces: bool
    aside: bool
    scalar: bool
    moved: int


def jobs(pattern: str, targets: list[str], brief: bool) -> Iterator[tuple[int, str, str]]:
    """(index in `VARIANTS`, dtype, target).

    If ``brief``, other targets than sm_90 get the first variant of each kernel only, in one dtype.
    """
    first = {id(variant.function): place for place, variant in reversed(list(enumerate(VARIANTS)))}
    for place, variant in enumerate(VARIANTS):
        if not re.search(pattern, f"{variant.kernel} {variant.name}"):
            continue
        for number, target in enumerate(targets):
            dtypes = dtypes_of(variant)
            if brief and target != "sm_90":
                is_first = first[id(variant.function)] == place
                dtypes = [dtypes[(place + number) % len(dtypes)]] if is_first else []
            yield from ((place, dtype, target) for dtype in dtypes)


def dtypes_of(variant: Variant) -> list[str]:
    """The dtypes that a variant is for."""
    return [dtype for dtype in TYPES if not variant.bits or 8 * BYTES[dtype] == variant.bits]


def sample_jobs() -> Iterator[tuple[int, str, str]]:
    """Each kernel in one variant and dtype, for sm_90, and every second one for another target too, in turn."""
    first = {id(variant.function): place for place, variant in reversed(list(enumerate(VARIANTS)))}
    others = [target for target in TARGETS if target != "sm_90"]
    for number, place in enumerate(sorted(first.values())):
        dtypes = dtypes_of(VARIANTS[place])
        dtype = dtypes[number % len(dtypes)]
        yield place, dtype, "sm_90"
        if number % 2 == 0:
            yield place, dtype, others[number // 2 % len(others)]


def cost(place: int, dtype: str, target: str) -> Cost:
    """Compile one of `VARIANTS` and analyse its machine code."""
    variant = VARIANTS[place]
    start = perf_counter()
    compiled = compile_for(TARGETS[target], variant, dtype)
    seconds = perf_counter() - start
    asm, threads = compiled.asm, TARGETS[target].warp_size * variant.warps
    found = read_nvidia(asm["cubin"], asm["ptx"], threads) if "cubin" in asm else read_amd(asm["amdgcn"], threads)
    found["instructions"] = round(found["instructions"] / variant.elements, 1)
    moved = variant.accesses * BYTES[dtype] + variant.more_bytes
    known = {"reduces": variant.reduces, "aside": variant.aside, "scalar": variant.scalar, "moved": moved}
    return Cost(variant.kernel, variant.name, dtype, target, seconds=round(seconds, 2), **known, **found)


def compile_for(target: GPUTarget, variant: Variant, dtype: str) -> Any:
    """Compile for pointers, and for the sizes that the variant names, that are multiples of 16."""
    names = variant.function.arg_names
    constants = dict(variant.constants)
    if "FAST" in names:
        constants["FAST"] = dtype != "float32" and target.backend == "cuda"
    signature = {name: "constexpr" if name in constants else variant.types[name] for name in names}
    signature = {name: kind.replace("DATA", TYPES[dtype]) for name, kind in signature.items()}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(names)
        if signature[name].startswith("*") or (name in variant.multiples and signature[name] == "i32")
    }
    source = ASTSource(fn=variant.function, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options={"num_warps": variant.warps})


def table(costs: list[Cost]) -> str:
    """Format the costs as columns."""
    lines = [["kernel", "variant", "dtype", "target", *COLUMNS]]
    for row in costs:
        figures = [str(getattr(row, name)) for name in COLUMNS]
        lines.append([row.kernel, row.variant, row.dtype, row.target, *figures])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    places = [str.ljust] * 4 + [str.rjust] * len(COLUMNS)
    return "\n".join(
        "  ".join(place(*cell) for place, *cell in zip(places, line, widths, strict=True)) for line in lines
    )


def main() -> int:
    """Compile, print the table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("kernel", nargs="?", default="", help="only kernels whose name and variant match this pattern")
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"a list of {', '.join(TARGETS)}")
    parser.add_argument("--brief", action="store_true", help="compile fewer combinations, for `make slow`")
    parser.add_argument("--sample", action="store_true", help="compile each kernel about once, for `make test`")
    parser.add_argument(
        "--cached", action="store_true", help="use Triton's cache; the seconds of compilation are then meaningless"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the table as JSON")
    parser.add_argument("--executed", action="store_true", help="then also count what is executed, on sm_90")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET must not be set, since interpreted kernels cannot be compiled")
    targets = options.targets.split(",")
    if unknown := sorted(set(targets) - set(TARGETS)):
        parser.error(f"--targets must name some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    work = list(sample_jobs() if options.sample else jobs(options.kernel, targets, options.brief))
    if not work:
        parser.error(
            f"no kernel matches {options.kernel!r}; there are {', '.join(sorted({v.kernel for v in VARIANTS}))}"
        )
    with tempfile.TemporaryDirectory() as fresh:
        if not options.cached:
            os.environ["TRITON_CACHE_DIR"] = fresh
        costs = compile_all(work)
        print(table(costs))
        if options.executed:
            report_executed(options.kernel)
    if options.json is not None:
        content = {"triton": triton.__version__, "rows": [asdict(row) for row in costs]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def compile_all(work: list[tuple[int, str, str]]) -> list[Cost]:
    """Costs of some `jobs`, compiled in several processes."""
    costs = []
    with ProcessPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done in pool.map(cost, *zip(*work, strict=True)):
            costs.append(done)
            print(f"\r{len(costs)} of {len(work)} compiled", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return costs


def report_executed(pattern: str) -> None:
    """Print what the runs execute that match the pattern, if there are any."""
    import executed_cost  # needs tests/machine

    if costs := executed_cost.counted(pattern):
        print("\n" + executed_cost.table(costs))


if __name__ == "__main__":
    sys.exit(main())
