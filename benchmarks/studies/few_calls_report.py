"""The document of the study of few calls of the network, written from its numbers alone."""

import json
import math
from pathlib import Path
from typing import Any

from .documents import COLOURS, paragraph, plotting, save

COMMAND = "python benchmarks/studies/few_calls.py"
SPACINGS = {
    "time": "even in time",
    "karras 7": "Karras, rho 7",
    "karras 3": "Karras, rho 3",
    "model": "the model's own",
}
NAMES = {
    "unipc": "UniPC, order 3", "dpm-solver": "DPM-Solver++(2M)", "deis": "DEIS, order 3", "ddim": "DDIM (Euler)",
    "heun": "Heun", "ancestral": "ancestral",
}  # fmt: skip
AIMS = {5: 3.5, 10: 2.2}
SHOWN = ("unipc, model", "unipc", "unipc, karras", "dpm-solver", "deis", "ddim", "heun", "ancestral")  # of the figure


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write ``few-calls.md`` and its figure."""
    _draw(results, out / "few-calls.png")
    parts = [_opening(results), _short(results), _table(results), "![FD-digits against calls](few-calls.png)"]
    parts.append(_reading(results))
    times = out / "few-calls-times.json"
    if times.is_file():
        parts.append(_own_times(json.loads(times.read_text())))
    (out / "few-calls.md").write_text("\n\n".join(parts) + "\n")


def summary(row: dict[str, Any], calls: int) -> tuple[float, float, float]:
    """Return the mean of FD-digits over the seeds, its standard error, and the mean standard error of one seed."""
    values, errors = zip(*row["calls"][str(calls)], strict=True)
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values)), sum(errors) / len(errors)


def spacing_of(row: dict[str, Any]) -> str:
    """Return the key of a row's spacing in `SPACINGS`."""
    spacing = row["options"].get("spacing", "time")
    return f"karras {row['options'].get('rho', 7.0):g}" if spacing == "karras" else spacing


def label(row: dict[str, Any]) -> str:
    """Return the name of a row."""
    return f"{NAMES[row['sampler']]}, {SPACINGS[spacing_of(row)]}"


def best(results: dict[str, Any], calls: int, own: bool) -> tuple[str, float, float]:
    """Return the row with the least mean at a number of calls, its mean and error; without ``own`` times."""
    rows = [row for row in results["rows"].values() if str(calls) in row["calls"]]
    rows = [row for row in rows if own or spacing_of(row) != "model"]
    row = min(rows, key=lambda each: summary(each, calls)[0])
    return label(row), *summary(row, calls)[:2]


def _counts(results: dict[str, Any]) -> list[int]:
    return sorted({int(count) for row in results["rows"].values() for count in row["calls"]})


def _opening(results: dict[str, Any]) -> str:
    text = f"""
    Written by `{COMMAND}` from `few-calls.json`. FD-digits of {results["images"]:,} samples of the embedded model
    against the training digits, by the number of calls of the network; lower is better. Heun calls it twice a step, so
    it takes calls // 2 steps; the other samplers take as many steps as calls. Every number is the mean over the
    sampling seeds {", ".join(map(str, results["seeds"]))} ± its standard error over these seeds; in parentheses the
    standard error of one seed's draw of images, which includes no bias of the distance. With {len(results["seeds"])}
    seeds the first error is itself known to about half its size."""
    return "# How few calls of the network are enough?\n\n" + paragraph(text)


def _short(results: dict[str, Any]) -> str:
    parts = []
    for calls, aim in AIMS.items():
        name, mean, error = best(results, calls, own=True)
        without, without_mean, without_error = best(results, calls, own=False)
        before = summary(results["rows"]["dpm-solver"], calls)
        parts.append(
            f"At {calls} calls the best is {name}: {mean:.2f} ± {error:.2f}; without the model's own "
            f"times it is {without}: {without_mean:.2f} ± {without_error:.2f}. DPM-Solver++(2M), even in time, has "
            f"{before[0]:.2f} ± {before[1]:.2f}. The aim of {aim:g} is {'met' if mean <= aim else 'missed'}."
        )
    last = max(map(int, results["rows"]["ancestral"]["calls"]))
    mean, error, _ = summary(results["rows"]["ancestral"], last)
    parts.append(f"Ancestral sampling with {last} calls has {mean:.2f} ± {error:.2f}.")
    return paragraph(" ".join(parts))


