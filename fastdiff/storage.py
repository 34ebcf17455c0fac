"""Folders of JSON and tensors on disk, written whole or not at all, and checked when they are read.

A folder holds its files and ``manifest.json`` with their sizes and CRC-32. It is staged under a temporary name beside
its target, synchronised to the disk, and renamed; readers check every file against the manifest. No pickle anywhere.
"""

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

MANIFEST = "manifest.json"
FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint folder that is missing, incomplete, damaged, or does not fit what it is loaded into."""


def write_folder(path: str | Path, files: Mapping[str, Mapping[str, Tensor] | dict[str, Any]]) -> Path:
    """Write a folder atomically: ``*.json`` entries from plain JSON types, ``*.safetensors`` entries from tensors.

    A checkpoint that stood at ``path`` is replaced; a crash at any moment leaves the old one or the new one, for
    `recover`, which every reader and writer calls first.

    Raises:
        CheckpointError: ``path`` exists and is no checkpoint folder, or the disk refuses the files.
    """
    path = Path(path)
    recover(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} exists and is no checkpoint folder; allowed: a new path, or a checkpoint to replace"
        )
    payload = {name: _encode(name, content) for name, content in files.items()}
    manifest = {name: {"bytes": len(data), "crc32": zlib.crc32(data)} for name, data in payload.items()}
    payload[MANIFEST] = _encode(
        MANIFEST, {"format": FORMAT, "files": manifest}
    )  # last: a folder without it is incomplete
    staging = path.parent / f".tmp-{path.name}-{secrets.token_hex(4)}"
    try:
        staging.mkdir(parents=True)
        for name, data in payload.items():
            _write_synced(staging / name, data)
        _sync_directory(staging)
        _swap(staging, path)
    except OSError as error:
        needed = sum(map(len, payload.values()))
        raise CheckpointError(f"cannot write {path} ({needed} bytes): {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return path


def read_folder(path: str | Path) -> dict[str, Any]:
    """Read a folder back: name to parsed JSON, or to a dict of tensors.

    Raises:
        CheckpointError: a file that is missing, truncated, altered or unreadable, by name.
    """
    path = Path(path)
    recover(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; allowed: a checkpoint folder, which holds {MANIFEST}")
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} holds no {MANIFEST}; allowed: a complete checkpoint folder")
    manifest = _parse(path / MANIFEST, (path / MANIFEST).read_bytes())
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise CheckpointError(f"{path / MANIFEST}: not a manifest of format {FORMAT}")
    strange = [name for name in manifest["files"] if Path(name).name != name]
    if strange:
        raise CheckpointError(f"{path / MANIFEST} lists {strange[0]!r}; allowed: files of this folder")
    return {name: _read_checked(path / name, entry) for name, entry in manifest["files"].items()}


def sweep(parent: Path) -> None:
    """Remove what interrupted writes left in a folder: only names that this module makes."""
    for orphan in parent.glob(".tmp-*-????????"):
        shutil.rmtree(orphan, ignore_errors=True)


def check_state(where: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that tensors read from a file fit a model: names, shapes, dtypes, finite values.

    Raises:
        CheckpointError: listing everything that does not fit.
    """
    problems = [f"missing tensor {name}" for name in expected if name not in given]
    problems += [f"unknown tensor {name}" for name in given if name not in expected]
    for name, tensor in expected.items():
        if name not in given:
            continue
        value = given[name]
        if value.shape != tensor.shape:
            problems.append(f"{name} has shape {tuple(value.shape)}, allowed: {tuple(tensor.shape)}")
        elif value.dtype != tensor.dtype:
            problems.append(f"{name} has dtype {value.dtype}, allowed: {tensor.dtype}")
        elif value.is_floating_point() and not torch.isfinite(value).all():
            problems.append(f"{name} holds values that are not finite")
    if problems:
        raise CheckpointError(f"{where}: " + "; ".join(problems))


def _encode(name: str, content: Mapping[str, Any]) -> bytes:
    if name.endswith(".safetensors"):
        # clone: tensors that share memory are refused by the format, and strides are not part of it
        contiguous = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in content.items()
        }
        return tensors_to_bytes(contiguous)
    return (json.dumps(content, indent=2) + "\n").encode()


def _parse(path: Path, data: bytes) -> Any:
    try:
        return tensors_from_bytes(data) if path.suffix == ".safetensors" else json.loads(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_checked(path: Path, entry: Any) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; allowed: every file that {MANIFEST} lists")
    data = path.read_bytes()
    if not isinstance(entry, dict) or len(data) != entry.get("bytes"):
        raise CheckpointError(f"{path} holds {len(data)} bytes; {MANIFEST} says {entry}")
    if zlib.crc32(data) != entry.get("crc32"):
        raise CheckpointError(f"{path} is damaged: its checksum is not the one in {MANIFEST}")
    return _parse(path, data)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name != "posix":  # a directory cannot be opened elsewhere
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def recover(path: Path) -> None:
    """Finish what a death in the middle of a replacement left: put the old folder back where nothing stands."""
    old = _aside(path)
    if old.is_dir() and not path.exists():
        os.rename(old, path)


def _aside(path: Path) -> Path:
    return path.parent / f".old-{path.name}"


def _swap(staging: Path, path: Path) -> None:
    """Rename ``staging`` to ``path``; what stood there is moved aside first, under a name that `recover` knows."""
    old = _aside(path)
    shutil.rmtree(old, ignore_errors=True)
    replaced = path.exists()
    if replaced:
        os.rename(path, old)
    try:
        os.rename(staging, path)
    except OSError:
        recover(path)
        raise
    _sync_directory(path.parent)
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
