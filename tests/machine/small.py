"""Small programs of PTX for the tests of the machine: a body of instructions, run on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from machine.approximate import Approximation
from machine.launch import Argument, run
from machine.observer import Observer
from machine.program import decode

KINDS = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}
DECLARATIONS = """
.reg .pred %p<16>;
.reg .b16 %h<32>;
.reg .b32 %r<64>;
.reg .b64 %d<64>;
"""


def kernel(body: str, arguments: int) -> str:
    """A kernel `small` whose arguments' addresses are in %d0, %d1, ..., and whose thread's number is in %r0."""
    parameters = ", ".join(f".param .u64 small_param_{k}" for k in range(arguments))
    loads = "\n".join(f"ld.param.b64 %d{k}, [small_param_{k}];" for k in range(arguments))
    return (
        ".version 8.7\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 global_smem[];\n"
        f".visible .entry small({parameters})\n{{{DECLARATIONS}{loads}\nmov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    )


def launch(
    body: str, arrays: Sequence[np.ndarray], threads: int = 32, grid: tuple[int, int, int] = (1, 1, 1),
    shared: int = 0, mode: str = "exact", seed: int = 0, observer: Observer | None = None,
    winner: str = "last",
) -> None:  # fmt: skip
    """Run a body on arrays, which it changes in place."""
    tensors = [torch.from_numpy(array) for array in arrays]
    arguments = [Argument(f"a{k}", "*i8", tensor) for k, tensor in enumerate(tensors)]
    run(
        decode(kernel(body, len(arrays))), grid, arguments, threads, shared, Approximation(mode, seed), observer, winner
    )


def apply(
    instruction: str, result: np.dtype | type, *sources: np.ndarray, mode: str = "exact", seed: int = 0
) -> np.ndarray:
    """The results of one instruction, ``op D, S0, S1;``, for every element of the sources.

    D, S0, S1 and so on stand for registers of the elements' widths (at least 16 bits), P for a predicate that is
    written as 1 or 0.
    """
    count = max(len(source) for source in sources)
    rows = -(-count // 32) * 32
    padded = [np.resize(source, rows) for source in sources]
    predicate = " P" in instruction or "\tP" in instruction
    out = np.zeros(rows, np.uint16 if predicate else result)
    lines, used = [], {2: 0, 4: 4, 8: 20}
    for place, array in enumerate([*padded, out]):
        lines += [f"mov.u32 %r1, %ctaid.x; mad.lo.s32 %r2, %r1, 32, %r0; mul.wide.u32 %d{40 + place}, %r2, "
                  f"{array.itemsize};", f"add.s64 %d{40 + place}, %d{40 + place}, %d{place};"]  # fmt: skip
    names = []
    for place, array in enumerate(padded):
        width = max(2, array.itemsize)
        prefix = {2: "%h", 4: "%r", 8: "%d"}[width]
        names.append(f"{prefix}{used[width] + 4}")
        used[width] += 1
        lines.append(f"ld.global.{KINDS[array.itemsize]} {names[-1]}, [%d{40 + place}];")
    width = out.itemsize
    target = {1: "%h30", 2: "%h30", 4: "%r60", 8: "%d60"}[width]
    text = instruction
    for place, name in reversed(list(enumerate(names))):
        text = text.replace(f"S{place}", name)
    if predicate:
        lines += [text.replace(" P", " %p1", 1), "selp.b16 %h30, 1, 0, %p1;"]
    else:
        lines.append(text.replace(" D", f" {target}", 1))
    lines.append(f"st.global.{KINDS[width]} [%d{40 + len(padded)}], {target};")
    launch("\n".join(lines), [*padded, out], grid=(rows // 32, 1, 1), mode=mode, seed=seed)
    return out[:count].astype(bool) if predicate else out[:count]
