"""The figures of the study of noise schedules, with one panel or row for each data set."""

from pathlib import Path
from typing import Any

from .documents import plotting, save

Results = dict[str, dict[str, Any]]  # the numbers of the study by data set


def draw_steps(everything: Results, path: Path) -> None:
    """Draw the bound against the number of steps T."""
    plt = plotting()
    figure, axes = plt.subplots(1, len(everything), figsize=(6.4 if len(everything) == 1 else 11.0, 4.0), squeeze=False)
    for axis, (data, results) in zip(axes[0], everything.items(), strict=True):
        for name, rows in results["steps"].items():
            finite, schedule = [row for row in rows if row["T"] is not None], name.rpartition("-seed")[0]
            line = axis.errorbar(
                [row["T"] for row in finite], [row["bpd"] for row in finite], [row["se"] for row in finite],
                marker="o", markersize=3.5, capsize=2, label=f"{schedule} schedule",
            )  # fmt: skip
            axis.axhline(rows[-1]["bpd"], linestyle=":", color=line[0].get_color(), label=f"{schedule}, T = ∞")
        axis.set(xscale="log", yscale="log", xlabel="number of steps T", ylabel="bits/dim")
        axis.set_title(f"The bound against T, {data}")
        axis.set_xscale("log", base=2)
        axis.legend(frameon=False)
    save(figure, path)
    plt.close(figure)


def draw_gamma(everything: Results, path: Path) -> None:
    """Draw gamma(t): the fixed schedules once, the learned one for each data set."""
    plt = plotting()
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    first = next(iter(everything.values()))["gamma"]
    for name in first:
        if name not in ("t", "learned"):
            axis.plot(first["t"], first[name], label=name, linewidth=1.4)
    for data, results in everything.items():
        axis.plot(results["gamma"]["t"], results["gamma"]["learned"], label=f"learned, {data}", linewidth=2.4)
    axis.set(xlabel="t", ylabel="gamma(t) = -log SNR(t)", title="Schedules between the same ends")
    axis.legend(frameon=False)
    save(figure, path)
    plt.close(figure)


def draw_training(everything: Results, path: Path) -> None:
    """Draw the diffusion term of the schedules over training, and the terms of the bound of the linear one."""
    plt = plotting()
    count = len(everything)
    figure, axes = plt.subplots(count, 2, figsize=(10.5, 4.0 * count), squeeze=False)
    for (left, right), (data, results) in zip(axes, everything.items(), strict=True):
        shown = [name for name in results["gamma"] if f"{name}-seed0" in results["training"]]
        lowest = []
        for name in shown:
            rows = results["training"][f"{name}-seed0"]
            left.plot([row["step"] for row in rows], [row["diffusion"] for row in rows], label=name, linewidth=1.2)
            lowest.append(min(row["diffusion"] for row in rows))
        limits = (0.95 * min(lowest), 2.5 * min(lowest))  # the first steps are far above
        left.set(xlabel="optimiser step", ylabel="bits/dim", ylim=limits, title=f"Diffusion term over training, {data}")
        left.legend(frameon=False)
        rows = results["training"]["linear-seed0"]
        for term in ("recon", "prior", "diffusion"):
            right.plot([row["step"] for row in rows], [row[term] for row in rows], label=term, linewidth=1.2)
        right.set(xlabel="optimiser step", ylabel="bits/dim", yscale="log")
        right.set_title(f"Terms of the bound, linear schedule, {data}")
        right.legend(frameon=False)
    save(figure, path)
    plt.close(figure)
