"""How well images keep when the number of steps changes, with the noise of a Brownian path and without.

    python benchmarks/brownian.py [--images 256] [--seed 3] [--rounds 5] [--out docs/brownian.json]

Images of the embedded digits model, of one seed, at several numbers of steps and by several samplers. The correlation
of two images is the cosine of the angle between their differences from the mean training image. Its mean over the
images is given with its standard error, beside that of each image with the next one, which is what chance gives. The
cost is the time of whole calls of `fastdiff.sample` with a path over that without, in turns on one thread.

A picture beside the JSON file shows the first images: a row for each number of steps, with a path on the left and
without on the right.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import DDIM, Ancestral, DPMSolverSDE, DPMSolverSDE2S, EulerAncestral, Sampler
from fastdiff.io.pictures import image_grid, write_picture

STEPS = (10, 20, 40, 80, 250)
PAIRS = ((10, 20), (20, 40), (40, 80), (80, 250), (20, 250))
SHOWN = 8  # images of a row on each side
OTHERS: dict[str, Sampler] = {
    "fixed_large": Ancestral(variance="fixed_large", brownian=True),
    "quadratic spacing": Ancestral(spacing="quadratic", brownian=True),
    "ddim, eta 0.8": DDIM(eta=0.8, brownian=True),
    "euler-a": EulerAncestral(brownian=True),
    "dpm-solver-sde": DPMSolverSDE(brownian=True),
    "dpm-solver-sde-2s": DPMSolverSDE2S(),
}


def draw(count: int, steps: int, sampler: Sampler, seed: int) -> Tensor:
    """Draw images, float32 in [-1, 1]."""
    return fastdiff.sample("digits", count, steps, sampler, seed, output="float", batch_size=count)


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """The cosine between the differences of images from the mean training image, [N]."""
    mean = digits().train_images[:].float().mean(0) / 8.0 - 1.0
    return torch.nn.functional.cosine_similarity((a - mean).flatten(1), (b - mean).flatten(1))


def summary(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean correlation, its standard error, the median, and the mean of each image of a with the next one of b."""
    found = correlations(a, b)
    chance = correlations(a, b.roll(-1, 0))
    return {
        "mean": round(float(found.mean()), 4), "standard_error": round(float(found.std() / len(found) ** 0.5), 4),
        "median": round(float(found.median()), 4), "other_images": round(float(chance.mean()), 4),
    }  # fmt: skip


def cost(steps: int, rounds: int, count: int = 64) -> dict[str, float]:
    """Seconds of a call with and without a path: medians over rounds, in turns, and their ratio."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds + 1):
        for brownian, times in seconds.items():
            start = time.perf_counter()
            draw(count, steps, Ancestral(brownian=brownian), 0)
            times.append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds[True][1:], seconds[False][1:], strict=True)]
    return {
        "steps": steps, "images": count, "with_s": round(statistics.median(seconds[True][1:]), 4),
        "without_s": round(statistics.median(seconds[False][1:]), 4), "ratio": round(statistics.median(ratios), 3),
    }  # fmt: skip


def picture(with_path: dict[int, Tensor], without: dict[int, Tensor], path: Path) -> None:
    """Write the first images: a row for each number of steps, a blank column between the two sides."""
    blank = torch.full((1, 1, 8, 8), -0.25)
    rows = [torch.cat([with_path[steps][:SHOWN], blank, without[steps][:SHOWN]]) for steps in STEPS]
    images = (torch.cat(rows).clamp(-1, 1) * 127.5 + 127.5).round().byte()
    write_picture(image_grid(images, columns=2 * SHOWN + 1, side=48), path)


def main() -> None:
    """Draw, compare, and write the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="images of each setting")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the timing")
    parser.add_argument("--out", type=Path, default=Path("docs/brownian.json"), help="file to write, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, seed = options.images, options.seed
    drawn = {
        brownian: {steps: draw(count, steps, Ancestral(brownian=brownian), seed) for steps in STEPS}
        for brownian in (True, False)
    }
    others = {
        name: {steps: draw(count, steps, sampler, seed) for steps in (20, 40)} for name, sampler in OTHERS.items()
    }
    found = {
        "images": count, "seed": seed, "model": "digits",
        "ancestral": [
            {"steps": list(pair), "path": summary(*(drawn[True][steps] for steps in pair)),
             "independent": summary(*(drawn[False][steps] for steps in pair))}
            for pair in PAIRS
        ],
        "samplers, 20 and 40 steps": {name: summary(each[20], each[40]) for name, each in others.items()},
        "ancestral and another, 40 steps": {name: summary(drawn[True][40], each[40]) for name, each in others.items()},
        "cost": [cost(steps, options.rounds) for steps in (20, 40)],
    }  # fmt: skip
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    picture(drawn[True], drawn[False], options.out.with_suffix(".png"))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
