"""improved-diffusion's U-Net and chain in float64, from their description: functions of a state dictionary of theirs.

`parameters` names and sizes the tensors as their constructor does, `unet` reads the layers off the names. Nothing here
uses our layers or our names. `Chain` is their Gaussian diffusion, steps t = 0 .. T - 1.
"""

import math
import re

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


class Shapes(dict[str, tuple[int, ...]]):
    """Shapes by name, to which whole layers are added."""

    def layer(self, name: str, *shape: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = shape, shape[:1]

    def res(self, name: str, before: int, after: int, embedding: int, scale_shift: bool) -> None:
        self.layer(f"{name}.in_layers.0", before)
        self.layer(f"{name}.in_layers.2", after, before, 3, 3)
        self.layer(f"{name}.emb_layers.1", after * (2 if scale_shift else 1), embedding)
        self.layer(f"{name}.out_layers.0", after)
        self.layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            self.layer(f"{name}.skip_connection", after, before, 1, 1)

    def attend(self, name: str, size: int) -> None:
        self.layer(f"{name}.norm", size)
        self.layer(f"{name}.qkv", 3 * size, size, 1)
        self.layer(f"{name}.proj_out", size, size, 1)


def parameters(
    width: int,
    multipliers: tuple[int, ...],
    blocks: int,
    attention: tuple[int, ...] = (),
    scale_shift: bool = True,
    channels: int = 3,
    learn_sigma: bool = False,
    classes: int = 0,
) -> Shapes:
    """Shapes by name; ``attention`` are factors of the image size."""
    shapes, embedding = Shapes(), 4 * width
    layer, attend = shapes.layer, shapes.attend

    def res(name: str, before: int, after: int) -> None:
        shapes.res(name, before, after, embedding, scale_shift)

    layer("time_embed.0", embedding, width)
    layer("time_embed.2", embedding, embedding)
    if classes:
        shapes["label_emb.weight"] = (classes, embedding)
    layer("input_blocks.0.0", width, channels, 3, 3)
    now, kept, number = width, [width], 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            res(f"input_blocks.{number}.0", now, multiplier * width)
            now = multiplier * width
            if 2**level in attention:
                attend(f"input_blocks.{number}.1", now)
            kept.append(now)
            number += 1
        if level < len(multipliers) - 1:
            layer(f"input_blocks.{number}.0.op", now, now, 3, 3)
            kept.append(now)
            number += 1
    res("middle_block.0", now, now)
    attend("middle_block.1", now)
    res("middle_block.2", now, now)
    number = 0
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for i in range(blocks + 1):
            res(f"output_blocks.{number}.0", now + kept.pop(), multiplier * width)
            now = multiplier * width
            if 2**level in attention:
                attend(f"output_blocks.{number}.1", now)
            if level and i == blocks:
                layer(f"output_blocks.{number}.{1 + (2**level in attention)}.conv", now, now, 3, 3)
            number += 1
    layer("out.0", now)
    layer("out.2", channels * (2 if learn_sigma else 1), width, 3, 3)
    return shapes


def random_state(shapes: Shapes, seed: int) -> State:
    """Weights of unit gain, biases that are not zero, normalisations around 1; float32.

    The first convolution is small, so that what normalisations add to the variances matters.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        is_norm = re.search(r"in_layers\.0|out_layers\.0|norm|^out\.0", name) is not None
        if len(shape) == 1:
            state[name] = 0.1 * drawn + (1.0 if is_norm and name.endswith("weight") else 0.0)
        else:
            state[name] = drawn / math.sqrt(math.prod(shape[1:]))
        if name.startswith("input_blocks.0.0."):
            state[name] *= 0.1
    return state


def silu(h: Tensor) -> Tensor:
    return h / (1.0 + torch.exp(-h))


class Layers:
    """The layers of the network by name, on features [B, C, H, W] in float64; ``emb`` is the embedding."""

    def __init__(self, state: State, heads: int, new_order: bool, head_size: int | None) -> None:
        self.s = {name: tensor.double() for name, tensor in state.items()}
        self.heads, self.new_order, self.head_size = heads, new_order, head_size
        self.emb = torch.empty(0)

    def linear(self, name: str, h: Tensor) -> Tensor:
        return h @ self.s[f"{name}.weight"].T + self.s[f"{name}.bias"]

    def norm(self, name: str, h: Tensor) -> Tensor:
        groups = h.reshape(len(h), 32, -1)
        centered = groups - groups.mean(2, keepdim=True)
        scaled = centered / torch.sqrt(centered.square().mean(2, keepdim=True) + 1e-5)
        each = [-1, *[1] * (h.dim() - 2)]
        return scaled.reshape(h.shape) * self.s[f"{name}.weight"].reshape(each) + self.s[f"{name}.bias"].reshape(each)

    def conv(self, name: str, h: Tensor, stride: int = 1) -> Tensor:
        weight = self.s[f"{name}.weight"]
        return F.conv2d(h, weight, self.s[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)

    def res(self, name: str, h: Tensor) -> Tensor:
        inner = self.conv(f"{name}.in_layers.2", silu(self.norm(f"{name}.in_layers.0", h)))
        shift = self.linear(f"{name}.emb_layers.1", silu(self.emb))[:, :, None, None]
        if shift.shape[1] == 2 * inner.shape[1]:
            scale, shift = shift[:, : inner.shape[1]], shift[:, inner.shape[1] :]
            inner = self.norm(f"{name}.out_layers.0", inner) * (1.0 + scale) + shift
        else:
            inner = self.norm(f"{name}.out_layers.0", inner + shift)
        inner = self.conv(f"{name}.out_layers.3", silu(inner))
        return inner + (self.conv(f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in self.s else h)

    def attend(self, name: str, h: Tensor) -> Tensor:
        flat, size = h.flatten(2), h.shape[1]
        qkv = torch.einsum("oc,bcn->bon", self.s[f"{name}.qkv.weight"][:, :, 0], self.norm(f"{name}.norm", flat))
        qkv = qkv + self.s[f"{name}.qkv.bias"][:, None]
        count = size // self.head_size if self.head_size else self.heads
        per = size // count
        result = torch.empty_like(flat)
        for i in range(count):
            starts = (j * size + i * per if self.new_order else (3 * i + j) * per for j in range(3))
            q, k, v = (qkv[:, start : start + per] for start in starts)
            weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(per), dim=2)
            result[:, i * per : (i + 1) * per] = torch.einsum("bnm,bcm->bcn", weights, v)
        out = torch.einsum("oc,bcn->bon", self.s[f"{name}.proj_out.weight"][:, :, 0], result)
        return h + (out + self.s[f"{name}.proj_out.bias"][:, None]).reshape(h.shape)

    def sequence(self, name: str, h: Tensor) -> Tensor:
        for part in (f"{name}.{j}" for j in range(3)):
            if f"{part}.in_layers.0.weight" in self.s:
                h = self.res(part, h)
            elif f"{part}.qkv.weight" in self.s:
                h = self.attend(part, h)
            elif f"{part}.op.weight" in self.s:
                h = self.conv(f"{part}.op", h, stride=2)
            elif f"{part}.conv.weight" in self.s:
                h = self.conv(f"{part}.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
            elif f"{part}.weight" in self.s:
                h = self.conv(part, h)
        return h


def unet(
    state: State, x: Tensor, timesteps: Tensor, y: Tensor | None = None, heads: int = 4, new_order: bool = False,
    head_size: int | None = None,
) -> Tensor:  # fmt: skip
    """The network's output [B, out, H, W] float64 for x [B, C, H, W] and timesteps [B], which may be fractional."""
    net = Layers(state, heads, new_order, head_size)
    half = len(net.s["time_embed.0.weight"]) // 8
    frequencies = torch.exp(-math.log(10000.0) / half * torch.arange(half).float())
    angle = (timesteps.float()[:, None] * frequencies).double()  # rounded as in their code: they reach 1000
    features = torch.cat([angle.cos(), angle.sin()], dim=1)
    net.emb = net.linear("time_embed.2", silu(net.linear("time_embed.0", features)))
    if y is not None:
        net.emb = net.emb + net.s["label_emb.weight"][y]
    h, skips = x.double(), []
    for i in range(count_of(state, "input_blocks")):
        h = net.sequence(f"input_blocks.{i}", h)
        skips.append(h)
    h = net.sequence("middle_block", h)
    for i in range(count_of(state, "output_blocks")):
        h = net.sequence(f"output_blocks.{i}", torch.cat([h, skips.pop()], dim=1))
    return net.conv("out.2", silu(net.norm("out.0", h)))


def count_of(state: State, name: str) -> int:
    return 1 + max(int(key.split(".")[1]) for key in state if key.startswith(f"{name}."))


class Chain:
    """Their diffusion: betas, and the mean and log-variance of p(x_{t-1} | x_t) in float64."""

    def __init__(self, schedule: str, T: int) -> None:
        if schedule == "linear":
            first, last = 0.1 / T, 20.0 / T
            self.betas = torch.tensor([first + (last - first) * i / (T - 1) for i in range(T)], dtype=torch.float64)
        else:
            kept = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
            self.betas = torch.tensor([min(1 - kept[i + 1] / kept[i], 0.999) for i in range(T)], dtype=torch.float64)
        self.kept = torch.cumprod(1.0 - self.betas, 0)
        self.kept_before = torch.cat([torch.ones(1, dtype=torch.float64), self.kept[:-1]])
        self.posterior = self.betas * (1.0 - self.kept_before) / (1.0 - self.kept)

    def x_hat(self, output: Tensor, x: Tensor, t: int, predicts_x: bool) -> Tensor:
        if predicts_x:
            return output
        return x / self.kept[t].sqrt() - (1.0 / self.kept[t] - 1.0).sqrt() * output

    def mean(self, x_hat: Tensor, x: Tensor, t: int) -> Tensor:
        scale = 1.0 - self.kept[t]
        return (
            self.betas[t] * self.kept_before[t].sqrt() / scale * x_hat
            + (1.0 - self.kept_before[t]) * (1.0 - self.betas[t]).sqrt() / scale * x
        )

    def log_variance(self, t: int, kind: str, values: Tensor | None = None) -> Tensor:
        """``kind`` is small, large or learned, which has values in [-1, 1] between the two."""
        small = self.posterior[max(t, 1)].log()  # their clipped logarithm, where the posterior's variance is 0
        if values is None:
            large = self.betas[t] if t else self.posterior[1]
            return small if kind == "small" else large.log()
        part = (values + 1.0) / 2.0
        return part * self.betas[t].log() + (1.0 - part) * small
