"""Reads machine code: registers, spills, stack, instructions, and widths of accesses to global memory."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def assembled(ptx: str) -> bytes:
    """Machine code of PTX, made by the last stage of Triton's compiler."""
    (arch,) = map(int, re.findall(r"^\.target sm_(\d+)", ptx, re.MULTILINE))
    backend = make_backend(GPUTarget("cuda", arch, 32))
    return backend.make_cubin(ptx, {}, backend.parse_options({"arch": f"sm{arch}"}), arch)


def read_nvidia(cubin: bytes, ptx: str, threads: int) -> dict[str, Any]:
    """Registers, spills, stack, instructions times threads, and widest accesses, from cuobjdump and nvdisasm."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", code)
    return {
        "registers": registers,
        "spills": sum(name.startswith(("LDL", "STL")) for name in names),
        "stack": stack,
        "instructions": threads * sum(name != "NOP" for name in names),
        "load": max((_bits(name) for name in names if name.startswith("LDG")), default=0),
        "store": max((_bits(name) for name in names if name.startswith("STG")), default=0),
        "keeps_nan": "max.NaN" in ptx,
    }


def read_amd(text: str, threads: int) -> dict[str, Any]:
    """The same from AMD's assembly and metadata."""
    meta = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    names = re.findall(r"^\t([sv]_\w+|global_\w+|buffer_\w+|ds_\w+|flat_\w+|scratch_\w+)", text, re.MULTILINE)
    memory = [name for name in names if name.startswith(("global_", "buffer_"))]
    return {
        "registers": meta["vgpr_count"],
        "spills": meta["vgpr_spill_count"] + meta["sgpr_spill_count"],
        "stack": meta["private_segment_fixed_size"],
        "instructions": threads * sum(name != "s_nop" for name in names),
        "load": max((_amd_bits(name) for name in memory if "_load_" in name), default=0),
        "store": max((_amd_bits(name) for name in memory if "_store_" in name), default=0),
        "keeps_nan": False,
    }


def _bits(name: str) -> int:
    """Width of an access such as LDG.E.128; 32 if the name contains none."""
    found = re.search(r"\.(?:[US](8|16)|(64|128))(?:\.|$)", name)
    return int(found.group(1) or found.group(2)) if found else 32


def _amd_bits(name: str) -> int:
    found = re.search(r"dwordx(\d)", name)
    return 32 * int(found.group(1)) if found else 32 if "dword" in name else 16 if "short" in name else 8


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=True).stdout
