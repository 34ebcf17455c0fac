"""How few calls of the network are enough? FD-digits of the embedded model by sampler, spacing and number of calls.

    python benchmarks/studies/few_calls.py          # writes docs/few-calls.json, .md and .png

Every setting draws 1,500 images with each of the sampling seeds 0, 1 and 2. Results are kept in runs/few-calls, and an
interrupted study is resumed by the same command. The times of the spacing "model" come with the embedded model and were
searched on other seeds (`model_spacings`).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

SEEDS = (0, 1, 2)
IMAGES, BATCH_SIZE = 1500, 250
REFERENCE = 250  # calls of ancestral sampling
FEW, MORE, ALL = (5, 10), (5, 10, 15, 25), (5, 10, 15, 25, 50)
Setting = tuple[str, dict[str, Any], tuple[int, ...]]  # name of the sampler, its options, numbers of calls
KARRAS, KARRAS_3 = {"spacing": "karras"}, {"spacing": "karras", "rho": 3.0}
SETTINGS: dict[str, Setting] = {
    "unipc, model": ("unipc", {"spacing": "model"}, (5, 10)),
    "unipc": ("unipc", {}, ALL),
    "unipc, karras": ("unipc", KARRAS, MORE),
    "unipc, karras 3": ("unipc", KARRAS_3, (5, 10, 15)),
    "dpm-solver": ("dpm-solver", {}, ALL),
    "dpm-solver, karras": ("dpm-solver", KARRAS, FEW),
    "deis": ("deis", {}, MORE),
    "deis, karras": ("deis", KARRAS, FEW),
    "ddim": ("ddim", {}, ALL),
    "heun": ("heun", {}, MORE),
    "heun, karras": ("heun", KARRAS, FEW),
    "ancestral": ("ancestral", {}, (*ALL, REFERENCE)),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not measured yet, and write the document."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the document (docs)")
    parser.add_argument("--runs", type=Path, default=Path("runs/few-calls"), help="folder of results (runs/few-calls)")
    parser.add_argument("--report", action="store_true", help="only write the document, of what is measured so far")
    options = parser.parse_args(arguments)
    from benchmarks.studies.few_calls_report import write_report

    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    rows = {
        name: {"sampler": sampler, "options": chosen, "calls": {}} for name, (sampler, chosen, _) in SETTINGS.items()
    }
    for calls in (*ALL, REFERENCE):
        for name, (_, _, counts) in SETTINGS.items():
            found = gather(name, calls, options.runs, options.report) if calls in counts else []
            if len(found) == len(SEEDS):
                rows[name]["calls"][str(calls)] = found
    results = {"images": IMAGES, "seeds": SEEDS, "rows": {name: row for name, row in rows.items() if row["calls"]}}
    (options.out / "few-calls.json").write_text(json.dumps(results) + "\n")
    write_report(json.loads(json.dumps(results)), options.out)


def gather(name: str, calls: int, runs: Path, stored: bool) -> list[list[float]]:
    """Return [FD-digits, its standard error] of every seed; with ``stored`` only of those that are measured already."""
    sampler, options, _ = SETTINGS[name]
    path = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{calls}.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    key = {"options": {**options, **own_times(options, sampler, calls)}, "images": IMAGES}
    found = content.get("found", []) if content.get("key") == json.loads(json.dumps(key)) else []
    for seed in SEEDS[len(found) :] if not stored else ():
        since = time.monotonic()
        found.append(measure(sampler, options, calls, seed))
        path.write_text(json.dumps({"key": key, "found": found}))
        print(f"{name}, {calls} calls, seed {seed}: {found[-1]}, {time.monotonic() - since:.0f} s", flush=True)
    return found


def own_times(options: dict[str, Any], sampler: str, calls: int) -> dict[str, Any]:
    """Return the model's own times where a setting uses them: results of other times are measured again."""
    from fastdiff import load

    if options.get("spacing") != "model":
        return {}
    model: Any = load("digits")
    return {"times": model.spacings.get(sampler, {}).get(calls)}


def measure(name: str, options: dict[str, Any], calls: int, seed: int) -> list[float]:
    """Return FD-digits of `IMAGES` samples, and its standard error."""
    from fastdiff import load, sample
    from fastdiff.diffusion import SAMPLERS
    from fastdiff.evaluation import fd_digits

    sampler = SAMPLERS[name](**options)
    steps = calls // sampler.calls_per_step
    images = sample(load("digits"), IMAGES, steps, sampler, seed, batch_size=BATCH_SIZE, output="levels")
    found = fd_digits(images)
    return [round(found.value, 4), round(found.standard_error, 4)]


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
