"""The image files below a folder: found, sorted and measured, and not opened."""

import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from tqdm import tqdm

from .errors import DataError
from .paths import PathList

UNDECODABLE = ("BUFR", "GRIB", "HDF5", "MPEG")  # Pillow knows the formats' names and no more
BAR_FROM, BAR_DELAY = 1000, 2.0  # a bar appears from so many files on, if listing them takes more seconds than this


@dataclass
class Listing:
    """The image files below a folder, sorted by path, folder by folder.

    paths: relative to the folder. sizes, times: int64 [N], bytes and nanoseconds of the last change. irregular: paths
    that have an image's name and are no files, with what is wrong. ignored: number of other files.
    """

    paths: PathList
    sizes: np.ndarray
    times: np.ndarray
    irregular: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.paths)


@cache
def image_extensions() -> frozenset[str]:
    """Extensions of the image formats that Pillow knows, in lower case, with the dot."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(ending for ending, name in known if name in Image.OPEN and name not in UNDECODABLE)


def list_images(root: str) -> Listing:
    """Find all files below a folder whose extension is that of an image.

    Names that begin with a dot are ignored, folders too. Links are followed.

    Raises:
        DataError: a folder that cannot be read, or a link to a folder that holds it.
    """
    extensions, prefix = image_extensions(), len(os.path.join(root, ""))
    names, sizes, times = [], array("q"), array("q")
    found = Listing(PathList.of([]), np.empty(0, np.int64), np.empty(0, np.int64))
    with tqdm(desc=f"listing {os.path.basename(root)}", unit="file", delay=BAR_DELAY) as bar:
        for entry in _files(root):
            if os.path.splitext(entry.name)[1].lower() not in extensions:
                found.ignored += 1
                continue
            try:
                status = entry.stat()
            except OSError as error:  # a link to nothing
                found.irregular.append((entry.path, f"cannot be read: {error.strerror}"))
                continue
            if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for a writer
                found.irregular.append((entry.path, "must be a regular file"))
                continue
            names.append(os.fsencode(entry.path[prefix:]))
            sizes.append(status.st_size)
            times.append(status.st_mtime_ns)
            if len(names) % BAR_FROM == 0:
                bar.update(BAR_FROM)
    found.paths = PathList.of(names)
    found.sizes, found.times = np.array(sizes, np.int64), np.array(times, np.int64)
    return found


def _files(root: str) -> Iterator[os.DirEntry[str]]:
    """Entries below a folder that are not folders: the entries of every folder by name, a folder's own in its place."""
    status = os.stat(root)
    pending, above = [iter(_entries(root))], [(status.st_dev, status.st_ino)]
    while pending:  # a stack, since hostile folders can be deeper than Python's recursion
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            above.pop()
        elif _is_folder(entry):
            status = entry.stat()
            if (status.st_dev, status.st_ino) in above:
                raise DataError(f"{entry.path} must not be a link to a folder that holds it")
            pending.append(iter(_entries(entry.path)))
            above.append((status.st_dev, status.st_ino))
        else:
            yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Entries of a folder, sorted by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
