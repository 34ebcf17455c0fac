"""Faults that other files of the test suite try: here they are run, and counted."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

from .fault import NotTried, Outcome, Tries, fault
from .signals import ROOT


def those_of(*paths: str, only: str = "") -> Callable[[Tries], Iterator[Outcome]]:
    """Return the code of a fault that is tried by these tests; every test counts as a try."""

    def run(tries: Tries) -> Iterator[Outcome]:
        path = os.pathsep.join(map(str, [ROOT, ROOT / "kernels", ROOT / "tests"]))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-rA",
            "--tb=line",
            "-q",
            "--benchmark-disable",
            "-p",
            "no:cacheprovider",
            "-m",
            "",  # slow tests too
        ]
        done = subprocess.run(
            [*command, *(["-k", only] if only else []), *paths], cwd=ROOT, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        outcomes = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        if not outcomes:
            yield f"no test ran: {(done.stdout + done.stderr)[-300:]}"
        for outcome, name in outcomes:
            yield None if outcome == "PASSED" else f"{outcome} {name}"

    return run


KERNELS = [f"tests/kernels/test_{name}.py" for name in ("bounds", "layouts", "properties", "group_norm", "noise")]

fault(
    "kernels on edge shapes, strides and dtypes", "ecosystem 22", tries=1, quick=0,
    done="Every operation runs in Triton's interpreter on odd shapes, strides, layouts and dtypes, with guard bands "
    "around its buffers",
    must_hold="it matches the float64 reference within the measured error; nothing outside the buffers is touched",
)(those_of(*KERNELS))  # fmt: skip

fault(
    "wrong arguments of kernels", "faults 2.15", tries=1, quick=0,
    done="The operations are called with wrong types, dtypes, shapes, devices and coefficients",
    must_hold="an error of the right class names the argument",
)(those_of("tests/kernels/test_arguments.py"))  # fmt: skip

fault(
    "no triton, no GPU, interpreter", "ecosystem 21", tries=1, quick=0,
    done="fastdiff runs in processes without triton, without a GPU, and with Triton's interpreter",
    must_hold="the right backend, or a message that says what is missing; no import before its use",
)(those_of("tests/kernels/test_backend.py", "tests/test_imports.py"))  # fmt: skip

fault(
    "hostile data files", "faults 1, 2.9, 2.13", tries=1, quick=0,
    done="Huge PNGs, named pipes, bombs of gzip and zip, npz headers that claim 10¹² images, channels last, labels "
    "of 2⁶⁴ − 1",
    must_hold="a named error within 1 s and 200 MB",
)(those_of("tests/data/test_hostile.py"))  # fmt: skip

fault(
    "wrong arguments of the command line", "faults 2.12, 2.14, 2.18", tries=1, quick=0,
    done="Every command is called with values that are wrong; and a defect of the type TypeError is put in",
    must_hold="one line on stderr and exit code 2, nothing written; the defect keeps its traceback",
)(those_of("tests/cli/test_errors.py"))  # fmt: skip

fault(
    "advice that is printed", "faults 2.12", tries=1, quick=0,
    done="The command that `fastdiff train` prints after an interruption is run as it stands, with and without a "
    "checkpoint, in paths with spaces",
    must_hold="it works, and keeps the options",
)(those_of("tests/cli/test_train.py"))  # fmt: skip

fault(
    "models that cannot be saved", "faults 2.8", tries=1, quick=0,
    done="A model with a network, schedule or weights that were put in by hand is saved",
    must_hold="save rejects what load would reject",
)(those_of("tests/models/test_own_parts.py", only="save or none_was_saved"))  # fmt: skip

fault(
    "several processes: death, errors and signals of one", "ecosystem 17, 18", tries=1, quick=0,
    done="One of two or four processes dies, raises an error or meets a signal while they exchange, sample or evaluate",
    must_hold="the others end with a message that names it; nobody waits for ever",
)(those_of("tests/io/test_processes.py", "tests/training/test_several_processes.py"))  # fmt: skip


@fault(
    "memory of a GPU", "ecosystem 19", tries=1, quick=0,
    done="Sampling on a GPU whose memory is full",
    must_hold="the batch is halved until it fits; the same images up to rounding",
)  # fmt: skip
def gpu_memory(tries: Tries) -> Iterator[Outcome]:
    import torch

    if not torch.cuda.is_available():
        raise NotTried("no GPU; an error that is raised in place of it is tried above")
    import fastdiff

    model = fastdiff.load("digits").cuda()
    expected = fastdiff.sample(model, 64, steps=3)
    free = torch.cuda.mem_get_info()[0]
    hoard = torch.empty(max(0, free - (300 << 20)), dtype=torch.uint8, device="cuda")
    found = fastdiff.sample(model, 4096, steps=3, batch_size=4096)[:64]
    del hoard
    far = float((found.float() - expected.float()).abs().max())
    yield None if far <= 16 else f"pixels differ by {far}"
