"""Draw the pictures of docs/gallery.md that no study draws: a denoising strip, and bars of launches and of speed.

    python benchmarks/gallery.py            # --out docs

The strip is drawn from the embedded model of letters, the bars from committed numbers: docs/footprint.json,
docs/side-by-side-cpu.json and benchmarks/results/cpu-2-cores.json.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORD, STEPS, SHOWN = "DIFFUSION", 100, (0, 20, 32, 40, 45, 50, 56, 64, 99)  # steps of ancestral sampling, guidance 2
OPERATIONS = (  # what is timed in the results with torch's noise given, and the name of its bar
    ("diffuse", "noise given", "noising"),
    ("eps_loss + gradient", "noise given", "loss and gradient"),
    ("fourier_features + gradient", "", "Fourier features and gradient"),
    ("sampler_step", "noise given", "sampler step"),
    ("reparameterize + gradient", "noise given", "reparameterisation, KL and gradient"),
    ("group_norm_silu + gradient", "scale and shift", "GroupNorm, SiLU and gradient"),
)
LARGE = ([16, 1, 256, 256], [8, 128, 32, 32])  # shapes of the bars: of images, of activations
WHAT = {"forward": "forward", "training": "loss and gradient", "optimizer": "… and a step of AdamW"}


def main(arguments: list[str] | None = None) -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures (docs)")
    out = parser.parse_args(arguments).out
    draw_denoising(out / "gallery-denoising.png")
    draw_footprint(out / "gallery-footprint.png", json.loads((ROOT / "docs/footprint.json").read_text()))
    draw_speed(out / "gallery-speed.png", json.loads((ROOT / "benchmarks/results/cpu-2-cores.json").read_text()))


def draw_denoising(path: Path) -> None:
    """Draw the latents z_t of a word's letters, and the network's estimates of the images, from noise to the end."""
    import torch

    from benchmarks.studies.documents import plotting, save
    from fastdiff import sample

    states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(step: int, nfe: int, z_t: torch.Tensor, x_hat: torch.Tensor) -> None:
        if step in SHOWN:
            states[step] = z_t.cpu(), x_hat.cpu()

    sample("letters", len(WORD), STEPS, labels=list(WORD), guidance=2.0, callback=keep)
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.5))
    for axis, kind, title in ((axes[0], 0, "latent $z_t$"), (axes[1], 1, "estimate of the image")):
        rows = [torch.cat(list(states[step][kind][:, 0]), dim=1) for step in SHOWN]
        axis.imshow(torch.cat(rows), cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest")
        size = rows[0].shape[0]
        axis.set_yticks([size * (k + 0.5) for k in range(len(SHOWN))], [f"step {step + 1}" for step in SHOWN])
        axis.set_xticks([])
        axis.set_title(title)
        axis.grid(visible=False)
    save(figure, path)
    plt.close(figure)


def draw_footprint(path: Path, content: dict[str, Any]) -> None:
    """Draw the launches and the element-wise megabytes of a model beside those of diffusers' same network."""
    from benchmarks.studies.documents import plotting, save

    totals = {(row["model"], row["what"]): row["total"] for row in content["rows"]}
    plt = plotting()
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4))
    for axis, key, factor, title in (
        (axes[0], "launches", 1.0, "kernel launches"),
        (axes[1], "bytes", 1e-6, f"element-wise MB, batch of {content['batch']}"),
    ):
        for offset, model, name in ((-0.2, "ddpm-cifar10", "fastdiff"), (0.2, "diffusers", "diffusers")):
            heights = [factor * totals[model, what][key] for what in WHAT]
            bars = axis.bar([k + offset for k in range(len(WHAT))], heights, 0.38, label=name)
            axis.bar_label(bars, fmt="{:,.0f}", fontsize=8)
        axis.set_xticks(range(len(WHAT)), list(WHAT.values()), fontsize=8)
        axis.set_title(title)
        axis.grid(visible=False)
    axes[0].legend(frameon=False, loc="upper left")
    save(figure, path)
    plt.close(figure)


def draw_speed(path: Path, content: dict[str, Any]) -> None:
    """Draw how many times as fast as plain PyTorch operations are on a CPU, with 20 % and 80 % of the rounds."""
    from benchmarks.studies.documents import plotting, save

    plt = plotting()
    figure, axis = plt.subplots(figsize=(8.4, 3.4))
    for position, (operation, case, _) in enumerate(reversed(OPERATIONS)):
        low, middle, high = next(
            row["ratio"] for row in content["rows"]
            if (row["operation"], row["case"], row["against"]) == (operation, case, "eager") and row["shape"] in LARGE
        )  # fmt: skip
        axis.barh(position, middle - 1.0, left=1.0, xerr=[[middle - low], [high - middle]], color="C0", capsize=3)
        axis.annotate(f"{middle:.2f}", (high, position), xytext=(6, -3), textcoords="offset points", fontsize=8)
    axis.set_yticks(range(len(OPERATIONS)), [title for *_, title in reversed(OPERATIONS)])
    axis.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_xlim(0.5, 13)
    axis.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axis.minorticks_off()
    axis.set_xlabel(f"times as fast as plain PyTorch ({content['machine']['cpu']}, noise given)")
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
