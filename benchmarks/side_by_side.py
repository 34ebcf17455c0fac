"""fastdiff beside diffusers in one process: the same weights, the same precision, in turns.

    python benchmarks/side_by_side.py                              on a CPU: some minutes
    python benchmarks/side_by_side.py --quick                      tries it, with a tiny network
    python benchmarks/side_by_side.py --device cuda --precision bf16 --json PATH

``forward``: a call of the network. ``sampling``: images by DDIM in 50 steps; fewer where one call would take more than
a third of --seconds, which the table says. ``training``: a step of L_simple with AdamW. On a GPU also ``vdm``: training
steps of `vdm-cifar10`, of our sides alone. `side_calls` says what the sides are, and checks that they compute the same
before anything is timed.

A round times every side once; a change of the machine's speed affects all of them. Printed are medians over the rounds,
and ratios of times taken round by round: above 1 ours is faster. "compiled" is the fastest of diffusers' modes of
``torch.compile``. A side that fails is reported as such, and the others are timed.

To compile a training step takes minutes on a CPU: with --eager nothing is compiled. --json keeps the other cases of an
earlier run on the same machine, so that cases can be measured by commands of their own.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # before CUDA starts: all sides multiply in float32
sys.path.insert(0, str(Path(__file__).parent))

from clocks import wall_clock
from footprint import footprint
from report import Quantiles, machine, quantiles
from side_calls import (
    BEST,
    DIFFUSERS,
    FASTDIFF,
    MODES,
    DifferentError,
    Sides,
    forward_sides,
    model_training_sides,
    sampling_sides,
    training_sides,
)
from side_memory import peak_memory
from side_models import SIZES, Pair, pair_of

from fastdiff.models import DiffusionModel
from fastdiff.presets import preset

WHAT = ("forward", "sampling", "training", "vdm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS = (50, 25, 10, 5)  # of DDIM: divisors of 1000
MIN_ROUNDS, MAX_ROUNDS = 3, 50
VDM = "vdm-cifar10"


@dataclass(frozen=True)
class Case:
    """What is measured: one of `WHAT` for one of `SIZES`, or of the preset `VDM`."""

    what: str
    size: str
    batch: int
    precision: str
    device: str
    steps: int = 50

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks."""
        return DTYPES[self.precision]


@dataclass(frozen=True)
class Measured:
    """Seconds of each side of a case, 20 %, 50 % and 80 % over the rounds; ratios; and what could not be measured.

    ratios: by ``"A / B"``, the time of A over that of B. memory: peak bytes beyond those before the side was made.
    shape: [C, H, W] of an image; files of earlier versions, all of 3 × 32 × 32, do not have it.
    """

    case: Case
    parameters: int
    rounds: int
    seconds: dict[str, Quantiles]
    ratios: dict[str, Quantiles]
    memory: dict[str, int]
    failed: dict[str, str]
    shape: tuple[int, ...] = (3, 32, 32)


def sides_of(case: Case, modes: tuple[str, ...]) -> tuple[Sides, int, tuple[int, ...]]:
    """The sides of a case, checked, the number of parameters, and the shape of an image.

    Models are built anew: a training changes them.
    """
    device = torch.device(case.device)
    if case.what == "vdm":
        model = preset(VDM).build().to(device)
        assert isinstance(model, DiffusionModel)
        x = torch.randint(256, (case.batch, *model.shape), dtype=torch.uint8, device=device)
        count = sum(p.numel() for p in model.network.parameters())
        return model_training_sides(model, x, "elbo", case.dtype), count, model.shape
    dtype = torch.float32 if case.what == "training" else case.dtype  # training rounds by autocast
    pair: Pair = pair_of(case.size, device, dtype)
    if case.what == "sampling":
        sides = sampling_sides(pair, case.batch, case.steps, case.dtype, device, modes)
    else:
        make = forward_sides if case.what == "forward" else training_sides
        sides = make(pair, case.batch, case.dtype, device, modes)
    return sides, pair.parameters, pair.shape


