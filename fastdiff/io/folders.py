"""Folders of JSON and tensors on disk: written atomically, and verified when they are read.

A folder holds its files and ``manifest.json`` with their sizes and CRC-32. It is written under a temporary name beside
its target, synchronised to the disk, and renamed. Readers check every file against the manifest, change nothing on the
disk, and read again what was replaced while they read it. No file is a pickle.

Other files may lie beside them, such as those of a repository: readers ignore them, and writers keep them. The card,
``README.md``, is written with a folder and stands outside of the checksums, so that it may be edited.
"""

import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastdiff_kernels.errors import FastdiffError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from . import files
from .files import ASIDE

Json = dict[str, Any]  # an object of plain JSON types
Folder = dict[str, Any]  # the parsed files of a folder by name: JSON values, and tensors by name
MANIFEST, CARD = "manifest.json", "README.md"
OWN = frozenset(  # what fastdiff writes, where a manifest does not say it
    {"config.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
)
CLONE = frozenset({".git", ".gitattributes", ".gitignore", CARD})  # of a repository without a checkpoint
LFS = b"version https://git-lfs"  # begins the text that stands for a file which Git LFS has not fetched
FORMAT = 1  # of the manifest and of the tensors; readers reject a higher one
METADATA = {"format": "pt", "fastdiff": str(FORMAT)}  # of safetensors files; other libraries look for the first
SIGNED = re.compile(rb"(.*)<!-- fastdiff ([0-9a-f]{8}) -->\n", re.DOTALL)  # a card as it was written
MAX_DEPTH = 64  # of nested JSON
ATTEMPTS, PAUSE = 5, 0.02  # readings of a folder that a writer replaces, and the seconds between them


class CheckpointError(FastdiffError, RuntimeError):
    """A checkpoint folder that is missing, incomplete, damaged, or does not fit what it is loaded into."""


def write_folder(
    path: str | Path, contents: Mapping[str, Mapping[str, Tensor] | Json], card: str | None = None
) -> Path:
    """Write a folder atomically: ``*.json`` files from plain JSON types, ``*.safetensors`` files from tensors.

    A checkpoint at ``path`` is replaced; through a symbolic link, the one that it points to. After a crash at any
    moment either the old or the new one is complete, and `read_folder` finds it. Other files in the folder stay.

    Args:
        path: the folder. It may be new, a checkpoint to replace, empty, or a clone of a repository without more than
            .git, .gitattributes, .gitignore and README.md, such as a new one of a hub.
        contents: JSON and tensors by the name of the file.
        card: text of README.md. A README.md that was edited, or is not from an earlier writing, stays as it is.

    Raises:
        CheckpointError: something else is at ``path``, or the files cannot be written. The message
            names the path, the bytes needed and the bytes free.
    """
    path = Path(path)
    target = files.followed(path)
    payload = {name: encode(name, content) for name, content in contents.items()}
    manifest = {name: {"bytes": len(data), "crc32": zlib.crc32(data)} for name, data in payload.items()}
    if card is not None:
        payload[CARD] = _signed(card)
    payload[MANIFEST] = encode(
        MANIFEST, {"format": FORMAT, "files": manifest}
    )  # last: a folder without it is incomplete
    with replacing(path, sum(map(len, payload.values()))) as staging:
        if os.path.lexists(target) and not is_complete(target) and not _is_free(target):
            raise CheckpointError(
                f"{path} must be a new path, an empty folder, a clone of an empty repository or a checkpoint to "
                "replace, but something else is there"
            )
        staging.mkdir(parents=True)
        kept = _others(target)
        for name, data in payload.items():
            if name != CARD or CARD not in kept:
                files.write_synced(staging / name, data)
        for name in kept - set(payload) | kept & {CARD}:
            files.link(target / name, staging / name)
        files.sync_directory(staging)
    return path


@contextmanager
def replacing(path: Path, needed: int) -> Iterator[Path]:
    """Yield a temporary path beside a folder's, whose folder takes its place at the end; ``needed`` bytes are written.

    Raises:
        CheckpointError: it cannot be written. The message names the path, the bytes needed and the bytes free.
    """
    target = files.followed(path)
    staging = files.temporary_beside(target)
    try:
        recover(target)
        yield staging
        _swap(staging, target)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise CheckpointError(files.cannot_write(path, needed, error)) from error
    finally:
        files.discard(staging)
    files.discard_abandoned(target)


def has_edited_card(path: str | Path) -> bool:
    """Return whether `write_folder` to a path would keep the README.md there, which is not as it was written."""
    return CARD in _others(files.followed(Path(path)))


def is_complete(path: Path) -> bool:
    """Return whether a path is a folder whose writing was finished."""
    return os.path.isfile(path / MANIFEST)


def _is_free(path: Path) -> bool:
    """Return whether a path is a folder with nothing that a checkpoint must not be mixed with."""
    return os.path.isdir(path) and set(os.listdir(path)) <= CLONE and not os.path.isdir(path / CARD)


def read_folder(path: str | Path) -> Folder:
    """Read a folder: parsed JSON, or a dictionary of tensors, by the name of the file.

    A folder that is replaced while it is read is read again.

    Raises:
        CheckpointError: a file is missing, truncated, altered or unreadable. The message names it.
    """
    return {name: _parse(file, data) for name, (file, data) in _read_bytes(Path(path)).items()}


def read_file(path: Path) -> Any:
    """Read one file that no manifest lists: parsed JSON, or a dictionary of tensors, by the end of its name.

    Raises:
        CheckpointError: it is missing, truncated or unreadable. The message names it.
    """
    return _parse(path, _bytes_of(path))


def check_folder(path: Path) -> None:
    """Check every file of a folder against the manifest, as `read_folder` does.

    Raises:
        CheckpointError: as `read_folder`.
    """
    _read_bytes(path)


def exists(path: Path) -> bool:
    """Return whether there is a folder at a path, or was until a replacement that was interrupted or is under way."""
    return os.path.isdir(located(path))


def sweep(parent: Path) -> None:
    """Clear what killed writers left in a folder in which nobody else writes: finish or undo what they began.

    Files and folders that are not named as those of a writer are left alone.
    """
    try:
        names = os.listdir(parent)
    except OSError:
        return
    for name in names:
        if files.is_temporary(name):
            files.discard(parent / name)
        elif name.startswith(ASIDE) and is_complete(parent / name):
            path = parent / name.removeprefix(ASIDE)
            if os.path.lexists(path):
                files.remove(parent / name)
            else:
                recover(path)


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


def encode(name: str, content: Mapping[str, Any]) -> bytes:
    """Return a file: JSON from plain JSON types, or a safetensors file from tensors, by the end of its name."""
    if name.endswith(".safetensors"):
        # clone: the format has no strides and rejects tensors that share memory
        contiguous = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in content.items()
        }
        return _with_metadata(tensors_to_bytes(contiguous))
    return (json.dumps(content, indent=2) + "\n").encode()


