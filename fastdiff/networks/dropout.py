"""Dropout with masks of counter noise: functions of (seed, step, sample, layer), and of no generator's state.

A network numbers its layers when it is built (`number_dropouts`), so that two networks that are built alike draw the
same masks. Whoever trains it passes the noise before each forward pass (`set_dropout_noise`). The layers of a network
read it from one object that they share.
"""

import torch
from fastdiff_kernels.dropout import dropped_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import Noise, dropout


class _Source:
    """Where the layers of a network find the noise: its key, or None."""

    key: Tensor | None = None


class Dropout(nn.Module):
    """Dropout that draws its mask from a `Noise`, see `fastdiff.kernels.dropout`.

    In evaluation mode, or with p = 0, it returns its input. Without a noise it is PyTorch's dropout, as in a network
    that is used by itself.

    Args:
        p: probability that an element is dropped, in [0, 255.5 / 256); a mask of counter noise rounds it to 1/256.

    Attributes:
        layer: number among the dropout layers of its network; each number has masks of its own.
        source: holds the key of the noise. The layers of a network share it.

    Raises:
        InvalidTypeError, InvalidValueError: p is no number, or out of range.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        dropped_bytes("Dropout", p)  # checks it
        self.p, self.layer, self.source = p, 0, _Source()

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p):
            return x
        if self.source.key is None:
            return F.dropout(x, self.p)
        noise = Noise.from_key(self.source.key)
        if x.device.type == "cpu":  # where drawing the mask again in the backward pass costs more than to keep it
            return x * dropout(torch.ones_like(x), self.p, noise, self.layer)
        return dropout(x, self.p, noise, self.layer)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


def number_dropouts(*networks: nn.Module) -> None:
    """Number the dropout layers of networks that work together, 0, 1, 2, ... in the order of the modules.

    Afterwards the layers of each network share one source of noise, which `set_dropout_noise` finds without walking
    through the network.
    """
    layer = 0
    for network in networks:
        source = _Source()
        vars(network)["dropout_source"] = source
        for module in network.modules():
            if isinstance(module, Dropout):
                module.layer, module.source = layer, source
                layer += 1


def set_dropout_noise(module: nn.Module, noise: Noise | None) -> None:
    """Set the noise of all dropout layers in a module, until it is set again. None: PyTorch's dropout.

    It descends from the module to the networks whose layers have been numbered. Inside a compiled function the key is a
    tensor, so that a new step compiles nothing.
    """
    source = module.source if isinstance(module, Dropout) else vars(module).get("dropout_source")
    if source is not None:
        source.key = None if noise is None else noise.key
        return
    for child in module.children():
        set_dropout_noise(child, noise)
