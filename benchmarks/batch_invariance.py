"""How many images change with the batch size, and what it costs that none does.

    python benchmarks/batch_invariance.py [--images 10000] [--steps 10] [--json PATH] [--rounds 5]

The embedded model draws the same images in batches of 1, 3, 16 and 64: as usual, and with
``Engine("digits", batch_invariant=True)``. An image differs if any bit of its last latent z_0 differs from that of
batches of 64. The cost is the time of the engine divided by the time of usual sampling at the same batch size, in
turns: 20 %, 50 % and 80 % quantiles over the rounds.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastdiff import Engine

SIZES = (64, 16, 3, 1)
TIMED_IMAGES = 64
USUAL_SHARE = 10  # one in so many images is drawn as usual, where batches of 1 take long


def differing(engine: Engine, images: int, steps: int) -> tuple[dict[str, int], dict[str, float]]:
    """The number of images that differ from those of batches of 64, and the largest difference of a latent."""
    latents: dict[int, list[Tensor]] = {}
    for size in SIZES:
        last: list[Tensor] = []

        def keep(step: int, nfe: int, z_t: Tensor, x_hat: Tensor, last: list[Tensor] = last) -> None:
            if step == steps - 1:
                last.append(z_t.clone())

        engine.sample(images, steps, "ddim", batch_size=size, progress=True, callback=keep)
        latents[size] = last
    first = torch.cat(latents[SIZES[0]])
    counts, largest = {}, {}
    for size in SIZES[1:]:
        off = (torch.cat(latents[size]) - first).abs().flatten(1).amax(1)
        counts[str(size)], largest[str(size)] = int((off > 0).sum()), float(off.max())
    return counts, largest


def ratios(usual: Engine, fixed: Engine, steps: int, rounds: int) -> dict[str, list[float]]:
    """Time of the fixed micro-batches over that of usual sampling, by batch size: 20 %, 50 %, 80 % over the rounds."""
    found = {}
    for size in SIZES:
        calls = [partial(engine.sample, TIMED_IMAGES, steps, "ddim", batch_size=size) for engine in (usual, fixed)]
        values = []
        for _ in range(rounds):
            times = []
            for call in calls:
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            values.append(times[1] / times[0])
        quantiles = statistics.quantiles(values, n=10, method="inclusive")
        found[str(size)] = [round(quantiles[k], 3) for k in (1, 4, 7)]
    return found


def main() -> int:
    """Draw, compare, time, print, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    usual, fixed = Engine("digits"), Engine("digits", batch_invariant=True)
    content: dict[str, object] = {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "images": options.images,
        "steps": options.steps, "micro_batch": fixed.execution.micro_batch,
    }  # fmt: skip
    content["time"] = ratios(usual, fixed, options.steps, options.rounds)
    for name, engine in (("usual", usual), ("batch_invariant", fixed)):
        images = options.images // (USUAL_SHARE if engine is usual else 1)
        counts, largest = differing(engine, images, options.steps)
        content[name] = {"images": images, "differing_from_64": counts, "largest_difference": largest}
    print(json.dumps(content, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
