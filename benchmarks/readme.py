"""Write the tables of README.md from committed files: the embedded model's bound, and benchmark results.

    python benchmarks/readme.py            rewrite README.md
    python benchmarks/readme.py --check    only say whether it is up to date (exit code 1 if not)

Sources: docs/bound.jsonl (`fastdiff evaluate digits --T 1,10,100,1000,inf --draws 256 --ode 64 --json`),
docs/fd.jsonl (`fastdiff fd digits --sampler ancestral,ddim,dpm-solver,heun --steps 5,10,25,50,250 --json`), every
benchmarks/results/*.json (`pytest benchmarks/ --benchmark-only --results PATH`), docs/static-cost.json
(`python benchmarks/static_cost.py --json docs/static-cost.json`), docs/host-cost.json
(`python benchmarks/host_cost.py --json docs/host-cost.json`), docs/footprint.json
(`python benchmarks/footprint.py --json docs/footprint.json`) and docs/executed-cost.json
(`python benchmarks/executed_cost.py --json docs/executed-cost.json`).
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

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
        flow = f"ODE, {row['ode_steps']} steps" if "ode_steps" in row else None
        T = flow or ("∞" if row["T"] is None else row["T"])
        figures = [f"{row[name]:.{digits}f}" if name in row else "" for name, digits in
                   (("bpd", 3), ("se", 3), ("recon", 4), ("prior", 4), ("diffusion", 3))]  # fmt: skip
        lines.append(f"| {T} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def distance_table() -> str:
    """FD-digits of samples, one line per sampler, one column per number of steps."""
    rows = list(map(json.loads, (ROOT / "docs/fd.jsonl").read_text().splitlines()))
    held_out, rows = rows[0], rows[1:]
    numbers = sorted({row["steps"] for row in rows})
    lines = [
        "| sampler | " + " | ".join(f"{steps} steps" for steps in numbers) + " |",
        "|---|" + "---:|" * len(numbers),
    ]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = {row["steps"]: f"{row['fd']:.1f} ± {row['se']:.1f}" for row in rows if row["sampler"] == name}
        lines.append(f"| {name} | " + " | ".join(own.get(steps, "") for steps in numbers) + " |")
    own = f"The {held_out['n']} held-out digits themselves: {held_out['fd']:.1f} ± {held_out['se']:.1f}"
    return "\n".join([*lines, "", f"{own}, with the bias of so few (only equal numbers of images compare)."])


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


def rendered(text: str) -> str:
    """README.md with its tables replaced."""
    tables = {
        "bound": bound_table(), "distance": distance_table(), "benchmarks": benchmark_tables(),
        "static": static_table(), "host": host_table(), "footprint": footprint_table(),
        "executed": executed_table(),
    }  # fmt: skip
    for name, table in tables.items():
        block = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        text, count = block.subn(f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text)
        if count != 1:
            raise ValueError(f"README.md must hold one place for the table {name!r}, found {count}")
    return text


def main() -> int:
    """Rewrite README.md, or check it."""
    path = ROOT / "README.md"
    before = path.read_text()
    after = rendered(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
