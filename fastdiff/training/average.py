"""The exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor

from ..models import Model


class Average:
    """A copy of a model with averaged weights: average <- d · average + (1 - d) · weight, after every step.

    The decay d warms up as (1 + k) / (10 + k) after step k, up to its final value; the first update copies the
    weights. Parameters that are not trained, such as a frozen first stage, are not averaged: the copy shares them with
    the model. Buffers are copied.

    Args:
        model: the model in training.
        decay: final value of d, in [0, 1).
    """

    def __init__(self, model: Model, decay: float) -> None:
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        self.model = copy.deepcopy(model, dict(frozen))
        self.decay = decay
        named, averaged = dict(model.named_parameters()), dict(self.model.named_parameters())
        trained = [name for name, parameter in named.items() if parameter.requires_grad]
        self._pairs: tuple[list[Tensor], list[Tensor]] = (
            [averaged[name] for name in trained],
            [named[name] for name in trained],
        )
        self._buffers = list(self.model.buffers()), list(model.buffers())
        for parameter in self._pairs[0]:
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step)) if step else 0.0
        torch._foreach_lerp_(*self._pairs, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)  # pyright: ignore[reportPrivateImportUsage]

    def tensors(self) -> list[Tensor]:
        """Return the averaged parameters and buffers, which are changed in place."""
        return [*self._pairs[0], *self._buffers[0]]
