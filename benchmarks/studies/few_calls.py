"""How few calls of the network are enough? Fréchet distance of an embedded model by sampler, spacing and calls.

    python benchmarks/studies/few_calls.py                   # writes docs/few-calls.json, .md and .png
    python benchmarks/studies/few_calls.py --data letters    # writes docs/few-calls-letters.json and .png, and the .md

Every setting draws images with each of some sampling seeds, see `SCOPES`. Results are kept in runs/few-calls, and an
interrupted study is resumed by the same command. The times of the spacing "model" come with the embedded model of the
digits and were searched on other seeds (`model_spacings`).
"""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BATCH_SIZE = 250
REFERENCE = 250  # calls of ancestral sampling
FEW, MORE, ALL = (5, 10), (5, 10, 15, 25), (5, 10, 15, 25, 50)
Setting = tuple[str, dict[str, Any], tuple[int, ...]]  # name of the sampler, its options, numbers of calls
KARRAS, KARRAS_3 = {"spacing": "karras"}, {"spacing": "karras", "rho": 3.0}


@dataclass(frozen=True)
class Scope:
    """What the study measures on a data set.

    Args:
        images: number of samples per setting and seed.
        seeds: of the samples.
        reference_seeds: those of the reference, ancestral sampling with `REFERENCE` calls.
        settings: samplers with their options and numbers of calls, by name.
    """

    images: int
    seeds: tuple[int, ...]
    reference_seeds: tuple[int, ...]
    settings: dict[str, Setting]

    def seeds_of(self, calls: int) -> tuple[int, ...]:
        """Return the seeds of a number of calls."""
        return self.reference_seeds if calls == REFERENCE else self.seeds


