"""The rows of ``metrics.jsonl`` and pictures of samples for TensorBoard, where it is asked for: the extra ``log``."""

import sys
from pathlib import Path

from torch import Tensor

from ..io.extras import MissingPackageError
from ..io.folders import Json

FOLDER = "tensorboard"


class TensorBoard:
    """Writes into ``OUT/tensorboard``. What cannot be written is lost, with one warning, and ends no run.

    A resumed run hides what an earlier one wrote after ``step``, the step that it resumes from.

    Raises:
        MissingPackageError: tensorboard is not installed.
    """

    def __init__(self, out: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                f"tensorboard must be installed for this: pip install 'fastdiff-triton[log]' ({error})"
            ) from error
        self.path = out / FOLDER
        self._warned = False
        try:
            self._writer = SummaryWriter(str(self.path), purge_step=step + 1 if step else None)
        except OSError as error:
            self._writer = None
            self._warn(error)

    def write(self, row: Json) -> None:
        """Write a row of the metrics: its numbers as ``EVENT/NAME``, and each entry of its lists, at its step."""
        step, event = row["step"], row.get("event", "train")
        with _Tolerant(self):
            for name, value in row.items():
                for tag, number in _numbers(f"{event}/{name}", value):
                    if self._writer is not None and name not in ("step", "gamma_edges"):
                        self._writer.add_scalar(tag, number, step)

    def picture(self, image: Tensor, step: int, name: str = "samples") -> None:
        """Write a picture uint8 [C, H, W], such as a grid of samples."""
        with _Tolerant(self):
            if self._writer is not None:
                self._writer.add_image(name, image, step)
                self._writer.flush()

    def close(self) -> None:
        """Write what waits, and close the files."""
        with _Tolerant(self):
            if self._writer is not None:
                self._writer.close()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            print(f"fastdiff: warning: {self.path} cannot be written: {error}", file=sys.stderr)
        self._warned = True


class _Tolerant:
    """Turns an error of a disk into a warning; the writer's thread raises it at any later call."""

    def __init__(self, board: TensorBoard) -> None:
        self.board = board

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, OSError):
            return False
        self.board._warn(error)
        return True


def _numbers(tag: str, value: object) -> list[tuple[str, float]]:
    """Return the numbers of an entry with their tags; a list has one for each place."""
    if isinstance(value, list):
        return [pair for place, entry in enumerate(value) for pair in _numbers(f"{tag}/{place}", entry)]
    return [(tag, float(value))] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