def _with_metadata(data: bytes) -> bytes:
    """Return a safetensors file with `METADATA` in its header. safetensors itself writes entries in random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": METADATA} | json.loads(data[8 : 8 + length]), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8, as the format asks for
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(data)[8 + length :]])


def check_no_pointer(path: Path, start: bytes) -> None:
    """Check by its first bytes that a file is not what stands for one that Git LFS has not fetched.

    Raises:
        CheckpointError: it is.
    """
    if start.startswith(LFS):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS, and the file itself is missing: run git lfs pull in {path.parent}"
        )


def _parse(path: Path, data: bytes) -> Any:
    check_no_pointer(path, data)
    try:
        if path.suffix == ".safetensors":
            tensors = tensors_from_bytes(data)
            _check_version(path, _metadata(data).get("fastdiff", "1"))
            return tensors
        value = json.loads(data)
        if _is_deeper(value, MAX_DEPTH):
            raise ValueError(f"more than {MAX_DEPTH} values are nested")
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return value


def _metadata(data: bytes) -> Json:
    """Return the metadata in the header of a valid safetensors file; earlier versions of fastdiff wrote none."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def _check_version(path: Path, version: object) -> None:
    """Raise a CheckpointError for a format that only a later version of fastdiff reads."""
    if not str(version).isdecimal() or int(str(version)) > FORMAT:
        raise CheckpointError(
            f"{path} must be of a format up to {FORMAT}, got format {version!r}: it was written by a later version of "
            "fastdiff; update fastdiff to read it"
        )


