"""The document of the study of few calls of the network, written from its numbers alone."""

import json
import math
from pathlib import Path
from typing import Any

from .data_sets import DATA_SETS, DataSet
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
Results = dict[str, Any]
SHOWN = ("unipc, model", "unipc", "unipc, karras", "dpm-solver", "deis", "ddim", "heun", "ancestral")  # of the figure


def write_report(found: dict[str, Any], out: Path) -> None:
    """Write ``few-calls.md`` and its figures; ``found`` are the results by data set."""
    parts = ["# How few calls of the network are enough?"]
    for name, results in found.items():
        data = DATA_SETS[name]
        draw(data, results, out / f"{data.file('few-calls')}.png")
        parts += [f"## {name.capitalize()}"] * (len(found) > 1)
        parts += [_opening(data, results), _short(data, results), _table(results)]
        parts += [f"![{data.fd_name} against calls]({data.file('few-calls')}.png)", *_reading(data, results)]
        times = out / "few-calls-times.json"
        if name == "digits" and times.is_file():
            parts.append(_own_times(json.loads(times.read_text()), "###" if len(found) > 1 else "##"))
    if len(found) > 1:
        parts.append(_side_by_side(found))
    (out / "few-calls.md").write_text("\n\n".join(parts) + "\n")


def summary(row: dict[str, Any], calls: int) -> tuple[float, float | None, float]:
    """Return the mean distance over the seeds, its standard error, and the mean standard error of one seed.

    The first error is None for one seed.
    """
    values, errors = zip(*row["calls"][str(calls)], strict=True)
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None, errors[0]
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values)), sum(errors) / len(errors)


def figures(row: dict[str, Any], calls: int) -> str:
    """Return the mean ± its error over the seeds, in a text; without an error for one seed."""
    mean, error, _ = summary(row, calls)
    return f"{mean:.2f}" if error is None else f"{mean:.2f} ± {error:.2f}"


def spacing_of(row: dict[str, Any]) -> str:
    """Return the key of a row's spacing in `SPACINGS`."""
    spacing = row["options"].get("spacing", "time")
    return f"karras {row['options'].get('rho', 7.0):g}" if spacing == "karras" else spacing


def label(row: dict[str, Any]) -> str:
    """Return the name of a row."""
    return f"{NAMES[row['sampler']]}, {SPACINGS[spacing_of(row)]}"


def best(results: Results, calls: int, own: bool) -> dict[str, Any]:
    """Return the row with the least mean at a number of calls; without ``own`` times."""
    rows = [row for row in results["rows"].values() if str(calls) in row["calls"]]
    rows = [row for row in rows if own or spacing_of(row) != "model"]
    return min(rows, key=lambda each: summary(each, calls)[0])


def error_of_images(row: dict[str, Any], calls: int) -> float:
    """Return the standard error of the mean over the seeds that the draws of images give."""
    return summary(row, calls)[2] / math.sqrt(len(row["calls"][str(calls)]))


def gap(row: dict[str, Any], calls: int, other: dict[str, Any], other_calls: int) -> tuple[float, float]:
    """Return the mean distance of a row minus that of another, and its standard error.

    The error is that of the draws of images, which a few seeds show better than their spread does. It is unpaired: the
    rows share the noise of their seeds, so it is too large rather than too small.
    """
    difference = summary(row, calls)[0] - summary(other, other_calls)[0]
    return difference, math.hypot(error_of_images(row, calls), error_of_images(other, other_calls))


def near_the_best(results: Results, calls: int) -> list[str]:
    """Return the other rows that are not above the best one at a number of calls by two standard errors of `gap`."""
    first = best(results, calls, own=True)
    rows = [row for row in results["rows"].values() if str(calls) in row["calls"] and row is not first]
    gaps = {label(row): gap(row, calls, first, calls) for row in rows}
    return [name for name, (difference, error) in gaps.items() if difference <= 2.0 * error]


def counts_of(results: Results) -> list[int]:
    """Return the numbers of calls."""
    return sorted({int(count) for row in results["rows"].values() for count in row["calls"]})


def has_own_times(results: Results) -> bool:
    """Return whether the model's own times were measured."""
    return any(spacing_of(row) == "model" for row in results["rows"].values())


def reference_of(results: Results) -> tuple[int, dict[str, Any]]:
    """Return the largest number of calls of ancestral sampling, and its row."""
    row = results["rows"]["ancestral"]
    return max(map(int, row["calls"])), row


