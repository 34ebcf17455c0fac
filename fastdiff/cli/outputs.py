"""Where ``sample`` writes: a picture, an ``.npz`` file or a folder, by the name and the flags."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fastdiff_kernels.errors import InvalidValueError

from .arguments import check_parent, check_picture

PIECE = 1000
ALLOWED = "--out must be a picture (samples.png), an .npz file (samples.npz) or a folder (samples/)"


@dataclass(frozen=True)
class Output:
    """What is written, ``"picture"``, ``"npz"`` or ``"folder"``, and where; the rest is for a folder."""

    kind: str
    path: Path
    format: str = "png"
    piece: int = PIECE
    shard: tuple[int, int] = (1, 1)


def output_of(out: str | None, format: str | None, piece: int | None, shard: str | None) -> Output:
    """Return what the flags ask for. A path is a folder if it ends in a slash, is one already, or ``format`` says so.

    Raises:
        InvalidValueError: a path that is nothing of these, or cannot be written; flags that do not fit it.
    """
    for_folder = {"--format": format, "--piece": piece, "--shard": shard}
    flags = [name for name, value in for_folder.items() if value is not None]
    if out is None:
        out = "samples/" if flags else "samples.png"
    path, suffix = Path(out), Path(out).suffix.lower()
    is_folder = out.endswith(("/", os.sep)) or os.path.isdir(out)
    if is_folder or (format is not None and not suffix):
        if piece is not None and piece < 1:
            raise InvalidValueError(f"--piece must be an integer >= 1, got {piece}")
        return Output("folder", path, format or "png", piece or PIECE, _shard(shard))
    if not is_picture(suffix) and suffix != ".npz":
        raise InvalidValueError(f"{ALLOWED}, got {out}")
    if flags:
        raise InvalidValueError(f"{flags[0]} is for a folder, such as --out samples/, got --out {out}")
    if suffix != ".npz":
        check_picture(path)
    else:
        check_parent(path)
    return Output("npz" if suffix == ".npz" else "picture", path)


def is_picture(suffix: str) -> bool:
    """Return whether a name with this suffix is that of a picture."""
    from PIL import Image

    return suffix in Image.registered_extensions()


def _shard(text: str | None) -> tuple[int, int]:
    """Read ``2/8``."""
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    k, shards = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= k <= shards:
        raise InvalidValueError(f"--shard must be k/K with 1 <= k <= K, such as 2/8, got {text!r}")
    return k, shards


def wrote(path: Path, count: int) -> str:
    """Return the line that says what was written."""
    return f"wrote {path} ({count} image{'' if count == 1 else 's'})"
