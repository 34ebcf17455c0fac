"""Folders of JSON and tensors on disk: written atomically, and verified when they are read.

A folder holds its files and ``manifest.json`` with their sizes and CRC-32. It is written under a temporary name beside
its target, synchronised to the disk, and renamed. Readers check every file against the manifest. No file is a pickle.
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
from fastdiff_kernels.errors import FastdiffError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

Json = dict[str, Any]  # an object of plain JSON types
Folder = dict[str, Any]  # the parsed files of a folder by name: JSON values, and tensors by name
MANIFEST = "manifest.json"
FORMAT = 1


class CheckpointError(FastdiffError, RuntimeError):
    """A checkpoint folder that is missing, incomplete, damaged, or does not fit what it is loaded into."""


def write_folder(path: str | Path, files: Mapping[str, Mapping[str, Tensor] | Json]) -> Path:
    """Write a folder atomically: ``*.json`` files from plain JSON types, ``*.safetensors`` files from tensors.

    A checkpoint at ``path`` is replaced. After a crash at any moment either the old or the new one is complete;
    `recover`, which every reader and writer calls first, moves it to ``path``.

    Raises:
        CheckpointError: ``path`` exists and is not a checkpoint folder, or the files cannot be written.
    """
    path = Path(path)
    recover(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} must be a new path or a checkpoint to replace, but something else is there")
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


def read_folder(path: str | Path) -> Folder:
    """Read a folder: parsed JSON, or a dictionary of tensors, by the name of the file.

    Raises:
        CheckpointError: a file is missing, truncated, altered or unreadable. The message names it.
    """
    path = Path(path)
    recover(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} must be a checkpoint folder, but there is no such folder")
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} must be a checkpoint folder, but it holds no {MANIFEST}")
    manifest = _parse(path / MANIFEST, (path / MANIFEST).read_bytes())
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise CheckpointError(f"{path / MANIFEST} must be a manifest of format {FORMAT}")
    strange = [name for name in manifest["files"] if Path(name).name != name]
    if strange:
        raise CheckpointError(f"{path / MANIFEST} must list files of this folder, got {strange[0]!r}")
    return {name: _read_checked(path / name, entry) for name, entry in manifest["files"].items()}


def sweep(parent: Path) -> None:
    """Remove the temporary folders of interrupted writes."""
    for orphan in parent.glob(".tmp-*-????????"):
        shutil.rmtree(orphan, ignore_errors=True)


def check_state(where: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that tensors fit a model: names, shapes, dtypes, finite values.

    Raises:
        CheckpointError: listing everything that does not fit.
    """
    problems = [f"missing tensor {name}" for name in expected if name not in state]
    problems += [f"unknown tensor {name}" for name in state if name not in expected]
    for name, tensor in expected.items():
        if name not in state:
            continue
        value = state[name]
        if value.shape != tensor.shape:
            problems.append(f"{name} must have shape {tuple(tensor.shape)}, got {tuple(value.shape)}")
        elif value.dtype != tensor.dtype:
            problems.append(f"{name} must have dtype {tensor.dtype}, got {value.dtype}")
        elif value.is_floating_point() and not torch.isfinite(value).all():
            problems.append(f"{name} must be finite")
    if problems:
        raise CheckpointError(f"{where}: " + "; ".join(problems))


def _encode(name: str, content: Mapping[str, Any]) -> bytes:
    if name.endswith(".safetensors"):
        # clone: the format has no strides and rejects tensors that share memory
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


def _read_checked(path: Path, entry: object) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, although {MANIFEST} lists it")
    data = path.read_bytes()
    if not isinstance(entry, dict) or len(data) != entry.get("bytes"):
        raise CheckpointError(f"{path} holds {len(data)} bytes, but {MANIFEST} lists {entry}")
    if zlib.crc32(data) != entry.get("crc32"):
        raise CheckpointError(f"{path} is damaged: its checksum differs from the one in {MANIFEST}")
    return _parse(path, data)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name != "posix":  # only POSIX opens directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def recover(path: Path) -> None:
    """Finish an interrupted replacement: move the old folder back if there is nothing at ``path``."""
    old = _aside(path)
    if old.is_dir() and not path.exists():
        os.rename(old, path)


def _aside(path: Path) -> Path:
    return path.parent / f".old-{path.name}"


def _swap(staging: Path, path: Path) -> None:
    """Rename ``staging`` to ``path``. A folder at ``path`` is first moved to the name that `recover` looks for."""
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