def measured(case: Case, options: argparse.Namespace, say: Callable[[str], object]) -> Measured:
    """Make the sides of a case, warm them up, and time them in turns for about ``seconds`` or so many rounds."""
    device = torch.device(case.device)
    sides, parameters, shape = sides_of(case, tuple(options.modes))
    if options.eager:
        sides = {name: make for name, make in sides.items() if name in (DIFFUSERS, FASTDIFF)}
    watches, memory, failed = {}, {}, {}
    for name, make in sides.items():
        began = perf_counter()
        try:
            if case.device == "cuda":
                memory[name] = peak_memory(make, device)
            watches[name] = wall_clock(device)(make())
        except DifferentError:
            raise
        except Exception as error:  # a compiler or a graph that fails is a result too
            failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        say(f"  {name}: {failed.get(name, f'ready in {perf_counter() - began:.1f} s')}")
    samples: dict[str, list[float]] = {name: [] for name in watches}
    began = perf_counter()
    for watch in watches.values():
        watch()
    fitting = min(MAX_ROUNDS, int(options.seconds / (perf_counter() - began)))
    count = options.rounds or max(MIN_ROUNDS, fitting)
    for _ in range(count):
        for name, watch in watches.items():
            samples[name].append(watch())
    torch.compiler.reset()
    found = {name: quantiles(times) for name, times in samples.items()}
    return Measured(case, parameters, count, found, ratios_of(samples), memory, failed, shape)


def ratios_of(samples: dict[str, list[float]]) -> dict[str, Quantiles]:
    """Ratios of the others' times over ours, round by round; "compiled" is their fastest mode."""
    compiled = [name for name in samples if name.startswith(f"{DIFFUSERS} ")]
    others = {DIFFUSERS: samples[DIFFUSERS]} if DIFFUSERS in samples else {}
    if compiled:
        others[f"{DIFFUSERS} compiled"] = min((samples[name] for name in compiled), key=median)
    elif FASTDIFF in samples:
        others[FASTDIFF] = samples[FASTDIFF]
    ratios = {}
    for ours in (FASTDIFF, BEST):
        for name, times in others.items():
            if ours in samples and ours != name:
                pairs = zip(times, samples[ours], strict=True)
                ratios[f"{name} / {ours}"] = quantiles([their / our for their, our in pairs])
    return ratios


def steps_that_fit(case: Case, seconds: float) -> int:
    """The number of steps of a sampling case, of which one call in eager mode takes a third of ``seconds`` at most."""
    device = torch.device(case.device)
    sides, *_ = sides_of(Case("forward", case.size, case.batch, case.precision, case.device), ())
    call = wall_clock(device)(sides[FASTDIFF]())
    one = min(call() for _ in range(3))
    fitting = [steps for steps in STEPS if steps <= case.steps and steps * one <= seconds / 3]
    return fitting[0] if fitting else STEPS[-1]


