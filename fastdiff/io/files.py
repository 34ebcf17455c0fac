"""Single files and names on disk: written atomically and synchronised, with errors that name the path and the bytes."""

import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from fastdiff_kernels.errors import FastdiffError

TEMPORARY, ASIDE = ".tmp-", ".old-"  # prefixes: what is being written or removed; what is being replaced
ABANDONED = 3600.0  # seconds after which what is being written counts as left behind by a killed process


class WriteError(FastdiffError, RuntimeError):
    """A file that cannot be written, such as on a full disk."""


def write_atomically(path: str | Path, data: bytes) -> Path:
    """Write a file: at every moment the old one or the new one is complete. A symbolic link keeps pointing to it.

    Raises:
        WriteError: it cannot be written. The message names the path, the bytes needed and the bytes free.
    """
    path = Path(path)
    target = followed(path)
    temporary = temporary_beside(target)
    try:
        write_synced(temporary, data)
        os.replace(temporary, target)
        sync_directory(target.parent)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise WriteError(cannot_write(path, len(data), error)) from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink()
    return path


def cannot_write(path: Path, needed: int, error: Exception) -> str:
    """Say what cannot be written where, how large it is, and how much room there is."""
    return f"cannot write {path} ({needed} bytes{_room(path)}): {error}"


def _room(path: Path) -> str:
    """Say how many bytes are free on the disk of a path, of which the last folders may not exist yet."""
    for folder in path.absolute().parents:
        with suppress(OSError, ValueError):
            return f", {shutil.disk_usage(folder).free} bytes are free"
    return ""


def followed(path: Path) -> Path:
    """Return what a symbolic link points to, and any other path unchanged."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def temporary_beside(path: Path) -> Path:
    """Return a new name in the same folder for what will be at ``path``."""
    return path.parent / f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}"


def remove(path: Path) -> None:
    """Remove a folder or a file. A folder is never seen with a part of its files: it is renamed first."""
    doomed = temporary_beside(path)
    try:
        os.rename(path, doomed)
    except OSError:  # such as a name that is too long with more before it
        doomed = path
    discard(doomed)


def discard(path: Path) -> None:
    """Remove a folder or a file that nobody reads, as far as possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError, ValueError):
            os.unlink(path)


def link(source: Path, target: Path) -> None:
    """Make what is at ``source``, a file or a folder, be at ``target`` as well: by hard links where they are possible.

    Symbolic links stay links.
    """
    if os.path.isdir(source) and not os.path.islink(source):
        shutil.copytree(source, target, symlinks=True, copy_function=lambda a, b: link(Path(a), Path(b)))
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def is_temporary(name: str, of: str | None = None) -> bool:
    """Return whether a name is one of `temporary_beside`, of the path with the name ``of`` if that is given."""
    stem, _, token = name.rpartition("-")
    prefix = TEMPORARY if of is None else f"{TEMPORARY}{of}"
    fits = stem.startswith(prefix) if of is None else stem == prefix
    return fits and len(token) == 8 and set(token) <= set("0123456789abcdef")


def discard_abandoned(path: Path) -> None:
    """Remove what killed processes left beside ``path`` when they wrote it, an hour ago or earlier."""
    limit = time.time() - ABANDONED
    with suppress(OSError):
        for entry in os.scandir(path.parent):
            if is_temporary(entry.name, path.name) and entry.stat(follow_symlinks=False).st_mtime < limit:
                discard(Path(entry.path))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name != "posix":  # only POSIX opens directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
