"""One trainer per folder: an advisory lock on the file ``.lock`` of the folder of a run.

The lock is the kernel's: it ends with the process that holds it, by kill -9 too, and a ``.lock`` that was left behind
locks nothing. The file is never removed, since another process may have opened it a moment ago. It holds the process
and the host of the trainer, for the message that a second one stops with, and is empty when nobody holds the lock.

On POSIX the lock is ``flock``. It belongs to the open file, which a forked process shares: a worker of a DataLoader
would keep it after the trainer's death, so every forked process closes its copy at once. (The other kind of lock,
``lockf``, belongs to the process, but is lost as soon as any code in it opens and closes the file, as a copy of the
folder does.) On Windows it is ``msvcrt.locking``, which child processes do not share.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import RunError

LOCK = ".lock"
_open: set[int] = set()  # descriptors of the lock files that this process has open


def _close_in_child() -> None:
    """Close the lock files in a forked process. The trainer's lock stays, as its own descriptor is still open."""
    while _open:
        with suppress(OSError):
            os.close(_open.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that exists. A file system without locks is used without one, with a warning.

    Raises:
        RunError: another training holds it, in this process or another one, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by programs that are started
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error}") from error
    _open.add(descriptor)
    owner = os.getpid()
    try:
        _acquire(descriptor, folder)
        _name(descriptor, {"pid": owner, "host": socket.gethostname()})
        try:
            yield
        finally:
            if os.getpid() == owner:
                _name(descriptor, None)
    finally:
        if descriptor in _open:  # a forked process has closed it already
            _open.remove(descriptor)
            os.close(descriptor)


def _name(descriptor: int, holder: dict[str, int | str] | None) -> None:
    """Write who holds the lock. On a full disk the lock holds without a name."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        if holder is not None:
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(holder).encode())


def _acquire(descriptor: int, folder: Path) -> None:
    try:
        _lock(descriptor)
    except (BlockingIOError, PermissionError) as error:
        raise RunError(f"{folder} is in use by another training ({_holder(folder / LOCK)})") from error
    except OSError as error:
        message = f"fastdiff: warning: {folder} cannot be locked ({error}); no other training may use it meanwhile"
        print(message, file=sys.stderr)


def _holder(path: Path) -> str:
    """Say which process a lock file names."""
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on host {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not written its name yet
        return f"process unknown, see {path}"


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # one byte beyond the text, which others must be able to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
