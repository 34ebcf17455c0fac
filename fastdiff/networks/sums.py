"""Sums of features that the next normalisation adds up while it reads them.

A residual block ends with a sum, and the next layer usually begins with a normalisation. Added up first, the sum is
written and read once more than necessary. A block therefore returns its sum unevaluated, and `group_norm_silu` reads
the parts. The same holds for the bias of a convolution, which is a pass of its own on a GPU, and for a concatenation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import group_norm_silu


class Convolved(NamedTuple):
    """A convolution of features that is not computed yet.

    Args:
        conv: the convolution.
        x: its input.
        bias: its bias repeated for every sample, [B, C] (`rows`), if adding it is left to who reads the result; else
            None.
    """

    conv: nn.Conv2d
    x: Tensor
    bias: Tensor | None = None

    def without_bias(self) -> Tensor:
        """Return the convolution without its bias."""
        conv = self.conv
        return F.conv2d(self.x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


class Sum:
    """Features cat([value + shift + residual, skip]) that are not added up yet.

    Args:
        value: [B, C, H, W]; or a convolution, which is computed when the sum is read.
        shift: [B, C], or None.
        residual: like value, or None.
        skip: features [B, C', H, W] that are concatenated to the sum, or None.
    """

    def __init__(
        self,
        value: Tensor | Convolved,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        self.value, self.shift, self.residual, self.skip = value, shift, residual, skip

    def tensor(self) -> Tensor:
        """Return the features as one tensor. They are added up once, here or by `normalized`."""
        total = self.value.conv(self.value.x) if isinstance(self.value, Convolved) else self.value
        total = total if self.shift is None else total + self.shift[:, :, None, None]
        total = total if self.residual is None else total + self.residual
        return self._evaluated(total if self.skip is None else torch.cat([total, self.skip], dim=1))

    def with_skip(self, skip: Tensor) -> "Sum":
        """Return the concatenation of these features, which must have no skip yet, and ``skip``, not added up."""
        return Sum(self.value, self.shift, self.residual, skip)

    def normalized(
        self, norm: nn.GroupNorm, scale: Tensor | None = None, shift: Tensor | None = None, activation: bool = True
    ) -> Tensor:
        """Return the group normalisation of the features, with scale, shift and SiLU as in `group_norm_silu`.

        If the sum has a residual or a skip, `tensor` returns afterwards what was written in the same pass.
        """
        value = self._compute()
        parts = [part for part in (self.residual, self.skip) if part is not None]
        if any(part.dtype != value.dtype for part in parts):  # under autocast; the sum has the wider dtype
            value, parts = self.tensor(), []
        weight, bias = norm.weight.float(), norm.bias.float()  # the operation takes float32, also in a 16-bit model
        result = group_norm_silu(
            value, norm.num_groups, weight, bias, scale, shift, norm.eps, pre_shift=self.shift,
            residual=self.residual, skip=self.skip, activation=activation,
        )  # fmt: skip
        if not isinstance(result, tuple):
            return result
        normal, total = result
        self._evaluated(total)
        return normal

    def _compute(self) -> Tensor:
        """Compute the convolution, if the value is one; its bias becomes a shift where it is left to the reader."""
        if isinstance(self.value, Convolved):
            row = self.value.bias
            self.value = self.value.conv(self.value.x) if row is None else self.value.without_bias()
            self.shift = row if self.shift is None else self.shift if row is None else self.shift + row
        return self.value

    def _evaluated(self, total: Tensor) -> Tensor:
        """Keep the total in place of its parts, whose memory is then free."""
        self.value, self.shift, self.residual, self.skip = total, None, None, None
        return total


def as_sum(x: Tensor | Sum) -> Sum:
    """Return features as a `Sum`, of one tensor if they are added up."""
    return x if isinstance(x, Sum) else Sum(x)


def joint_bias(convolutions: Sequence[nn.Conv2d]) -> Tensor:
    """Return the biases of convolutions one after another, [Σ C_k]."""
    return torch.cat([conv.bias for conv in convolutions if conv.bias is not None])


def bias_is_a_pass(device: torch.device) -> bool:
    """Whether a convolution adds its bias in a pass of its own. On a CPU oneDNN adds it in the convolution's."""
    return device.type != "cpu"


def rows(convolutions: Sequence[nn.Conv2d], batch: int) -> Sequence[Tensor | None]:
    """Return the biases [C_k] of convolutions as [B, C_k], in few operations: views of one row for all.

    None for each where the convolution adds its bias at no cost.
    """
    if not bias_is_a_pass(convolutions[0].weight.device):
        return [None] * len(convolutions)
    return joint_bias(convolutions).expand(batch, -1).split([conv.out_channels for conv in convolutions], dim=1)


class Projections(nn.Module):
    """The linear layers from an embedding to each residual block, as one matrix product.

    Args:
        blocks: modules with a linear layer ``projection`` from [B, E] to [B, size_k], all with a bias or all without.
            The layers are taken out of them.
    """

    bias: nn.Parameter | None

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        layers = [block.projection for block in blocks if isinstance(block.projection, nn.Linear)]
        for block in blocks:
            del block.projection
        self.sizes = [layer.out_features for layer in layers]
        self.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.register_parameter("bias", nn.Parameter(torch.cat(biases)) if biases else None)

    def forward(self, embedding: Tensor, convolutions: Sequence[nn.Conv2d] = ()) -> Sequence[Tensor]:
        """Return weight_k embedding + bias_k, [B, size_k], for every block k.

        Args:
            embedding: [B, E].
            convolutions: one for each block, to size_k channels, whose biases are added; or none.
        """
        bias = self.bias
        if convolutions:
            further = joint_bias(convolutions)
            bias = further if bias is None else bias + further
        return F.linear(embedding, self.weight, bias).split(self.sizes, dim=1)