def _opening(data: DataSet, results: Results) -> str:
    command = COMMAND if data.name == "digits" else f"{COMMAND} --data {data.name}"
    seeds, last = results["seeds"], reference_of(results)
    once = len(last[1]["calls"][str(last[0])]) < len(seeds)
    known = "half" if len(seeds) == 3 else "three quarters of"
    text = f"""
    Written by `{command}` from `{data.file("few-calls")}.json`. {data.fd_name} of {results["images"]:,} samples of the
    embedded model, without labels, against the training {data.name}, by the number of calls of the network; lower is
    better. Heun calls
    it twice a step, so it takes calls // 2 steps; the other samplers take as many steps as calls. Every number is the
    mean over the sampling seeds {", ".join(map(str, seeds))} ± its standard error over these seeds; in parentheses the
    standard error of one seed's draw of images, which includes no bias of the distance. With {len(seeds)} seeds
    the first error is itself known to about {known} its size, so differences are judged by the second one, divided by
    the root of the number of seeds: two numbers differ significantly if they are two standard errors of their
    difference apart. The distance is biased upwards, the more the fewer the samples (Chong and Forsyth 2020)."""
    if once:
        text += f" The {last[0]} calls of ancestral sampling are of one seed."
    return paragraph(text)


def _short(data: DataSet, results: Results) -> str:
    parts = []
    for calls, aim in AIMS.items():
        if calls not in counts_of(results):  # a report of what is measured so far
            continue
        first, without = (best(results, calls, own) for own in (True, False))
        before, others = results["rows"].get("dpm-solver"), near_the_best(results, calls)
        part = f"At {calls} calls the best is {label(first)}: {figures(first, calls)}"
        part += f". Not significantly above it: {'; '.join(others)}." if others else ", significantly below all others."
        if has_own_times(results):
            part += f" Without the model's own times the best is {label(without)}: {figures(without, calls)}."
        if before is not None and str(calls) in before["calls"]:
            part += f" DPM-Solver++(2M), even in time, has {figures(before, calls)}."
        if data.name == "digits":
            part += f" The aim of {aim:g} is {'met' if summary(first, calls)[0] <= aim else 'missed'}."
        parts.append(part)
    last, row = reference_of(results)
    parts.append(f"Ancestral sampling with {last} calls has {figures(row, last)}.")
    return paragraph(" ".join(parts))


