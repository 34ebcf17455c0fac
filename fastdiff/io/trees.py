"""Folders in the layout of another library: nested, without a manifest, written so that none is seen half-written."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from . import files
from .folders import CheckpointError, Json, encode, replacing


def write_tree(path: str | Path, contents: Mapping[str, Mapping[str, Tensor] | Json]) -> Path:
    """Write a folder with files in it and in its subfolders.

    It is written beside its place under a temporary name and renamed. A folder that holds no other files than these is
    replaced; after a kill at any moment either the old or the new one is complete, at its place or beside it, where
    `fastdiff.io.folders.located` finds it.

    Args:
        path: the folder.
        contents: by their paths in the folder, with "/": ``*.json`` files from plain JSON types, ``*.safetensors``
            files from tensors.

    Raises:
        CheckpointError: something else is at ``path``, or the files cannot be written. The message names the path, the
            bytes needed and the bytes free.
    """
    path = Path(path)
    target = files.followed(path)
    payload = {name: encode(name, content) for name, content in contents.items()}
    with replacing(path, sum(map(len, payload.values()))) as staging:
        others = sorted(_names(target) - set(payload)) if os.path.isdir(target) else []
        if others or (os.path.lexists(target) and not os.path.isdir(target)):
            found = f"a folder with {others[0]}" if others else "a file"
            raise CheckpointError(f"{path} must be a new path or a folder to replace of the same files, got {found}")
        for name, data in payload.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            files.write_synced(staging / name, data)
        for folder, _, _ in os.walk(staging):
            files.sync_directory(Path(folder))
    return path


def _names(folder: Path) -> set[str]:
    """Return the paths of all files in a folder, with "/"."""
    found = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return {each.relative_to(folder).as_posix() for each in found}
