"""Maps between the tensors of one of our networks and those of another library's file, in both directions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...io.folders import CheckpointError

Tensors = Mapping[str, Tensor]


def _only(parts: list[Tensor]) -> Tensor:
    return parts[0]


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, and the tensors of the file that hold its numbers.

    ours: its name. theirs: their names, each with the names that it may have instead, the present one first.
    read: makes our tensor of theirs. write: makes theirs of ours; None for a layout that is only read.
    """

    ours: str
    theirs: tuple[tuple[str, ...], ...]
    read: Callable[[list[Tensor]], Tensor] = _only
    write: Callable[[Tensor], list[Tensor]] | None = _alone


def same(ours: str, *names: str) -> Entry:
    """Return the entry of a tensor that is the same in both, under the first of ``names`` or another of them."""
    return Entry(ours, (names,))


def joined(ours: str, parts: Iterable[tuple[str, ...]], sizes: Iterable[int]) -> Entry:
    """Return the entry of a tensor whose rows are those of several tensors of theirs, of these numbers of rows."""
    sizes = list(sizes)
    return Entry(ours, tuple(parts), torch.cat, lambda tensor: list(tensor.split(sizes)))


def read_tensors(entries: Iterable[Entry], theirs: Tensors, ours: Tensors, where: str, what: str) -> dict[str, Tensor]:
    """Return the state of our network from the tensors of a file, float32.

    Args:
        entries: the map; every tensor of ``ours`` must be in it.
        theirs: the tensors of the file, all of which must be used.
        ours: the state of our network, for names and shapes.
        where: the file, for messages.
        what: the kind of network in it, such as "a UNet2DModel".

    Raises:
        CheckpointError: tensors that are missing, left over, or of another shape or kind; all are listed.
    """
    left, state, problems = dict(theirs), {}, []
    for entry in entries:
        found = [next((name for name in names if name in left), None) for names in entry.theirs]
        missing = [names[0] for names, name in zip(entry.theirs, found, strict=True) if name is None]
        parts = [left.pop(name) for name in found if name is not None]
        if missing:
            problems += [f"missing tensor {name}" for name in missing]
            continue
        try:
            value = entry.read(parts)
        except (RuntimeError, IndexError, ValueError):  # torch's errors of shapes that do not fit
            value = torch.empty(0)
        wanted = tuple(ours[entry.ours].shape)
        if tuple(value.shape) != wanted or not value.is_floating_point():
            got = ", ".join(f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in parts)
            named = " and ".join(name for name in found if name is not None)
            problems.append(f"{named} must make a floating-point tensor of shape {wanted}, got {got}")
            continue
        state[entry.ours] = value.float().contiguous()
    problems += [f"unknown tensor {name}" for name in sorted(left)]
    problems += [f"no tensor for {name}" for name in ours if name not in state] if not problems else []
    if problems:
        raise CheckpointError(f"{where} must hold the weights of {what} of its configuration: {shortened(problems)}")
    return state


def write_tensors(entries: Iterable[Entry], ours: Tensors) -> dict[str, Tensor]:
    """Return the tensors of a file, under their present names, from the state of our network."""
    theirs: dict[str, Tensor] = {}
    for entry in entries:
        assert entry.write is not None, f"the layout of {entry.ours} is only read"
        for names, tensor in zip(entry.theirs, entry.write(ours[entry.ours]), strict=True):
            theirs[names[0]] = tensor.contiguous()
    return theirs


def shortened(problems: list[str], most: int = 8) -> str:
    """Return problems as one line, of which the first ``most`` are given."""
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest} more" if rest > 0 else "")
