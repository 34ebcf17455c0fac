"""Changes of bytes and of JSON, files of checkpoints that are rewritten, and an independent reader of safetensors."""

import json
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from fastdiff.io.folders import MANIFEST

HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 10**9, 2**31, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "x", "x" * 10_000, "\0", "\ud800", "vdm", "ddpm", "hvae", [], [0], [1] * 3,
    [10**6] * 3, [[[[]]]], [None], {}, {"kind": "x"}, {"": {}}, "../../etc/passwd", "/dev/zero",
]  # fmt: skip


def rewrite(file: Path, content: bytes) -> None:
    """Replace a file of a checkpoint, and bring the manifest up to date, so that what reads it is reached."""
    file.write_bytes(content)
    manifest = json.loads((file.parent / MANIFEST).read_text())
    manifest["files"][file.name] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    (file.parent / MANIFEST).write_text(json.dumps(manifest))


def rewritten_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Replace the tensors of a checkpoint's file."""
    contiguous = torch.contiguous_format
    rewrite(file, save({name: value.detach().clone(memory_format=contiguous) for name, value in tensors.items()}))


def mutated(data: bytes, random: Random) -> bytes:
    """Change bytes in one to three places: flips, cuts, insertions, swapped, repeated and zeroed blocks, numbers."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        start = random.randrange(len(changed) + 1)
        if random.random() < 0.5:  # headers are at the start
            start = min(start, random.randrange(256))
        length = random.choice([1, 2, 4, 8, 64, 1024])
        block = bytes(changed[start : start + length])
        kind = random.randrange(8)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << random.randrange(8)
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            changed[start:start] = random.randbytes(length)
        elif kind == 3:
            other = random.randrange(len(changed) + 1)
            changed[start : start + length] = changed[other : other + length]
        elif kind == 4:
            changed[start:start] = block
        elif kind == 5:
            changed[start : start + length] = bytes([random.choice([0, 255, 127, 128])]) * len(block)
        elif kind == 6:
            del changed[start : start + length]
        else:
            size = random.choice([1, 2, 4, 8])
            value = random.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), random.getrandbits(8 * size)])
            changed[start : start + size] = value.to_bytes(size, random.choice(["little", "big"]))
    return bytes(changed)


def mutated_json(data: bytes, random: Random) -> bytes:
    """Change a JSON file: a value, a key that is deleted, added, renamed or there twice, nesting, or its bytes."""
    kind = random.randrange(10)
    if kind == 0:
        return mutated(data, random)
    if kind == 1:
        depth = random.choice([70, 1000, 100_000])
        return b"[" * depth + b"]" * depth
    value = json.loads(data)
    places = list(_places(value))
    holder, key = random.choice(places)
    if kind == 2 and isinstance(holder, dict):
        del holder[key]
    elif kind == 3 and isinstance(holder, dict):
        holder[random.choice(["x", key + "_", key.upper()])] = holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[key + "2"] = holder.pop(key)
    elif kind == 5:
        other, name = random.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 6 and type(holder[key]) in (int, float):
        holder[key] *= random.choice([-1, 2, 1000, 10**12, 0])
    elif kind == 7 and isinstance(holder, dict):
        once = json.dumps(value)
        return once.replace("{", f'{{"{key}": {json.dumps(random.choice(HOSTILE))}, ', 1).encode("utf-8", "replace")
    else:
        holder[key] = random.choice(HOSTILE)
    return json.dumps(value).encode()


def _places(value: Any):
    """Yield (container, key) of every value inside JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield value, key
        yield from _places(entry)


def mutated_safetensors(data: bytes, random: Random) -> bytes:
    """Change the header's JSON, which keeps its length, or any bytes."""
    if random.random() < 0.5:
        return mutated(data, random)
    length = int.from_bytes(data[:8], "little")
    header = mutated_json(data[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """Read a safetensors file of float32 tensors by its definition, independently of its library."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32", entry
        first, last = entry["data_offsets"]
        found[name] = torch.from_numpy(np.frombuffer(body[first:last], "<f4").reshape(entry["shape"]).copy())
    return found
