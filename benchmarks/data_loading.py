"""What training from a folder of 200,000 images takes: seconds to open it and to the first step, and memory.

    python benchmarks/data_loading.py [--images 200000] [--keep FOLDER] [--steps 100] [--out FILE.json]

The folder holds PNG files of 64×64 RGB, 4000 in each sub-folder, written by two processes; ``--keep`` makes it there,
or uses what is there. The measured command is a process of its own that opens the folder and trains a small VDM in
steps of 64 images, with two worker processes. Memory is the peak, over samples, of the sum of the proportional set
sizes (PSS) of the process and all its children: pages that processes share count once.

The bars: less than 1.5 GiB, and the first step within 20 seconds of the start of the process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIDE, PER_FOLDER, DISTINCT = 64, 4000, 256
BARS = {"first_step_s": 20.0, "peak_pss_mib": 1536.0}
INTERVAL = 0.2  # seconds between samples of memory

# The command that is measured: it trains a small model, and prints a line of JSON after the first step and at its end.
TRAIN = """
import json, sys, time
start = time.perf_counter()
import torch
from fastdiff.data import load_dataset
from fastdiff.models import model_of
from fastdiff.models.small import small_config
from fastdiff.training import TrainConfig, TrainState, train
imported = time.perf_counter()
data = load_dataset(sys.argv[1])
opened = time.perf_counter()
model = model_of(small_config("vdm", data.shape, data.levels, width=8, blocks=1))
config = TrainConfig(data=sys.argv[1], max_steps=int(sys.argv[2]), flip=0.5)
for report in train(TrainState(model, config), data, workers=2):
    if report.step == 1:
        first = time.perf_counter()
        print(json.dumps({"images": len(data.train_images) + len(data.test_images), "import_s": imported - start,
                          "open_s": opened - imported, "first_step_s": first - start}), flush=True)
images = config.batch_size * (config.max_steps - 1)
print(json.dumps({"images_per_s": images / (time.perf_counter() - first)}), flush=True)
"""


# ------------------------------------------------------------------------------------------------ the folder


def make_folder(folder: Path, images: int) -> None:
    """Write the images, those that are missing, in two processes."""
    folders = range(0, images, PER_FOLDER)
    halves = [Process(target=_write, args=(folder, folders[half::2], images)) for half in (0, 1)]
    for process in halves:
        process.start()
    for process in halves:
        process.join()
        if process.exitcode:
            raise SystemExit(f"the images could not be written to {folder}")


def _write(folder: Path, firsts: range, images: int) -> None:
    contents = _pictures()
    for first in firsts:
        part = folder / f"{first // PER_FOLDER:03}"
        part.mkdir(parents=True, exist_ok=True)
        for number in range(first, min(first + PER_FOLDER, images)):
            content = contents[number % DISTINCT]
            with open(part / f"{number:07}.png", "wb") as file:  # the files differ, by bytes behind the picture's end
                file.write(content + number.to_bytes(4, "little"))


def _pictures() -> list[bytes]:
    """PNG files of smooth pictures with some noise, about 8 kB each."""
    import io

    import numpy as np
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (smooth + rng.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "png")
        found.append(file.getvalue())
    return found


# ------------------------------------------------------------------------------------------------ measuring


def measure(command: list[str]) -> dict[str, Any]:
    """Run a command; return what it prints as lines of JSON, its seconds, and the peak memory of its process tree."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    start, peak = time.perf_counter(), (0.0, 0)
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, env=environment)
        while process.poll() is None:
            peak = max(peak, tree_pss(process.pid))
            time.sleep(INTERVAL)
        if process.returncode:
            raise SystemExit(f"the command failed with exit code {process.returncode}")
        out.seek(0)
        lines = [json.loads(line) for line in out if line.startswith("{")]
    found: dict[str, Any] = {"seconds": time.perf_counter() - start}
    for line in lines:
        found |= line
    return found | {"peak_pss_mib": peak[0], "processes": peak[1]}


def tree_pss(root: int) -> tuple[float, int]:
    """Return the PSS in MiB of a process and all its descendants, and their number."""
    total, found, pending = 0, 0, [root]
    while pending:
        process = pending.pop()
        try:
            for task in Path(f"/proc/{process}/task").iterdir():
                pending += map(int, (task / "children").read_text().split())
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except (OSError, ValueError):  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        found += 1
    return total / 1024, found


def main() -> None:
    """Make the folder, measure, print the table; exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, help="files in the folder")
    parser.add_argument("--steps", type=int, default=100, help="steps of 64 images")
    parser.add_argument("--keep", type=Path, help="folder to make or to use, which stays")
    parser.add_argument("--out", type=Path, help="file to write, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        start = time.perf_counter()
        if not folder.is_dir() or not any(folder.iterdir()):
            make_folder(folder, options.images)
        made = time.perf_counter() - start
        found = measure([sys.executable, "-c", TRAIN, str(folder), str(options.steps)])
    missed = [name for name, bar in BARS.items() if found[name] > bar]
    print(f"made in {made:.1f} s")
    for name, value in found.items():
        bar = f"  (at most {BARS[name]:,.0f})" if name in BARS else ""
        print(f"{name:>14}  {value:>10,.2f}{bar}{'  MISSED' if name in missed else ''}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
