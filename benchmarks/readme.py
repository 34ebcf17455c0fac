"""Write the tables of README.md, docs/results.md and some guides in docs/ from committed files.

    python benchmarks/readme.py            rewrite the pages
    python benchmarks/readme.py --check    only say whether they are up to date (exit code 1 if not)

Sources: the config.json of the embedded models, docs/bound.jsonl
(`fastdiff evaluate digits --T 1,10,100,1000,inf --draws 256 --ode 64 --json`), docs/fd.jsonl (the first line of
`fastdiff fd digits --json`), docs/letters.json (`python benchmarks/studies/letter_models.py RUN ...`),
docs/few-calls.json (`python benchmarks/studies/few_calls.py`), docs/batch-invariance.json
(`python benchmarks/batch_invariance.py --json docs/batch-invariance.json`), every
benchmarks/results/*.json (`pytest benchmarks/ --benchmark-only --results PATH`), docs/static-cost.json
(`python benchmarks/static_cost.py --json docs/static-cost.json`), docs/host-cost.json
(`python benchmarks/host_cost.py --json docs/host-cost.json`), docs/footprint.json
(`python benchmarks/footprint.py --json docs/footprint.json`), docs/executed-cost.json
(`python benchmarks/executed_cost.py --json docs/executed-cost.json`) and every docs/side-by-side-*.json
(`python benchmarks/side_by_side.py --json docs/side-by-side-cpu.json`).
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from embedded import embedded_table
from headlines import headline_table

ROOT = Path(__file__).resolve().parents[1]
ISSUE_RATE = 0.75 * 132 * 4 * 32 * 1.98e9  # an H200's instructions of threads per second, at 75 % of what it can issue
EXECUTED = (  # runs and kernels of docs/executed-cost.json whose counts static ones do not show
    *(("decoder_nll", f"logvar {value}", "nll_kernel") for value in (-13.3, -8.0, -4.0, 0.0)),
    ("diffuse", "noise given", "diffuse_kernel"),
    ("diffuse", "noise drawn, channels last", "diffuse_kernel"),
    ("fourier_features", "2 frequencies, channels last", "fourier_last_kernel"),
    ("fourier_features", "2 frequencies, channels last", "fourier_last_gradient_kernel"),
    ("group_norm_silu", "whole groups", "norm_silu_kernel"),
    ("group_norm_silu", "whole groups", "whole_gradient_kernel"),
    ("group_norm_silu", "tiles", "norm_sums_kernel"),
)
BANDWIDTH = 4.3e12  # bytes per second of a copy on an H200


def bound_table() -> str:
    """Bits per dimension and its terms against the number of steps."""
    lines = ["| T | bits/dim | ± s.e. | recon | prior | diffusion |", "|---:|---:|---:|---:|---:|---:|"]
    for row in map(json.loads, (ROOT / "docs/bound.jsonl").read_text().splitlines()):
        T = ode_kind(row) if "ode_steps" in row else "∞" if row["T"] is None else row["T"]
        T = f"{T}, importance" if row.get("importance") else T
        figures = [f"{row[name]:.{digits}f}" if name in row else "" for name, digits in
                   (("bpd", 3), ("se", 3), ("recon", 4), ("prior", 4), ("diffusion", 3))]  # fmt: skip
        lines.append(f"| {T} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def letters_table() -> str:
    """The models of the letters: bits per dimension, FD-letters, and the share of their letters that are read."""
    models = json.loads((ROOT / "docs/letters.json").read_text())["models"]
    lines = [
        "| model | parameters | bits/dim | ± over families | FD-letters | with a mixture | read as asked for |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in models.items():
        read = f"{statistics.mean(row['read']):.1%}" if "read" in row else ""
        mixture = f"{row['fd_mixture'][0]:.1f}" if "fd_mixture" in row else ""
        figures = f"{row['bpd']:.3f} | {row['se_groups']:.3f} | {row['fd'][0]:.1f} | {mixture}"
        lines.append(f"| {name} | {row['parameters']:,} | {figures} | {read} |")
    return "\n".join(lines)


def ode_kind(row: dict[str, Any]) -> str:
    """The kind of a bound through the ODE; rows of earlier versions are normal, K = 1, with one probe."""
    kind = [f"ODE, {row['ode_steps']} steps"]
    if row.get("dequantization", "normal") != "normal":
        kind.append(row["dequantization"])
    if row.get("samples", 1) > 1:
        kind.append(f"K = {row['samples']}")
    if row.get("divergence") == "exact":
        kind.append("exact divergence")
    return ", ".join(kind)


FEW_CALLS = {  # rows of docs/few-calls.json in the guide to fast sampling, and how they are written on a command line
    "ancestral": "`--sampler ancestral`", "ddim": "`--sampler ddim`", "unipc": "`--sampler unipc`",
    "unipc, karras": "`--sampler unipc --spacing karras`", "unipc, model": "`--sampler unipc --spacing model`",
}  # fmt: skip


def few_calls_table() -> str:
    """FD-digits of samples for the samplers of `FEW_CALLS`."""
    rows = json.loads((ROOT / "docs/few-calls.json").read_text())["rows"]
    return "\n".join(distance_lines({title: rows[name] for name, title in FEW_CALLS.items()}))


def distance_table() -> str:
    """FD-digits of samples, one line per sampler and spacing, and that of the held-out digits."""
    lines = distance_lines(json.loads((ROOT / "docs/few-calls.json").read_text())["rows"])
    held_out = json.loads((ROOT / "docs/fd.jsonl").read_text().splitlines()[0])
    own = f"The {held_out['n']} held-out digits themselves: {held_out['fd']:.1f} ± {held_out['se']:.1f}"
    return "\n".join([*lines, "", f"{own}, with the bias of so few (only equal numbers of images compare)."])


def distance_lines(rows: dict[str, Any]) -> list[str]:
    """FD-digits of samples, one line per sampler and spacing, one column per number of calls of the network."""
    numbers = sorted({int(calls) for row in rows.values() for calls in row["calls"]})
    lines = [
        "| sampler, spacing | " + " | ".join(f"{calls} calls" for calls in numbers) + " |",
        "|---|" + "---:|" * len(numbers),
    ]
    for name, row in rows.items():
        values = {calls: [value for value, _ in seeds] for calls, seeds in row["calls"].items()}
        cells = [mean_and_error(values[str(calls)]) if str(calls) in values else "" for calls in numbers]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def mean_and_error(values: list[float]) -> str:
    """The mean of some numbers, and its standard error."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def benchmark_tables() -> str:
    """One table per machine: operation by operation, fastdiff and each alternative; host times stay in the files."""
    parts = []
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        content = json.loads(path.read_text())
        machine = content["machine"]
        where = machine.get("gpu", machine["cpu"])
        parts.append(f"{where}, torch {machine['torch']}, from `{path.relative_to(ROOT)}`:\n")
        parts.append("| operation | case | dtype | shape | fastdiff | against | ratio (20–80 %) | of copy |")
        parts.append("|---|---|---|---|---:|---|---:|---:|")
        parts += [benchmark_row(row) for row in content["rows"] if row["timing"] != "host"]
        parts.append("")
    return "\n".join(parts).rstrip()


