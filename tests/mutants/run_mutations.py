"""Runs mutations of PTX on the machine, in a process of its own: `run.py` starts it.

    python tests/mutants/run_mutations.py NAME ...

The test of a mutation must pass without it, and fail with it by the check that the mutation names. Each mutation prints
one line with its name, the outcome, and what caught the fault, separated by tabs.
"""

import sys
import traceback

import torch
from fastdiff_kernels import use_backend
from machine import test_cases
from machine.backend import on_machine
from machine.driver import settings
from machine.faults import BadLaunch, MachineError, SyntaxFault, UnknownInstruction
from mutants.mutations import MUTATIONS, NUMBERS, Mutation, NoPlace

INVALID = (BadLaunch, SyntaxFault, UnknownInstruction)  # the mutation has made PTX that means nothing


class Applied:
    """Changes the PTX of a mutation's kernel wherever the mutation finds its place, and counts the texts."""

    def __init__(self, mutation: Mutation) -> None:
        self.mutation, self.texts = mutation, 0

    def __call__(self, kernel: str, ptx: str) -> str:
        if kernel != self.mutation.kernel:
            return ptx
        try:
            ptx = self.mutation.change(ptx)
        except NoPlace:
            return ptx  # another specialisation, for example without vector accesses
        self.texts += 1
        return ptx


def run_test(mutation: Mutation) -> None:
    """Call the test of a mutation, without the mutation."""
    torch.manual_seed(0)
    arguments = dict(mutation.arguments)
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, str(arguments["dtype"]))
    getattr(test_cases, mutation.test)(**arguments)


def caught(mutation: Mutation) -> tuple[str, str]:
    """Run the test with the mutation: what caught it, as in ``Mutation.by``, and the message; "" if nothing did.

    Raises:
        NoPlace: the mutation changed no text.
        BadLaunch, SyntaxFault, UnknownInstruction: the text that it made is no PTX.
    """
    applied, found = Applied(mutation), ("", "")
    try:
        with settings(transform=applied):
            run_test(mutation)
    except INVALID:
        raise
    except MachineError as fault:
        found = type(fault).__name__, str(fault)
    except AssertionError as failure:
        line = traceback.extract_tb(failure.__traceback__)[-1].line or ""
        found = NUMBERS, (str(failure) or line).partition("\n")[0]
    if not applied.texts:
        raise NoPlace(f"no place in the PTX of {mutation.kernel}; {found[1] or 'the test passes'}")
    return found


def outcome(mutation: Mutation, passing: set[str]) -> tuple[str, str]:
    """One of killed, SURVIVED and BROKEN, and why; ``passing`` are tests that pass without a mutation."""
    if mutation.call() not in passing:
        try:
            run_test(mutation)
        except (MachineError, AssertionError) as fault:
            return "BROKEN", f"{mutation.call()} fails without the mutation: {fault}".partition("\n")[0]
        passing.add(mutation.call())
    try:
        by, message = caught(mutation)
    except (NoPlace, *INVALID) as fault:
        return "BROKEN", f"{type(fault).__name__}: {fault}"
    if by == mutation.by:
        return "killed", f"{by}: {message}"
    return "SURVIVED", f"caught by {by}, not by {mutation.by}: {message}" if by else f"no failure in {mutation.call()}"


def main() -> None:
    torch.set_num_threads(1)
    passing: set[str] = set()
    with on_machine(), use_backend("torch"):
        for name in sys.argv[1:]:
            print(name, *outcome(MUTATIONS[name], passing), sep="\t", flush=True)


if __name__ == "__main__":
    main()