SCOPES = {
    "digits": Scope(
        1500, (0, 1, 2), (0, 1, 2),
        {
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
        },
    ),
    "letters": Scope(  # 1,200 calls for all images, of which the reference's are 250: half an hour of one core
        1000, (0, 1), (0,),
        {
            "unipc": ("unipc", {}, ALL),
            "unipc, karras": ("unipc", KARRAS, FEW),
            "dpm-solver": ("dpm-solver", {}, (5, 10, 25)),
            "deis": ("deis", {}, (5, 10, 25)),
            "ddim": ("ddim", {}, ALL),
            "heun": ("heun", {}, (10, 25, 50)),
            "ancestral": ("ancestral", {}, (10, 25, 50, REFERENCE)),
        },
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not measured yet, and write the document."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", choices=SCOPES, default="digits", help="data set of the model (digits)")
    parser.add_argument("--model", help="folder of another model than the embedded one of the data set")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the document (docs)")
    parser.add_argument("--runs", type=Path, help="folder of results (runs/few-calls, runs/few-calls-letters)")
    parser.add_argument("--report", action="store_true", help="only write the document, of what is measured so far")
    options = parser.parse_args(arguments)
    from benchmarks.studies.data_sets import DATA_SETS
    from benchmarks.studies.few_calls_report import write_report
    from benchmarks.studies.study import results_of
    from fastdiff import load

    torch.set_num_threads(1)
    data, scope = DATA_SETS[options.data], SCOPES[options.data]
    runs = options.runs or Path("runs") / data.file("few-calls")
    runs.mkdir(parents=True, exist_ok=True)
    store = Store(load(options.model or options.data), data, scope, runs)
    if not options.report:
        store.measure()
    rows = {}
    for name, (sampler, chosen, counts) in scope.settings.items():
        found = {str(calls): store.read(name, calls) for calls in counts}
        done = {calls: values for calls, values in found.items() if len(values) == len(scope.seeds_of(int(calls)))}
        rows[name] = {"sampler": sampler, "options": chosen, "calls": done}
    results = {
        "images": scope.images,
        "seeds": scope.seeds,
        "rows": {k: row for k, row in rows.items() if row["calls"]},
    }
    if not rows["ancestral"]["calls"]:
        parser.error("--report needs the reference, ancestral sampling: measure it first")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{data.file('few-calls')}.json").write_text(json.dumps(results) + "\n")
    write_report(results_of("few-calls", options.out), options.out)


class Store:
    """The results of a model in a folder, one file per setting and number of calls.

    Args:
        model: the diffusion model.
        data: its `DataSet`.
        scope: the settings.
        folder: where the results are kept. Those of other weights, options, seeds or numbers of images are measured
            again.
    """

    def __init__(self, model: Any, data: Any, scope: Scope, folder: Path) -> None:
        self.model, self.data, self.scope, self.folder = model, data, scope, folder
        hashed = hashlib.blake2b(digest_size=8)
        for value in model.state_dict().values():
            hashed.update(value.numpy().tobytes())
        self.weights = hashed.hexdigest()

    def measure(self) -> None:
        """Measure what is not there, the fewest calls first; print what is found, and how long the rest takes."""
        from benchmarks.studies.progress import Progress

        counts = sorted({calls for _, _, counts in self.scope.settings.values() for calls in counts})
        waiting = {
            f"{name}, {calls} calls, seed {seed}": (name, calls, seed)
            for calls in counts
            for name, setting in self.scope.settings.items()
            if calls in setting[2]
            for seed in self.scope.seeds_of(calls)[len(self.read(name, calls)) :]
        }
        progress = Progress({title: float(calls) for title, (_, calls, _) in waiting.items()}, 1)
        if waiting:
            per_call = self.seconds_per_call() * self.scope.images / BATCH_SIZE
            print(f"{len(waiting)} sets of images take about {progress.minutes(per_call):.0f} minutes", flush=True)
        for title, (name, calls, seed) in waiting.items():
            since = time.monotonic()
            found = [*self.read(name, calls), self.distance(name, calls, seed)]
            seeds = self.scope.seeds_of(calls)[: len(found)]
            content = {"key": self._key(name, calls), "seeds": seeds, "found": found}
            self._path(name, calls).write_text(json.dumps(content))
            left = progress.done(title, time.monotonic() - since)
            print(f"{title}: {found[-1]}, about {left:.0f} minutes left", flush=True)

    def read(self, name: str, calls: int) -> list[list[float]]:
        """Return [distance, its standard error] of every seed that is measured already."""
        path = self._path(name, calls)
        content = json.loads(path.read_text()) if path.is_file() else {}
        found = content.get("found", [])
        seeds = list(self.scope.seeds_of(calls)[: len(found)])
        same = content.get("key") == self._key(name, calls) and content.get("seeds", seeds) == seeds
        return found if same else []

    def distance(self, name: str, calls: int, seed: int) -> list[float]:
        """Return the distance of the images of a setting, and its standard error."""
        from fastdiff import sample
        from fastdiff.diffusion import SAMPLERS

        kind, options, _ = self.scope.settings[name]
        sampler = SAMPLERS[kind](**options)
        steps = calls // sampler.calls_per_step
        images = sample(self.model, self.scope.images, steps, sampler, seed, batch_size=BATCH_SIZE, output="levels")
        found = self.data.fd(images)
        return [round(found.value, 4), round(found.standard_error, 4)]

    def seconds_per_call(self) -> float:
        """Return the seconds of one call of the network for `BATCH_SIZE` images."""
        from fastdiff import sample

        size = min(BATCH_SIZE, self.scope.images)
        sample(self.model, size, 1, "ddim", output="levels")
        since = time.monotonic()
        sample(self.model, size, 2, "ddim", output="levels")
        return 0.5 * (time.monotonic() - since)

    def _path(self, name: str, calls: int) -> Path:
        return self.folder / f"{name.replace(', ', '-').replace(' ', '-')}-{calls}.json"

    def _key(self, name: str, calls: int) -> Any:
        """Return what the results depend on; the model's own times where a setting uses them."""
        sampler, options, _ = self.scope.settings[name]
        own = {"times": self.model.spacings.get(sampler, {}).get(calls)} if options.get("spacing") == "model" else {}
        key = {"options": {**options, **own}, "images": self.scope.images, "weights": self.weights}
        return json.loads(json.dumps(key))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