def benchmark_row(row: dict[str, Any]) -> str:
    """One line of the table of a machine."""
    low, middle, high = row["ratio"]
    shape = "×".join(map(str, row["shape"]))
    copy = "" if row["share_of_copy"] is None else f"{row['share_of_copy']:.0%}"
    time = f"{1e6 * row['fastdiff'][1]:,.0f} µs"
    ratio = f"{middle:.2f} ({low:.2f}–{high:.2f})"
    cells = [row["operation"], row["case"], row["dtype"], shape, time, row["against"], ratio, copy]
    return "| " + " | ".join(cells) + " |"


def static_table() -> str:
    """Machine code of every kernel on sm_90, and what it predicts for an H200."""
    content = json.loads((ROOT / "docs/static-cost.json").read_text())
    rows = [row for row in content["rows"] if row["target"] == "sm_90" and not row["aside"]]
    lines = [
        f"Triton {content['triton']}; fp32 / bf16:\n",
        "| kernel | variant | instructions per element | registers | bytes per element | predicted share of copy |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for kernel, variant in dict.fromkeys((row["kernel"], row["variant"]) for row in rows):
        both = [row for row in rows if (row["kernel"], row["variant"]) == (kernel, variant)]
        columns = [
            [f"{row['instructions']:.0f}" for row in both],
            [str(row["registers"]) for row in both],
            [str(row["moved"] or "") for row in both],
            [f"{predicted_share(row):.0%}" if row["moved"] else "" for row in both],
        ]
        cells = [" / ".join(column) if column[0] else "" for column in columns]
        lines.append(f"| {kernel} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def predicted_share(row: dict[str, Any]) -> float:
    """Time of a copy of as many bytes over the larger of that time and the instructions'."""
    copy, issue = row["moved"] / BANDWIDTH, row["instructions"] / ISSUE_RATE
    return copy / max(copy, issue)


def executed_table() -> str:
    """Instructions, transactions and bank conflicts of some runs; of several sizes the first."""
    content = json.loads((ROOT / "docs/executed-cost.json").read_text())
    lines = [
        "| kernel | data | machine code | PTX executed | bank conflicts | transactions asked | needed |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for operation, data, kernel in EXECUTED:
        same = [
            row
            for row in content["rows"]
            if (row["operation"], row["data"], row["kernel"]) == (operation, data, kernel)
        ]
        rows = [row for row in same if row["shape"] == same[0]["shape"]]
        columns = [("machine_code", 0), ("executed", 0), ("conflicts", 1), ("asked", 2), ("needed", 2)]
        cells = [" / ".join(f"{row[name]:.{digits}f}" for row in rows) for name, digits in columns]
        lines.append(f"| {kernel.removesuffix('_kernel')} | {data} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def host_table() -> str:
    """Host microseconds of an eager call, our part and that of Triton's launch."""
    content = json.loads((ROOT / "docs/host-cost.json").read_text())
    lines = [f"{content['machine']['cpu']}, torch {content['machine']['torch']}:\n"]
    lines += ["| operation | no gradient | of which the launch | recorded for a gradient | of which the launch |"]
    lines += ["|---|---:|---:|---:|---:|"]
    names = ("plain", "plain_launch", "recorded", "recorded_launch")
    for row in content["rows"]:
        lines.append(f"| {row['operation']} | " + " | ".join(f"{row[name]:.1f}" for name in names) + " |")
    return "\n".join(lines)


def footprint_table() -> str:
    """Operations, launches and element-wise megabytes of whole models."""
    content = json.loads((ROOT / "docs/footprint.json").read_text())
    lines = [f"torch {content['torch']}, batch of {content['batch']}:\n"]
    lines += ["| model | what | operations | launches | element-wise MB |", "|---|---|---:|---:|---:|"]
    for row in content["rows"]:
        total = row["total"]
        figures = f"{total['calls']:,} | {total['launches']:,} | {1e-6 * total['bytes']:,.0f}"
        lines.append(f"| {row['model']} | {row['what']} | {figures} |")
    return "\n".join(lines)


def side_tables() -> str:
    """One table per machine: times of diffusers and fastdiff with the same weights, and their ratios."""
    parts = []
    for path in sorted((ROOT / "docs").glob("side-by-side-*.json")):
        content = json.loads(path.read_text())
        machine = content["machine"]
        where = machine.get("gpu", machine["cpu"])
        parts.append(f"{where}, torch {machine['torch']}, from `{path.relative_to(ROOT)}`:\n")
        parts.append(
            "| parameters | what | batch | diffusers | its best compiled | fastdiff | fastdiff, best | "
            "diffusers / fastdiff | compiled / best |"
        )
        parts.append("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
        parts += [side_row(row) for row in content["rows"]]
        parts.append("")
    return "\n".join(parts).rstrip()


def side_row(row: dict[str, Any]) -> str:
    """One line of `side_tables`: medians, and ratios with 20 % and 80 % of the rounds; images are 3×32×32 or said."""
    case, seconds = row["case"], {name: middle for name, (_, middle, _) in row["seconds"].items()}
    compiled = [value for name, value in seconds.items() if name.startswith("diffusers ")]
    times = [
        seconds.get("diffusers"),
        min(compiled, default=None),
        seconds.get("fastdiff"),
        seconds.get("fastdiff best"),
    ]
    what = f"DDIM, {case['steps']} steps" if case["what"] == "sampling" else case["what"]
    shape = "×".join(map(str, row.get("shape", (3, 32, 32))))
    size = "" if shape == "3×32×32" else f", {shape}"
    cells = [f"{1e-6 * row['parameters']:.1f} M{size}", f"{what}, {case['precision']}", str(case["batch"])]
    cells += ["" if time is None else milliseconds(time) for time in times]
    for key in ("diffusers / fastdiff", "diffusers compiled / fastdiff best"):
        low, middle, high = row["ratios"].get(key, (None, None, None))
        cells.append("" if middle is None else f"{middle:.2f} ({low:.2f}–{high:.2f})")
    return "| " + " | ".join(cells) + " |"


def milliseconds(seconds: float) -> str:
    """Three digits of a time."""
    return f"{1e3 * seconds:,.{1 if seconds < 0.1 else 0}f} ms"


def invariance_text() -> str:
    """How many images change with the batch size, and what it costs that none does."""
    content = json.loads((ROOT / "docs/batch-invariance.json").read_text())
    usual, fixed = content["usual"], content["batch_invariant"]
    lines = [
        f"On a CPU (torch {content['torch']}, {content['threads']} thread), {content['steps']} steps of DDIM, the "
        "embedded model `digits`. An image differs if a bit of its z_0 does; the last column is the time of the "
        "batch-invariant engine divided by that of usual sampling (`python benchmarks/batch_invariance.py`):\n",
        "| batch size | as usual: differ from batches of 64 | at most by | batch-invariant: differ | time ratio |",
        "|---:|---:|---:|---:|---:|",
    ]
    for size, (low, middle, high) in content["time"].items():
        if size in fixed["differing_from_64"]:
            ours = f"{fixed['differing_from_64'][size]:,} of {fixed['images']:,}"
            theirs = f"{usual['differing_from_64'][size]:,} of {usual['images']:,}"
            most = f"{usual['largest_difference'][size]:.0e}"
        else:
            ours = theirs = most = ""
        lines.append(f"| {size} | {theirs} | {most} | {ours} | {middle:.2f} ({low:.2f}–{high:.2f}) |")
    return "\n".join(lines)


def pages() -> dict[str, dict[str, str]]:
    """The tables of every page, by name."""
    results = {
        "bound": bound_table(), "letters": letters_table(), "distance": distance_table(),
        "benchmarks": benchmark_tables(), "static": static_table(), "host": host_table(),
        "footprint": footprint_table(), "executed": executed_table(), "side": side_tables(),
    }  # fmt: skip
    return {
        "README.md": {"headlines": headline_table(ROOT)},
        "docs/index.md": {"embedded": embedded_table(ROOT)},
        "docs/results.md": results,
        "docs/reproducible-noise.md": {"batch-invariance": invariance_text()},
        "docs/fast-sampling.md": {"few-calls": few_calls_table()},
    }


def rendered(page: str, text: str) -> str:
    """A page with its tables replaced."""
    for name, table in pages()[page].items():
        block = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        text, count = block.subn(lambda _, name=name, table=table: f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text)
        if count != 1:
            raise ValueError(f"{page} must hold one place for the table {name!r}, found {count}")
    return text


def main() -> int:
    """Rewrite the pages, or check them."""
    changed = 0
    for page in pages():
        path = ROOT / page
        before = path.read_text()
        after = rendered(page, before)
        changed += before != after
        if "--check" not in sys.argv[1:]:
            path.write_text(after)
    return int(changed > 0 and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