def table(rows: list[Measured]) -> list[str]:
    """One line per case and side, with the ratios to diffusers."""
    lines = [f"{'size':<12}{'what':<22}{'batch':>6}  {'side':<26}{'time':>10}{'img/s':>9}{'memory':>10}  diffusers/it"]
    for row in rows:
        case = row.case
        what = f"{case.what}, {case.steps} steps" if case.what == "sampling" else case.what
        for name, (_, middle, _) in row.seconds.items():
            memory = f"{row.memory[name] / 2**20:.0f} MiB" if name in row.memory else ""
            ratios = [
                f"{kind} {row.ratios[key][1]:.2f} ({row.ratios[key][0]:.2f}–{row.ratios[key][2]:.2f})"
                for kind, key in (("eager", f"{DIFFUSERS} / {name}"), ("compiled", f"{DIFFUSERS} compiled / {name}"))
                if key in row.ratios
            ]
            cells = f"{1e3 * middle:>7.1f} ms{case.batch / middle:>9.1f}{memory:>10}"
            lines.append(f"{case.size:<12}{what:<22}{case.batch:>6}  {name:<26}{cells}  {', '.join(ratios)}".rstrip())
        lines += [f"{case.size:<12}{what:<22}{case.batch:>6}  {name:<26}{why}" for name, why in row.failed.items()]
    return lines


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The cases that were asked for, the small ones first; `VDM` only on a GPU, at the largest batch."""
    make = partial(Case, precision=options.precision, device=options.device, steps=STEPS[0])
    found = []
    for size in options.size:
        batches = options.batches or default_batches(options.device, size)
        for batch in batches:
            found += [make(what, size, batch) for what in options.what if what != "vdm"]
    if "vdm" in options.what and options.device == "cuda":
        found.append(make("vdm", VDM, max(options.batches or [128])))
    return found


def default_batches(device: str, size: str) -> list[int]:
    """What is worth measuring and takes seconds."""
    if device == "cuda":
        return [1, 16, 128]
    return [1] if size == "35.7M" else [1, 16]


def arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), help="default: 28x28, 6.5M and 35.7M")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="default: 1 16 128 on a GPU, 1 16 on a CPU")
    parser.add_argument("--modes", nargs="*", help="modes of torch.compile for diffusers' network")
    parser.add_argument("--eager", action="store_true", help="without a compiler: the eager sides only")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the timing of one case (default: 20)")
    parser.add_argument("--rounds", type=int, help="rounds of each case, in place of --seconds")
    parser.add_argument(
        "--memory", action="store_true", help="on a CPU (Linux): memory of the eager sides, in processes"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results as JSON")
    parser.add_argument("--quick", action="store_true", help="a tiny network, few rounds")
    options = parser.parse_args()
    options.size = options.size or (["tiny"] if options.quick else ["28x28", "6.5M", "35.7M"])
    if options.quick:
        options.batches, options.rounds = options.batches or [2], options.rounds or MIN_ROUNDS
    if options.modes is None:
        options.modes = MODES[options.device]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch.cuda.is_available() is False: there is no GPU to measure")
    return options


def main() -> int:
    """Measure, print, and write JSON if requested."""
    options = arguments()
    say = partial(print, flush=True)
    rows: list[Measured] = []
    for case in cases_of(options):
        if case.what == "sampling":
            case = Case(**{**asdict(case), "steps": steps_that_fit(case, options.seconds)})  # noqa: PLW2901
        say(f"{case.size}, {case.what}, batch {case.batch}, {case.precision}, {case.device}")
        row = measured(case, options, say)
        if options.memory and case.device == "cpu":
            row.memory.update(eager_memory(case, row))
        rows.append(row)
        if options.json is not None:
            write(options.json, rows, options)
    say("\n".join(["", f"{machine()['cpu']}, torch {torch.__version__}", *table(rows)]))
    return 0


def eager_memory(case: Case, row: Measured) -> dict[str, int]:
    """Peak memory on a CPU of the eager sides: a compiler runs in the process, and its memory would count."""
    from side_memory import in_process

    return {name: in_process(case, name) for name in (DIFFUSERS, FASTDIFF) if name in row.seconds}


def write(path: Path, rows: list[Measured], options: argparse.Namespace) -> None:
    """Write the results, with the counts of `footprint` for the large size; see `merged`."""
    counted: list[dict[str, Any]] = []
    if "35.7M" in options.size:
        for name in ("ddpm-cifar10", DIFFUSERS) if any(DIFFUSERS in row.seconds for row in rows) else ("ddpm-cifar10",):
            counted += [
                {"model": name, "what": what, **asdict(footprint(name, what).total)} for what in ("forward", "training")
            ]
    content = {
        "machine": machine(),
        "quick": options.quick,
        "rows": [asdict(row) for row in rows],
        "footprint": counted,
    }
    content = json.loads(json.dumps(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(merged(json.loads(path.read_text()), content) if path.exists() else content, indent=1))


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Add rows of an earlier run on the same machine, with the same versions, whose case was not measured again.

    So the cases can be measured one after the other where compiling them takes long.
    """
    if (old["machine"], old["quick"]) != (new["machine"], new["quick"]):
        return new
    rows = {json.dumps(row["case"], sort_keys=True): row for row in (*old["rows"], *new["rows"])}
    order = sorted(rows.values(), key=lambda row: (row["parameters"], row["case"]["batch"], row["case"]["what"]))
    return {**new, "rows": order, "footprint": new["footprint"] or old["footprint"]}


if __name__ == "__main__":
    sys.exit(main())
