"""The table of headline figures at the top of README.md: a line a claim, each from a committed file."""

import json
import statistics
from pathlib import Path
from typing import Any

SMALL = "6.5M"  # the parameters of the DDPM that is timed on a CPU, in docs/side-by-side-cpu.json
OPERATIONS = (  # on a CPU: name and case in benchmarks/results, what a reader calls it
    ("decoder_nll + gradient", "", "discretised likelihood and its gradient"),
    ("diffuse", "noise drawn", "noising, drawing counter-based noise"),
)
SHAPE = [64, 3, 32, 32]
HEADER = ("| what | fastdiff | beside it |", "|---|---:|---:|")


def headline_table(root: Path) -> str:
    """The lines of all subjects: bounds, samples with few calls, whole models, and operations on a CPU."""
    docs = root / "docs"
    lines = [*_bounds(docs), *_few_calls(docs), *_mixture(docs), *_models(docs), *_operations(root)]
    return "\n".join([*HEADER, *(f"| {what} | {ours} | {others} |" for what, ours, others in lines)])


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _bounds(docs: Path) -> list[tuple[str, str, str]]:
    """Bits per dimension of the embedded models."""
    rows = [json.loads(line) for line in (docs / "bound.jsonl").read_text().splitlines()]
    digits = next(row for row in rows if row["T"] is None and "ode_steps" not in row)
    letters = _read(docs / "letters.json")["models"]["vdm-letters"]
    return [
        ("bits/dim of held-out digits, 8×8", f"{digits['bpd']:.3f} ± {digits['se']:.3f}", ""),
        ("bits/dim of letters of unseen fonts, 28×28", f"{letters['bpd']:.3f} ± {letters['se_groups']:.3f}", ""),
    ]


def _mixture(docs: Path) -> list[tuple[str, str, str]]:
    """FD-letters of the DiffuseVAE with z from a mixture, beside z from the VAE's prior."""
    row = _read(docs / "letters.json")["models"]["diffusevae-letters"]
    (ours, error), (theirs, other) = row["fd_mixture"], row["fd"]
    what = "FD-letters of a DiffuseVAE, z from a mixture"
    return [(what, f"{ours:.1f} ± {error:.1f}", f"z from the VAE's prior {theirs:.0f} ± {other:.0f}")]


def _few_calls(docs: Path) -> list[tuple[str, str, str]]:
    """FD-digits of the best sampler for few calls beside DDIM."""
    rows = _read(docs / "few-calls.json")["rows"]

    def text(name: str, calls: str) -> str:
        values = [value for value, _ in rows[name]["calls"][calls]]
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"

    return [
        (f"FD-digits with {calls} calls of the network", text("unipc, model", calls), f"DDIM {text('ddim', calls)}")
        for calls in ("5", "10")
    ]


def _models(docs: Path) -> list[tuple[str, str, str]]:
    """Launches and bytes of the DDPM of CIFAR-10, and times on a CPU, beside diffusers' same network."""
    footprint = {(row["model"], row["what"]): row["total"] for row in _read(docs / "footprint.json")["rows"]}
    ours, theirs = (footprint[name, "training"] for name in ("ddpm-cifar10", "diffusers"))
    lines = [
        ("kernel launches of a training step, DDPM of CIFAR-10", f"{ours['launches']:,}",
         f"diffusers {theirs['launches']:,}"),
        ("its element-wise memory traffic, batch of 2", f"{1e-6 * ours['bytes']:,.0f} MB",
         f"diffusers {1e-6 * theirs['bytes']:,.0f} MB"),
    ]  # fmt: skip
    for row in _read(docs / "side-by-side-cpu.json")["rows"]:
        case, seconds = row["case"], {name: middle for name, (_, middle, _) in row["seconds"].items()}
        if case["size"] != SMALL:
            continue
        if case["what"] == "training" and case["batch"] == 16:
            what = "2 CPU cores: its training step, batch of 16"
            ours, theirs = seconds["fastdiff"], seconds["diffusers"]
        elif case["what"] == "sampling":
            what = f"2 CPU cores: an image of a DDPM of 6.5 M by DDIM, {case['steps']} calls, compiled"
            ours = seconds["fastdiff best"]
            theirs = min(value for name, value in seconds.items() if name.startswith("diffusers "))
        else:
            continue
        lines.append((what, f"{1e3 * ours:,.0f} ms", f"diffusers {1e3 * theirs:,.0f} ms"))
    return lines


def _operations(root: Path) -> list[tuple[str, str, str]]:
    """Operations on a CPU against plain PyTorch, and the machine code of noising on sm_90."""
    lines, rows = [], _read(root / "benchmarks/results/cpu-2-cores.json")["rows"]
    for operation, case, title in OPERATIONS:
        row = next(
            row for row in rows
            if (row["operation"], row["case"], row["shape"], row["against"]) == (operation, case, SHAPE, "eager")
        )  # fmt: skip
        ours, what = row["fastdiff"][1], f"2 CPU cores: {title}, {'×'.join(map(str, SHAPE))}"
        lines.append((what, f"{1e3 * ours:.1f} ms", f"plain PyTorch {1e3 * ours * row['ratio'][1]:.1f} ms"))
    static = next(
        row for row in _read(root / "docs/static-cost.json")["rows"]
        if (row["target"], row["kernel"], row["variant"], row["dtype"], row["aside"])
        == ("sm_90", "diffuse", "noise drawn", "float32", False)
    )  # fmt: skip
    what = "the same compiled for sm_90 (not run on a GPU yet)"
    lines.append((what, f"{static['instructions']:.0f} instructions, {static['moved']} bytes per element", ""))
    return lines
