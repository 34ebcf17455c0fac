"""Whether a model's configuration and the tensors of its file belong together, found out before memory is taken.

A config.json that was damaged or made up may describe a model of any size: a width of 10**9, a million blocks. The
model is built on PyTorch's meta device first, which allocates nothing, and no further than a few times what is in the
file.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..io.folders import CheckpointError
from ..models import ImageConfig, model_of

SLACK = 4  # building may make parameters that others replace


def check_plausible(config: ImageConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that a model of a configuration, without parts of the user's own, is not far larger than its file.

    Raises:
        CheckpointError: it is, or is too large to be described at all.
    """
    numbers = sum(tensor.numel() for tensor in tensors.values())
    try:
        with _at_most(SLACK * max(1, len(tensors)), SLACK * max(1, numbers), where), torch.device("meta"):
            model_of(config)
    except CheckpointError:
        raise
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:  # torch raises any of them at such sizes
        raise CheckpointError(
            f"{where} describes a model that cannot be built: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def _at_most(count: int, numbers: int, where: str) -> Iterator[None]:
    """Stop the building of a model, in this thread, at more parameters than ``count`` or more elements in them."""
    thread, found = threading.get_ident(), [0, 0]

    def add(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        found[0] += 1
        found[1] += parameter.numel()
        if found[0] > count or found[1] > numbers:
            raise CheckpointError(
                f"{where} describes a model that is too large for its file: over {numbers} weights or {count} tensors"
            )

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()
