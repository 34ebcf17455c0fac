"""What the benchmarks found: rows, the table that a person looks at, and the JSON that is kept."""

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fastdiff

Json = dict[str, Any]
Quantiles = tuple[float, float, float]  # 20 %, 50 % and 80 % over the rounds
LEGEND = (
    "medians; ratio = the alternative's time over fastdiff's, round by round (20 % to 80 % of the rounds): "
    "above 1 fastdiff is faster",
    "GB/s = the fewest bytes the operation can move over fastdiff's time; of copy = a copy of as many bytes, "
    "timed in the same rounds, over fastdiff's time",
)


@dataclass(frozen=True)
class Row:
    """fastdiff against one alternative, in seconds.

    ratio: the alternative's time over fastdiff's, taken round by round. moved: bytes that the operation must move at
    least; share_of_copy: the time of a copy that moves as many, over fastdiff's. Both are None off the GPU.
    """

    operation: str
    case: str
    device: str
    dtype: str
    shape: tuple[int, ...]
    timing: str
    rounds: int
    fastdiff: Quantiles
    against: str
    alternative: Quantiles
    ratio: Quantiles
    moved: int | None
    share_of_copy: float | None


def quantiles(values: list[float]) -> Quantiles:
    """20 %, 50 % and 80 % quantiles."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(levels).tolist()
    return low, middle, high


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    try:
        triton_version = version("triton")
    except PackageNotFoundError:
        triton_version = None
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "fastdiff": fastdiff.__version__,
        "backend": fastdiff.backend(),
        "cpu": f"{_cpu()} ({os.cpu_count()} cores, {torch.get_num_threads()} threads used)",
        "platform": platform.platform(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["gpu"] = properties.name
        found["gpu_memory"] = properties.total_memory
        found["gpu_l2"] = properties.L2_cache_size
        found["gpu_capability"] = f"{properties.major}.{properties.minor}"
        found["cuda"] = torch.version.cuda
        found["tf32"] = os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
    return found


def device_name() -> str:
    """The GPU's name, or the CPU's cores, as a file's name."""
    if torch.cuda.is_available():
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"cpu-{os.cpu_count()}-cores"


def write_json(path: Path, rows: list[Row], quick: bool) -> None:
    """Merge rows, in seconds and bytes, with what they were measured on, into a file: see `merged`. Atomic."""
    new = {"machine": machine(), "quick": quick, "rows": [json.loads(json.dumps(asdict(row))) for row in rows]}
    merge_into(path, new)


def merge_into(path: Path, new: Json) -> None:
    """Replace a file by its merge with new results, or create it. A reader finds the old or the new file, whole."""
    content = merged(json.loads(path.read_text()), new) if path.exists() else merged(new, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def merged(old: Json, new: Json) -> Json:
    """Merge two contents of results, in a fixed order of rows. Of two rows for one measurement the new one stays.

    Results of another device, of other versions of torch or triton, or of a quick run do not mix: then the old ones go.
    """
    rows = {row_key(row): row for row in (*(old["rows"] if identity(old) == identity(new) else ()), *new["rows"])}
    return {**new, "rows": [rows[key] for key in sorted(rows)]}


def identity(content: Json) -> tuple:
    """What results must have in common to stand in one file."""
    found = content["machine"]
    return content["quick"], *(found.get(name) for name in ("gpu", "torch", "triton", "backend"))


def row_key(row: Json) -> tuple:
    """What a row measures: rows with equal keys are the same measurement."""
    names = ("device", "timing", "dtype", "operation", "case", "against")
    return (*(row[name] for name in names), tuple(row["shape"]))


def table(rows: list[Row]) -> list[str]:
    """Lay the rows out in columns."""
    head = ["operation", "case", "on", "dtype", "shape", "timing", "fastdiff", "against", "its time", "ratio", ""]
    wide = any(row.moved for row in rows)
    lines = [[*head, "GB/s", "of copy"] if wide else head, *(_cells(row, wide) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = {"fastdiff", "its time", "ratio", "GB/s", "of copy"}
    align = [str.rjust if name in right else str.ljust for name in lines[0]]
    return [
        "  ".join(place(*cell) for place, *cell in zip(align, line, widths, strict=True)).rstrip() for line in lines
    ]


def _cells(row: Row, wide: bool) -> list[str]:
    low, middle, high = row.ratio
    cells = [row.operation, row.case, row.device, row.dtype, "×".join(map(str, row.shape)), row.timing]
    cells += [
        _time(row.fastdiff[1]),
        row.against,
        _time(row.alternative[1]),
        f"{middle:.2f}",
        f"({low:.2f}–{high:.2f})",
    ]
    if not wide:
        return cells
    if row.moved is None or row.share_of_copy is None:
        return [*cells, "", ""]
    return [*cells, f"{1e-9 * row.moved / row.fastdiff[1]:.0f}", f"{row.share_of_copy:.0%}"]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _cpu() -> str:
    """The processor's name; Linux keeps it where `platform` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