def _table(results: dict[str, Any]) -> str:
    counts = _counts(results)
    lines = ["| sampler, spacing | " + " | ".join(f"{n} calls" for n in counts) + " |", "|---|" + "---:|" * len(counts)]
    for row in results["rows"].values():
        cells = []
        for n in counts:
            cells.append("{:.2f} ± {:.2f} ({:.2f})".format(*summary(row, n)) if str(n) in row["calls"] else "")
        lines.append(f"| {label(row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _reading(results: dict[str, Any]) -> str:
    """What the table says of the spacings, from its numbers."""
    rows, parts = results["rows"], []
    for calls in (count for count in _counts(results) if count <= 25):
        of_unipc = [row for row in rows.values() if row["sampler"] == "unipc" and str(calls) in row["calls"]]
        means = {spacing_of(row): summary(row, calls)[0] for row in of_unipc if spacing_of(row) != "model"}
        order = sorted(means, key=lambda key: means[key])
        parts.append(f"{calls} calls: " + ", ".join(f"{SPACINGS[key]} {means[key]:.2f}" for key in order))
    text = f"""
    UniPC by spacing, from the best to the worst. {"; ".join(parts)}. FD-digits does not fall steadily to the value of
    the exact flow: some coarse solutions lie nearer to the training digits than that of many steps, so a low value at
    few calls says that the images are good, and not that the flow is solved accurately. A different model has a
    different best spacing."""
    return paragraph(text)


def _own_times(found: dict[str, Any]) -> str:
    steps = sorted(map(int, found))
    text = f"""
    The embedded model brings times for UniPC of order 3 (`spacing="model"`) with {" and ".join(map(str, steps))} calls,
    after the idea of Align Your Steps (Sabour et al. 2024), whose criterion is another one. Here the criterion is
    FD-digits itself, the mean over the sampling seeds 100 and 101, by a compass search over four numbers that describe
    the logarithms of the steps (`python benchmarks/studies/model_spacings.py search`). The seeds 102 to 105 were used
    to check it, and those of the table had no part in it; but reference and classifier are those of the table, so a
    gain in FD-digits need not be one in another distance. The distance from a fine solution is the RMS
    difference in levels (0 .. 16) from the images of 100 steps from the same latents, seed 102: it shows whether the
    times solve the flow better, or only give images that FD-digits prefers."""
    parts = ["## The model's own times", paragraph(text)]
    lines = ["| calls | times | spacings tried | FD-digits, seeds 100, 101 |", "|---:|---|---:|---:|"]
    for n in steps:
        row = found[str(n)]
        times = ", ".join(f"{t:g}" for t in row["times"])
        lines.append(f"| {n} | {times} | {row['tried']} | {row['searched']:.2f} |")
    parts.append("\n".join(lines))
    lines = ["| calls | | even in time | Karras, rho 7 | the model's own |", "|---:|---|---:|---:|---:|"]
    for n in steps:
        for key, name in (("checked", "FD-digits, mean of seeds 102 to 105"), ("distance", "distance, levels")):
            cells = [f"{found[str(n)][key][spacing]:.2f}" for spacing in ("time", "karras", "model")]
            lines.append(f"| {n} | {name} | {' | '.join(cells)} |")
    parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _draw(results: dict[str, Any], path: Path) -> None:
    plt = plotting()
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    for name, marker in zip(SHOWN, "os^Dv*PX", strict=True):
        row = results["rows"][name]
        counts = [int(count) for count in row["calls"] if int(count) <= 50]
        means, errors, _ = zip(*(summary(row, n) for n in counts), strict=True)
        style = "--" if name in SHOWN[len(COLOURS) :] else "-"  # the colours repeat
        axis.errorbar(counts, means, errors, linestyle=style, marker=marker, markersize=4, capsize=3, label=label(row))
    last = max(map(int, results["rows"]["ancestral"]["calls"]))
    reference = summary(results["rows"]["ancestral"], last)[0]
    axis.axhline(reference, color="black", linewidth=0.8, linestyle=":", label=f"ancestral, {last} calls")
    axis.set(xscale="log", yscale="log", xlabel="calls of the network", ylabel="FD-digits")
    axis.set_xticks([5, 10, 15, 25, 50], ["5", "10", "15", "25", "50"])
    axis.set_yticks([1, 2, 3, 5, 10, 20, 50, 100], ["1", "2", "3", "5", "10", "20", "50", "100"])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=7)
    save(figure, path)
    plt.close(figure)