def _table(results: Results) -> str:
    counts = counts_of(results)
    lines = ["| sampler, spacing | " + " | ".join(f"{n} calls" for n in counts) + " |", "|---|" + "---:|" * len(counts)]
    for row in results["rows"].values():
        cells = [f"{figures(row, n)} ({summary(row, n)[2]:.2f})" if str(n) in row["calls"] else "" for n in counts]
        lines.append(f"| {label(row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _reading(data: DataSet, results: Results) -> list[str]:
    """What the table says of the spacings, from its numbers; nothing where one spacing was tried."""
    rows, parts, coarse = results["rows"], [], list[tuple[dict[str, Any], int]]()
    for calls in (count for count in counts_of(results) if count <= 25):
        of_unipc = [row for row in rows.values() if row["sampler"] == "unipc" and str(calls) in row["calls"]]
        of_unipc = [row for row in of_unipc if spacing_of(row) != "model"]
        means = {spacing_of(row): summary(row, calls)[0] for row in of_unipc}
        coarse += [(row, calls) for row in of_unipc]
        order = sorted(means, key=lambda key: means[key])
        if len(order) > 1:
            parts.append(f"{calls} calls: " + ", ".join(f"{SPACINGS[key]} {means[key]:.2f}" for key in order))
    if not parts:
        return []
    text = f"UniPC by spacing, from the best to the worst. {'; '.join(parts)}."
    fine = rows["unipc"], max(map(int, rows["unipc"]["calls"]))
    coarse = [each for each in coarse if each[1] < fine[1]]
    if not coarse:
        return [paragraph(text)]
    least = min(coarse, key=lambda each: summary(*each)[0])
    difference, error = gap(*least, *fine)
    text += f""" The lowest of these, {SPACINGS[spacing_of(least[0])]} with {least[1]} calls, minus that of {fine[1]}
    calls, even in time: {difference:+.2f} ± {error:.2f}"""
    if difference < -2.0 * error:
        text += f""". So {data.fd_name} does not fall steadily to the value of the exact flow: a coarse solution lies
        nearer to the training {data.name} than that of many steps."""
    else:
        text += f", so no coarse solution lies significantly nearer to the training {data.name}."
    text += " A low value at few calls says that the images are good, and not that the flow is solved accurately."
    return [paragraph(text)]


def _side_by_side(found: dict[str, Results]) -> str:
    """Return distances relative to the reference of each data set, for the samplers that all have, even in time."""
    shared = [n for n in (5, 10, 25, 50) if all(n in counts_of(results) for results in found.values())]
    columns = [(name, n) for name in found for n in shared]
    lines = [
        "| even in time | " + " | ".join(f"{name}, {n} calls" for name, n in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    ratios: dict[tuple[str, int], dict[str, float]] = {column: {} for column in columns}
    for sampler, title in NAMES.items():
        cells = []
        for name, n in columns:
            row, (last, reference) = found[name]["rows"].get(sampler), reference_of(found[name])
            has = row is not None and str(n) in row["calls"]
            if has:
                ratios[name, n][sampler] = summary(row, n)[0] / summary(reference, last)[0]
            cells.append(f"{ratios[name, n][sampler]:.2f}" if has else "")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    sentences = []
    for n in shared:
        each = []
        for name, results in found.items():
            ranked = sorted(ratios[name, n], key=lambda key, at=(name, n): ratios[at][key])
            first, others = results["rows"][ranked[0]], [results["rows"][key] for key in ranked[1:]]
            gaps = [gap(other, n, first, n) for other in others]
            sure = all(difference > 2.0 * error for difference, error in gaps)
            each.append(f"{NAMES[ranked[0]]} on the {name}{'' if sure else ' (not significantly)'}")
        sentences.append(f"At {n} calls the lowest is that of {' and of '.join(each)}.")
    distances = " and ".join(DATA_SETS[name].fd_name for name in found)
    references = {name: str(reference_of(results)[0]) for name, results in found.items()}
    calls = " and ".join(dict.fromkeys(references.values()))
    if len(set(references.values())) > 1:
        calls = " and ".join(f"{count} ({name})" for name, count in references.items())
    text = f"""
    {distances} relative to that of ancestral sampling with {calls} calls of the same model, since the distances
    themselves cannot be compared. The bias of few samples, which differs between the two, draws the ratios towards 1.
    {" ".join(sentences)}"""
    return "\n\n".join(["## Digits and letters", paragraph(text), "\n".join(lines)])


def _own_times(found: dict[str, Any], level: str) -> str:
    steps = sorted(map(int, found))
    text = f"""
    The embedded model `digits` brings times for UniPC of order 3 (`spacing="model"`) with
    {" and ".join(map(str, steps))} calls, after the idea
    of Align Your Steps (Sabour et al. 2024), whose criterion is another one. Here the criterion is
    FD-digits itself, the mean over the sampling seeds 100 and 101, by a compass search over four numbers that describe
    the logarithms of the steps (`python benchmarks/studies/model_spacings.py search`). The seeds 102 to 105 were used
    to check it, and those of the table had no part in it; but reference and classifier are those of the table, so a
    gain in FD-digits need not be one in another distance. The distance from a fine solution is the RMS
    difference in levels (0 .. 16) from the images of 100 steps from the same latents, seed 102: it shows whether the
    times solve the flow better, or only give images that FD-digits prefers."""
    parts = [f"{level} The model's own times", paragraph(text)]
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


def draw(data: DataSet, results: Results, path: Path) -> None:
    """Draw the distance against the number of calls."""
    plt = plotting()
    figure, axis = plt.subplots(figsize=(7.5, 4.2))
    for name, marker in zip(SHOWN, "os^Dv*PX", strict=True):
        row = results["rows"].get(name)
        if row is None:
            continue
        counts = [int(count) for count in row["calls"] if int(count) <= 50]
        means, errors, _ = zip(*(summary(row, n) for n in counts), strict=True)
        style = "--" if name in SHOWN[len(COLOURS) :] else "-"  # the colours repeat
        axis.errorbar(
            counts, means, [error or 0.0 for error in errors], linestyle=style, marker=marker, markersize=4, capsize=3,
            label=label(row),
        )  # fmt: skip
    last, row = reference_of(results)
    reference = summary(row, last)[0]
    axis.axhline(reference, color="black", linewidth=0.8, linestyle=":", label=f"ancestral, {last} calls")
    axis.set(xscale="log", yscale="log", xlabel="calls of the network", ylabel=data.fd_name)
    axis.set_xticks([5, 10, 15, 25, 50], ["5", "10", "15", "25", "50"])
    low, high = axis.get_ylim()
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000) if low <= tick <= high]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=7)
    save(figure, path)
    plt.close(figure)
