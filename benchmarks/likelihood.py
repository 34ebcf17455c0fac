"""The likelihood of the embedded digits model: bounds through the ODE, importance samples, variance of the VLB's draws.

    PYTHONPATH=.:kernels python benchmarks/likelihood.py            # measures what is missing, then writes the document
    PYTHONPATH=.:kernels python benchmarks/likelihood.py --report   # writes the document from docs/likelihood.json

One part after the other, each kept in docs/likelihood.json when it is done: an interrupted run continues. With
``--velocity-model FOLDER`` the variances are measured on that model too, one of `fastdiff train flow-digits`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from likelihood_report import write_report
from torch import Tensor

import fastdiff
from fastdiff.data import digits
from fastdiff.diffusion import SCHEDULES, LinearSchedule, Schedule, fit_proposal
from fastdiff.diffusion.bound import independent_times, stratified_times
from fastdiff.evaluation import DEQUANTIZATIONS, OdeBound
from fastdiff.evaluation.batches import EVALUATION_STEP
from fastdiff.kernels import Noise
from fastdiff.models import Model

ROOT = Path(__file__).resolve().parents[1]
STEPS = 32  # of the integrator
DRAWS = 2  # of all held-out images with one probe
FEW, SAMPLES, AT_ONCE = 8, 20, 5  # images with the exact divergence, importance samples of each, and of one part
SOME, PROBES = 40, 4  # images with importance samples and Hutchinson's estimate
SEEDS, PILOT = 24, 40  # repetitions of the VLB's estimate, and pilot draws of each image

Parts = dict[str, Any]


def log_weights(model: Model, x: Tensor, first: int, bound: OdeBound) -> list[list[float]]:
    """Return log w of latents of images uint8 [B, C, H, W], one each, [probes, B]; the noise is that of ``first``."""
    noise = Noise(0, EVALUATION_STEP, first_sample=first)
    found = bound.log_weights(model.unconditional_diffusion, x, noise)[:, 0]
    return [[round(value, 5) for value in row] for row in found.tolist()]


def parts_of_the_ode(model: Model, x: Tensor) -> Parts:
    """Return functions that measure the parts of the ODE's bounds, by name, the most important first."""
    parts: Parts = {}
    for name in DEQUANTIZATIONS:
        for draw in range(DRAWS):
            parts[f"one probe/{name}/{draw}"] = lambda name=name, draw=draw: log_weights(
                model, x, draw * len(x), OdeBound(STEPS, name)
            )
    for name in ("truncated-normal", "normal"):
        parts |= exact_parts(model, x, name)
    for steps in (16, 64):  # the same latents as the first part of the exact divergence
        parts[f"steps/{steps}"] = lambda steps=steps: log_weights(
            model, x[:FEW], 10_000, OdeBound(steps, "truncated-normal", divergence="exact")
        )
    for k in range(0, SAMPLES, AT_ONCE):
        images = x[:SOME].repeat(AT_ONCE, 1, 1, 1)
        parts[f"{PROBES} probes/truncated-normal/{k}"] = lambda k=k, images=images: log_weights(
            model, images, 20_000 + k * SOME, OdeBound(STEPS, "truncated-normal", probes=PROBES)
        )
    return parts | exact_parts(model, x, "uniform")


def exact_parts(model: Model, x: Tensor, name: str) -> Parts:
    """Return functions that measure importance samples of a few images with the exact divergence, by name."""
    images = x[:FEW].repeat(AT_ONCE, 1, 1, 1)
    bound = OdeBound(STEPS, name, divergence="exact")
    return {
        f"exact/{name}/{k}": lambda k=k: log_weights(model, images, 10_000 + k * FEW, bound)
        for k in range(0, SAMPLES, AT_ONCE)
    }


@torch.no_grad()
def variances(model: Model, x: Tensor) -> Parts:
    """Return the variance over draws of an image's diffusion term under each density of gamma, in nats²."""
    ends = model.gamma_range()
    assert ends is not None
    low, high = (float(end) for end in ends)
    linear = LinearSchedule(low, high)
    gamma, values = [], []
    for r in range(PILOT):
        noise = Noise(1, first_sample=r * len(x))
        gamma.append(linear(stratified_times(noise, len(x), PILOT * len(x))))
        values.append(model.vlb(x, noise, total=PILOT * len(x), proposal=linear).diffusion / (high - low))
    schedules: dict[str, Schedule] = {name: SCHEDULES[name](low, high) for name in SCHEDULES if name != "learned"}
    schedules["fitted"] = fit_proposal(torch.cat(gamma), torch.cat(values), low, high)
    rows: Parts = {}
    for name, schedule in schedules.items():
        single, spread = [], []
        for seed in range(2, 2 + SEEDS):
            draws = [
                model.vlb(x, Noise(seed, first_sample=r * len(x)), total=16 * len(x), proposal=schedule).diffusion
                for r in range(16)
            ]
            spread.append(torch.stack(draws).double().mean(0))
            single += [_at_independent_times(model, x, Noise(seed, r), schedule) for r in range(16)]
        one, sixteen = torch.stack(single), torch.stack(spread)
        rows[name] = {
            "single": float(one.var(0).mean()), "sixteen": float(sixteen.var(0).mean()), "mean": float(sixteen.mean()),
        }  # fmt: skip
    return rows


def _at_independent_times(model: Model, x: Tensor, noise: Noise, schedule: Schedule) -> Tensor:
    """Return the diffusion term of every image, [B]: the evenly spread times of a batch in random order.

    The time of each image is uniform, and independent from one batch to the next.
    """
    order = independent_times(noise, len(x)).argsort()
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(x))
    return model.vlb(x[order], noise, proposal=schedule).diffusion.double()[inverse]


def main() -> None:
    """Measure what is missing, in order, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="write the document from the numbers that are there")
    parser.add_argument("--velocity-model", help="folder of a trained model that predicts the velocity")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of likelihood.json and likelihood.md")
    options = parser.parse_args()
    path = options.out / "likelihood.json"
    found = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    if not options.report:
        torch.set_num_threads(1)
        model, x = fastdiff.load("digits").eval(), torch.as_tensor(digits().test_images[torch.arange(297)])
        found.setdefault("settings", {}).update({
            "model": "digits", "images": len(x), "few": FEW, "some": SOME, "samples": SAMPLES, "at_once": AT_ONCE,
            "steps": STEPS, "dims": model.dims, "torch": torch.__version__,
            "levels": model.levels, "gamma": [float(end) for end in model.gamma_range() or ()],
        })  # fmt: skip
        parts = {"variance": lambda: variances(model, x[::6]), **parts_of_the_ode(model, x)}
        if options.velocity_model is not None:
            velocity = fastdiff.load(options.velocity_model).eval()
            found["settings"]["velocity"] = {"gamma": [float(end) for end in velocity.gamma_range() or ()]}
            parts = {"variance of flow-digits": lambda: variances(velocity, x[::6]), **parts}
        for name, measure in parts.items():
            if name not in found["parts"]:
                started = time.perf_counter()
                found["parts"][name] = measure()
                path.write_text(json.dumps(found) + "\n")
                print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        path.write_text(json.dumps(found) + "\n")
    write_report(found, options.out / "likelihood.md")
    print(f"wrote {options.out / 'likelihood.md'}")


if __name__ == "__main__":
    main()