def _is_deeper(value: object, limit: int) -> bool:
    """Return whether JSON has more than ``limit`` levels. Level by level, since recursion itself has a limit."""
    level = [value]
    for _ in range(limit + 1):
        below = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [entry for entries in below for entry in entries]
        if not level:
            return False
    return True


def _read_bytes(path: Path) -> dict[str, tuple[Path, bytes]]:
    """Return the files of a folder by name, each with its path and its bytes, checked against the manifest."""
    for attempt in range(ATTEMPTS):
        before = _identity(path)
        try:
            return _read_checked(located(path) if before is None else path)
        except CheckpointError:
            if _identity(path) == before or attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE)
    raise AssertionError("unreachable")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes the folder at a path from another one that replaces it; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns


def _read_checked(path: Path) -> dict[str, tuple[Path, bytes]]:
    if not os.path.isdir(path):
        raise CheckpointError(f"{path} must be a checkpoint folder, but there is no such folder")
    if not is_complete(path):
        raise CheckpointError(f"{path} must be a checkpoint folder, but it holds no {MANIFEST}")
    manifest = _parse(path / MANIFEST, _bytes_of(path / MANIFEST))
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(version, int):
        _check_version(path / MANIFEST, version)
    entries = manifest["files"] if version == FORMAT and "files" in manifest else None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path / MANIFEST} must be a manifest of format {FORMAT}")
    strange = [name for name in entries if Path(name).name != name]
    if strange:
        raise CheckpointError(f"{path / MANIFEST} must list files of this folder, got {strange[0]!r}")
    return {name: (path / name, _checked(path / name, entry)) for name, entry in entries.items()}


def _checked(path: Path, entry: object) -> bytes:
    if not os.path.isfile(path):
        raise CheckpointError(f"{path} is missing, although {MANIFEST} lists it")
    data = _bytes_of(path)
    check_no_pointer(path, data)
    if not isinstance(entry, dict) or len(data) != entry.get("bytes"):
        raise CheckpointError(f"{path} holds {len(data)} bytes, but {MANIFEST} lists {entry}")
    if zlib.crc32(data) != entry.get("crc32"):
        raise CheckpointError(f"{path} is damaged: its checksum differs from the one in {MANIFEST}")
    return data


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _others(path: Path) -> set[str]:
    """Return the names in a folder that are not its checkpoint's: the card only if it was edited."""
    try:
        names = set(os.listdir(path))
    except OSError:
        return set()
    try:
        own = set(json.loads((path / MANIFEST).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # damaged, or there is none
        own = OWN
    card = {CARD} if CARD in names and _is_as_written(_bytes_of(path / CARD)) else set()
    return names - own - card - {MANIFEST}


def _signed(card: str) -> bytes:
    """Return the content of a card's file: the text, and its checksum in a comment, to tell an edited card."""
    text = card.encode()
    return text + b"<!-- fastdiff %08x -->\n" % zlib.crc32(text)


def _is_as_written(content: bytes) -> bool:
    found = SIGNED.fullmatch(content)
    return found is not None and zlib.crc32(found[1]) == int(found[2], 16)


def recover(path: Path) -> None:
    """Finish an interrupted replacement: move the old folder back if there is nothing at ``path``. For writers only."""
    path = files.followed(path)
    old = _aside(path)
    if os.path.isdir(old) and not os.path.lexists(path):
        os.rename(old, path)


def located(path: Path) -> Path:
    """Return where the folder of a path is: there, or beside it while it is replaced."""
    path = files.followed(path)
    old = _aside(path)
    return old if not os.path.lexists(path) and os.path.isdir(old) else path


def _aside(path: Path) -> Path:
    return path.parent / f"{ASIDE}{path.name}"


def _swap(staging: Path, path: Path) -> None:
    """Rename ``staging`` to ``path``. A folder at ``path`` is first moved to the name that `recover` looks for."""
    old = _aside(path)
    if os.path.lexists(old):
        files.remove(old)
    replaced = os.path.lexists(path)
    if replaced:
        os.rename(path, old)
    try:
        os.rename(staging, path)
    except BaseException:
        recover(path)
        raise
    files.sync_directory(path.parent)
    if replaced:
        files.remove(old)
