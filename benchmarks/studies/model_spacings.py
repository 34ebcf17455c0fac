"""Search the times of a sampler of few calls that the embedded model brings (``model.spacings``).

    python benchmarks/studies/model_spacings.py search --calls 5,10      # writes docs/few-calls-times.json
    python benchmarks/studies/model_spacings.py ship --out fastdiff/assets/digits

The times of UniPC of order 3 are searched for the least FD-digits, the mean over the sampling seeds 100 and 101, and
checked on the seeds 102 to 105; the seeds 0, 1 and 2 that `few_calls` reports are not used. A spacing has four
parameters whatever its number of steps: the logarithms of the steps in t are a polynomial of degree 4 in the index, in
Legendre's basis. The search is a compass search: it tries one parameter after the other, larger and smaller, keeps what
is better, and halves its step where nothing is.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEARCHED, CHECKED = (100, 101), (102, 103, 104, 105)
IMAGES, BATCH_SIZE = 1500, 250
DEGREE = 4
FINE_STEPS = 100  # of the solution that the distance is measured from
DIGITS = 4  # decimal places of a time
SIZES = (0.4, 0.2, 0.1)
FINE: list[torch.Tensor] = []  # that solution, once it is computed


def times_of(parameters: np.ndarray, steps: int) -> tuple[float, ...]:
    """Return the times of a spacing, 0 .. 1, rounded to `DIGITS` places."""
    place = (np.arange(steps) + 0.5) / steps * 2.0 - 1.0
    lengths = np.exp(np.polynomial.legendre.legval(place, [0.0, *parameters]))
    inner = np.cumsum(lengths)[:-1] / lengths.sum()
    return (0.0, *(round(float(t), DIGITS) for t in inner), 1.0)


def parameters_of(times: np.ndarray) -> np.ndarray:
    """Return the parameters of the spacing that is nearest to given times, by least squares in the logarithms."""
    lengths = np.log(np.diff(times))
    place = (np.arange(len(lengths)) + 0.5) / len(lengths) * 2.0 - 1.0
    return np.polynomial.legendre.legfit(place, lengths, min(DEGREE, len(lengths) - 1))[1:]


def search(model: Any, steps: int, limit: int, known: list[tuple[float, ...]]) -> dict[str, Any]:
    """Return the times that were found for a number of steps in about ``limit`` trials, and what they reach.

    It starts from the best of even times, Karras's noise levels, and times ``known`` for other numbers of steps.
    """
    from fastdiff.diffusion import UniPC

    tried: dict[tuple[float, ...], float] = {}

    def objective(parameters: np.ndarray) -> float:
        times = times_of(parameters, steps)
        if times not in tried:
            increasing = all(low < high for low, high in pairwise(times))
            tried[times] = mean_fd(model, UniPC(spacing=times), steps, SEARCHED) if increasing else float("inf")
            print(f"{steps} steps, {len(tried)} spacings: {tried[times]:.3f} at {times}", flush=True)
        return tried[times]

    even = np.linspace(0.0, 1.0, steps + 1)
    candidates = [parameters_of(np.array(each)) for each in (even, karras_times(model, steps), *known)]
    best = min(candidates, key=objective)
    for size in SIZES:
        improved = True
        while improved and len(tried) < limit:
            improved = False
            for k in range(len(best)):
                for sign in (1.0, -1.0):
                    step = best.copy()
                    step[k] += sign * size
                    if objective(step) < objective(best):
                        best, improved = step, True
                        break
    times = times_of(best, steps)
    spacings = {"time": UniPC(), "karras": UniPC(spacing="karras"), "model": UniPC(spacing=times)}
    return {
        "times": times, "tried": len(tried), "searched": tried[times],
        "checked": {name: mean_fd(model, sampler, steps, CHECKED) for name, sampler in spacings.items()},
        "distance": {name: distance(model, sampler, steps) for name, sampler in spacings.items()},
    }  # fmt: skip


def karras_times(model: Any, steps: int) -> np.ndarray:
    """Return the times of the spacing "karras"; the embedded model's gamma is linear in t."""
    from fastdiff.diffusion import gamma_table

    gamma = gamma_table(model.gamma, steps, "karras").numpy()
    return (gamma - gamma[0]) / (gamma[-1] - gamma[0])


def draw(model: Any, sampler: Any, steps: int, seed: int) -> torch.Tensor:
    """Return `IMAGES` samples, uint8 levels."""
    from fastdiff import sample

    return sample(model, IMAGES, steps, sampler, seed=seed, batch_size=BATCH_SIZE, output="levels")


def mean_fd(model: Any, sampler: Any, steps: int, seeds: tuple[int, ...]) -> float:
    """Return FD-digits, the mean over sampling seeds."""
    from fastdiff.evaluation import fd_digits

    return sum(fd_digits(draw(model, sampler, steps, seed)).value for seed in seeds) / len(seeds)


def distance(model: Any, sampler: Any, steps: int) -> float:
    """Return the RMS difference, in levels, from the images of `FINE_STEPS` steps of UniPC from the same latents."""
    from fastdiff.diffusion import UniPC

    if not FINE:
        FINE.append(draw(model, UniPC(), FINE_STEPS, CHECKED[0]))
    coarse = draw(model, sampler, steps, CHECKED[0])
    return float((FINE[0].double() - coarse.double()).square().mean().sqrt())


def main(arguments: list[str] | None = None) -> None:
    """Search times, or write them into the folder of a model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("action", choices=("search", "ship"))
    parser.add_argument("--calls", default="5,10", help="numbers of steps to search for (5,10)")
    parser.add_argument("--trials", type=int, default=60, help="spacings to try for each number of steps, about")
    parser.add_argument("--times", type=Path, default=Path("docs/few-calls-times.json"), help="file of the times")
    parser.add_argument("--out", type=Path, help="folder that the model is written to, with the times")
    options = parser.parse_args(arguments)
    from fastdiff import load

    torch.set_num_threads(1)
    model = load("digits")
    found = json.loads(options.times.read_text()) if options.times.is_file() else {}
    if options.action == "search":
        for steps in map(int, options.calls.split(",")):
            known = [tuple(row["times"]) for count, row in found.items() if int(count) != steps]
            found[str(steps)] = search(model, steps, options.trials, known)
            options.times.write_text(json.dumps(found, indent=1) + "\n")
    elif options.out is None:
        parser.error("--out must be given to ship")
    else:
        ship(model, found, options.out)


def ship(model: Any, found: dict[str, Any], out: Path) -> None:
    """Write the embedded model with the times that were found; weights, configuration and record stay as they are."""
    from importlib.resources import files

    from fastdiff.io.folders import read_folder, write_folder

    content = read_folder(Path(str(files("fastdiff.assets").joinpath("digits"))))
    spacings = {"unipc": {steps: row["times"] for steps, row in sorted(found.items(), key=lambda pair: int(pair[0]))}}
    model.take_spacings(spacings)
    content["config.json"]["spacings"] = spacings
    write_folder(out, content)
    print(f"wrote {out} with times for {', '.join(found)} steps")


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    main()
