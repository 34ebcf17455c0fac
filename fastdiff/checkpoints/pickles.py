"""Files that cannot be loaded as they are: pickles, which run programs when they are read, and single files of weights.

fastdiff reads no pickle, not even with a restricted unpickler. The error holds the command that converts one.
"""

import os
import shlex
import zipfile
from contextlib import suppress
from pathlib import Path

from ..io.folders import CheckpointError

SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"})  # under which PyTorch's pickles go
PROTOCOLS = range(2, 6)  # of pickles that begin with their protocol; torch.save writes 2

# weights_only=True runs no program. Weights may be nested, the averaged ones beside the others; clone, since
# safetensors rejects tensors that share memory, such as tied weights.
CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    's = torch.load(sys.argv[1], map_location="cpu", weights_only=True); '
    's = next((s[k] for k in ("ema", "ema_state_dict", "state_dict", "model") if isinstance(s.get(k), dict)), s); '
    "save_file({k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}, sys.argv[2])"
)


def check_no_pickle(path: str | Path) -> None:
    """Check that a file is no pickle, by the end of its name and by its first bytes; nothing is unpickled.

    Args:
        path: a file; or a folder, of which a pickle is reported only where no ``.safetensors`` file lies beside it. A
            path where there is nothing passes.

    Raises:
        CheckpointError: it is a pickle. The message holds a command that converts it to safetensors.
    """
    path = Path(path)
    if os.path.isdir(path):
        found = sorted(entry for entry in _files_of(path) if is_pickle(entry))
        if not found or any(entry.suffix == ".safetensors" for entry in set(_files_of(path)) - set(found)):
            return
        path = found[0]
    elif not is_pickle(path):
        return
    command = shlex.join(["python", "-c", CONVERT, str(path), str(path.with_suffix(".safetensors"))])
    raise CheckpointError(
        f"{path} must be a safetensors file, but it is a pickle, which can run any program when it is read. Convert it "
        f"where you trust it, and load the result:\n    {command}"
    )


def is_pickle(path: Path) -> bool:
    """Return whether a path is a file that is a pickle, or an archive with one, by its name or its first bytes."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return path.suffix.lower() in SUFFIXES
    if _is_safetensors(path, start):  # whose first bytes, the length of its header, may look like those of a pickle
        return False
    if path.suffix.lower() in SUFFIXES or (start[:1] == b"\x80" and start[1:2] and start[1] in PROTOCOLS):
        return True
    return start.startswith(b"PK") and _holds_pickle(path)


def check_no_single_file(path: str | Path) -> None:
    """Check that a path is not a single file where a folder is wanted.

    Raises:
        CheckpointError: it is a file; the message says what reads such a file.
    """
    path = Path(path)
    if not os.path.isfile(path):
        return
    check_no_pickle(path)
    if path.suffix.lower() in (".safetensors", ".npz"):
        raise CheckpointError(
            f"model must be a folder with a configuration beside the weights, got the file {path}. Give the folder of "
            "a fastdiff or a diffusers checkpoint; weights of improved-diffusion are read by "
            "fastdiff.interop.load_improved_diffusion(file), those of the official VDM by "
            "fastdiff.interop.load_vdm(file)"
        )
    raise CheckpointError(f"model must be the folder of a checkpoint or of a run, got the file {path}")


def _files_of(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [folder / name for name in os.listdir(folder)]
    return []


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Return whether a file begins with the length of a JSON object that it holds."""
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + length <= os.path.getsize(path)


def _holds_pickle(path: Path) -> bool:
    """Return whether a zip archive is one of torch.save, which holds a pickle beside the tensors' bytes."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith(".pkl") for name in archive.namelist())
    return False
