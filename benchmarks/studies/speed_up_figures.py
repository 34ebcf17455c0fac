"""The figures of the study of DiffuseVAE's speed-up, one set for each data set."""

from collections.abc import Sequence
from pathlib import Path

from .data_sets import DataSet
from .documents import draw_images, plotting, save
from .speed_up_numbers import MODELS, SAMPLERS, Results, models_of, samplers_of, steps_of, summary

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(data: DataSet, results: Results, out: Path) -> None:
    """Write ``speed-up.png``, ``speed-up-samples.png`` and ``speed-up-strips.png``, with the name of the data set."""
    name = data.file("speed-up")
    draw_distances(data, results, out / f"{name}.png")
    samples = results["samples"]
    steps = sorted({int(key.rpartition("-")[2]) for key in samples})
    rows = [(f"{MODELS[each]}, {n} steps", samples[f"{each}-{n}"]) for n in steps for each in models_of(results)]
    draw_rows(data, rows, out / f"{name}-samples.png")
    titles = {"latent": "z to z", "class": "class to class", "noise": "x_T to x_T"}
    rows = [(title, row) for vary, title in titles.items() for row in results["strips"][vary]]
    draw_rows(data, rows, out / f"{name}-strips.png")


def draw_distances(data: DataSet, results: Results, path: Path) -> None:
    """Draw the distance against the number of steps, one panel for each sampler, beside that of held-out images."""
    plt, samplers = plotting(), samplers_of(results)
    figure, axes = plt.subplots(1, len(samplers), figsize=(3.125 * len(samplers), 3.7), sharey=True, squeeze=False)
    low, high = float("inf"), 0.0
    for axis, sampler in zip(axes[0], samplers, strict=True):
        steps = steps_of(results, sampler)
        for name in models_of(results):
            means, errors = zip(*(summary(results, name, f"{sampler}-{n}") for n in steps), strict=True)
            low, high = min(low, *means), max(high, *means)
            style = "--" if name.startswith("diffusevae2") else "-"  # it may coincide with that of formulation 1
            axis.errorbar(
                steps, means, errors, linestyle=style, marker="o", markersize=4, capsize=3, label=MODELS[name]
            )
        if results.get("yardstick"):
            real = results["yardstick"][0]
            axis.axhline(real, color="black", linewidth=0.8, linestyle=":", label=f"held-out {data.name}")
            low = min(low, real)
        axis.set(xscale="log", yscale="log", xlabel="steps", title=SAMPLERS[sampler])
        axis.set_xticks(steps, [str(n) for n in steps])
        axis.minorticks_off()
    ticks = [tick for tick in TICKS if 0.5 * low < tick < 2.0 * high]
    axes[0][0].set(ylabel=data.fd_name)
    axes[0][0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0][0].minorticks_off()
    axes[0][0].legend(frameon=False)
    save(figure, path)
    plt.close(figure)


def draw_rows(data: DataSet, rows: Sequence[tuple[str, Sequence[Sequence[int] | str]]], path: Path) -> None:
    """Draw rows of images, each with its label."""
    plt = plotting()
    height = 0.5 if data.shape[1] <= 8 else 0.66  # inches of a row
    figure, axes = plt.subplots(len(rows), 1, figsize=(8.4, height * len(rows)))
    for axis, (label, images) in zip(axes, rows, strict=True):
        draw_images(axis, images, label, data.levels)
    save(figure, path, bbox_inches="tight")  # the layout does not count the labels of images
    plt.close(figure)
