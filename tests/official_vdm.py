"""The official VDM in float64, from its description: functions of its parameters by their Flax names, joined by "/".

`parameters` names and sizes them, `score` is the network on images [B, H, W, C], `gamma` the noise schedules. Nothing
here uses our layers, our names, or our order of axes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]
GAMMA_MIN, GAMMA_MAX = -13.3, 5.0


def parameters(
    width: int, layers: int, attention: bool, fourier: bool, schedule: str, channels: int = 3, features: int = 16
) -> dict[str, tuple[int, ...]]:
    """Shapes by name; ``schedule`` is fixed, scalar or monotone."""
    shapes: dict[str, tuple[int, ...]] = {}

    def dense(name: str, before: int, after: int, bias: bool = True) -> None:
        shapes[f"score_model/{name}/kernel"] = (before, after)
        if bias:
            shapes[f"score_model/{name}/bias"] = (after,)

    def conv(name: str, before: int, after: int) -> None:
        shapes[f"score_model/{name}/kernel"], shapes[f"score_model/{name}/bias"] = (3, 3, before, after), (after,)

    def norm(name: str, size: int) -> None:
        shapes[f"score_model/{name}/scale"] = shapes[f"score_model/{name}/bias"] = (size,)

    def block(name: str, before: int) -> None:
        norm(f"{name}/GroupNorm_0", before)
        conv(f"{name}/conv1", before, width)
        dense(f"{name}/cond_proj", 4 * width, width, bias=False)
        norm(f"{name}/GroupNorm_1", width)
        conv(f"{name}/conv2", width, width)
        if before != width:
            dense(f"{name}/nin_shortcut", before, width)

    def attend(name: str) -> None:
        norm(f"{name}/GroupNorm_0", width)
        for part in ("q", "k", "v", "proj_out"):
            dense(f"{name}/{part}", width, width)

    dense("dense0", width + 1, 4 * width)
    dense("dense1", 4 * width, 4 * width)
    conv("conv_in", channels * (5 if fourier else 1), width)
    for i in range(layers):
        block(f"down.block_{i}", width)
        if attention:
            attend(f"down.attn_{i}")
    block("mid.block_1", width)
    attend("mid.attn_1")
    block("mid.block_2", width)
    for i in range(layers + 1):
        block(f"up.block_{i}", 2 * width)
        if attention:
            attend(f"up.attn_{i}")
    norm("GroupNorm_0", width)
    conv("conv_out", width, channels)
    if schedule == "scalar":
        shapes["gamma/w"] = shapes["gamma/b"] = (1,)
    if schedule == "monotone":
        shapes |= {"gamma/l1/kernel": (1, 1), "gamma/l1/bias": (1,), "gamma/l2/kernel": (1, features)}
        shapes |= {"gamma/l2/bias": (features,), "gamma/l3/kernel": (features, 1)}
    return shapes


def random_parameters(shapes: dict[str, tuple[int, ...]], seed: int) -> Parameters:
    """Weights of unit gain, biases that are not zero, schedules of either sign near the configured range; float32.

    The first convolution is small, so that what normalisations add to the variances matters.
    """
    generator = torch.Generator().manual_seed(seed)
    near = {"gamma/w": -17.5, "gamma/b": -12.9, "gamma/l1/kernel": -11.0, "gamma/l1/bias": -9.5}
    result = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if name in near:
            result[name] = near[name] + 0.1 * drawn
        elif name.startswith("gamma/"):
            result[name] = drawn * {"l2/kernel": 4.0, "l2/bias": 1.0, "l3/kernel": 4.0}[name.removeprefix("gamma/")]
        elif len(shape) == 1:
            result[name] = 0.1 * drawn + (1.0 if name.endswith("scale") else 0.0)
        else:
            result[name] = drawn / math.sqrt(math.prod(shape[:-1]))
        if name.startswith("score_model/conv_in/"):
            result[name] *= 0.1
    return result


def gamma(parameters: Parameters, t: Tensor) -> Tensor:
    """gamma(t) for t float64 [N]; differentiable."""
    p = {name.removeprefix("gamma/"): value.double() for name, value in parameters.items() if "gamma/" in name}
    if "w" in p:
        return p["b"] + p["w"].abs() * t
    if not p:
        return GAMMA_MIN + (GAMMA_MAX - GAMMA_MIN) * t
    column = t[:, None]
    linear = column @ p["l1/kernel"].abs() + p["l1/bias"]
    hidden = (2.0 * (column - 0.5)) @ p["l2/kernel"].abs() + p["l2/bias"]
    hidden = 2.0 * (1.0 / (1.0 + torch.exp(-hidden)) - 0.5)
    return (linear + hidden @ p["l3/kernel"].abs() / hidden.shape[1])[:, 0]


def silu(h: Tensor) -> Tensor:
    return h / (1.0 + torch.exp(-h))


class Layers:
    """The layers of the network by name, on features [B, H, W, C] in float64; ``cond`` is the embedding."""

    def __init__(self, parameters: Parameters) -> None:
        self.p = {name.removeprefix("score_model/"): value.double() for name, value in parameters.items()}
        self.cond = torch.empty(0)

    def dense(self, name: str, h: Tensor) -> Tensor:
        h = torch.tensordot(h, self.p[f"{name}/kernel"], dims=1)
        return h + self.p[f"{name}/bias"] if f"{name}/bias" in self.p else h

    def conv(self, name: str, h: Tensor) -> Tensor:
        """A sum over the nine places of the kernel of the shifted image times a matrix."""
        kernel, padded = self.p[f"{name}/kernel"], F.pad(h, (0, 0, 1, 1, 1, 1))
        height, breadth = h.shape[1:3]
        total = self.p[f"{name}/bias"]
        for i in range(3):
            for j in range(3):
                total = total + torch.tensordot(padded[:, i : i + height, j : j + breadth], kernel[i, j], dims=1)
        return total

    def norm(self, name: str, h: Tensor) -> Tensor:
        groups = h.reshape(len(h), -1, 32, h.shape[-1] // 32)
        mean = groups.mean((1, 3), keepdim=True)
        variance = groups.square().mean((1, 3), keepdim=True) - mean.square()
        scaled = ((groups - mean) / torch.sqrt(variance + 1e-6)).reshape(h.shape)
        return scaled * self.p[f"{name}/scale"] + self.p[f"{name}/bias"]

    def block(self, name: str, h: Tensor) -> Tensor:
        inner = self.conv(f"{name}/conv1", silu(self.norm(f"{name}/GroupNorm_0", h)))
        inner = inner + self.dense(f"{name}/cond_proj", self.cond)[:, None, None]
        inner = self.conv(f"{name}/conv2", silu(self.norm(f"{name}/GroupNorm_1", inner)))
        return inner + (self.dense(f"{name}/nin_shortcut", h) if f"{name}/nin_shortcut/kernel" in self.p else h)

    def attend(self, name: str, h: Tensor) -> Tensor:
        if f"{name}/q/kernel" not in self.p:
            return h
        normal = self.norm(f"{name}/GroupNorm_0", h).flatten(1, 2)
        q, k, v = (self.dense(f"{name}/{part}", normal) for part in "qkv")
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return h + self.dense(f"{name}/proj_out", weights @ v).reshape(h.shape)


def score(parameters: Parameters, z: Tensor, g: Tensor, conditioning: float = 0.0) -> Tensor:
    """eps_hat [B, H, W, C] float64 for z [B, H, W, C] at gamma [B]."""
    net, z = Layers(parameters), z.double()
    _, _, seen, width = net.p["conv_in/kernel"].shape
    half = width // 2  # the angles reach 1000 and are float32 as in the original: in float64 they differ by 6e-5
    t = 1000.0 * ((g.float() - GAMMA_MIN) / (GAMMA_MAX - GAMMA_MIN))
    angle = (t[:, None] * torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half).float())).double()
    scalar = torch.full((len(z), 1), conditioning, dtype=torch.float64)
    cond = torch.cat([angle.sin(), angle.cos(), scalar], dim=1)
    net.cond = silu(net.dense("dense1", silu(net.dense("dense0", cond))))

    h = z
    if seen != z.shape[-1]:
        waves = torch.stack([2.0**n * 2.0 * math.pi * z for n in (6, 7)], dim=-1).flatten(-2)  # index c F + f
        h = torch.cat([z, waves.sin(), waves.cos()], dim=-1)
    h = net.conv("conv_in", h)
    kept = [h]
    layers = sum(name.startswith("down.block_") and name.endswith("conv1/kernel") for name in net.p)
    for i in range(layers):
        h = net.attend(f"down.attn_{i}", net.block(f"down.block_{i}", h))
        kept.append(h)
    h = net.block("mid.block_2", net.attend("mid.attn_1", net.block("mid.block_1", h)))
    for i in range(layers + 1):
        h = net.attend(f"up.attn_{i}", net.block(f"up.block_{i}", torch.cat([h, kept.pop()], dim=-1)))
    return z + net.conv("conv_out", silu(net.norm("GroupNorm_0", h)))


def bound(parameters: Parameters, x: Tensor, t: Tensor, eps_0: Tensor, eps: Tensor, T: int | None) -> dict[str, Tensor]:
    """The terms of the bound in nats, [B] each, for bytes x [B, H, W, C], times t [B], and noise."""
    data = 2.0 * (x.double() + 0.5) / 256.0 - 1.0
    ends = gamma(parameters, torch.tensor([0.0, 1.0], dtype=torch.float64))
    values = 2.0 * (torch.arange(256).double() + 0.5) / 256.0 - 1.0
    rescaled = data + torch.exp(0.5 * ends[0]) * eps_0
    logits = -0.5 * torch.exp(-ends[0]) * (rescaled[..., None] - values).square()
    chosen = torch.log_softmax(logits, dim=-1).gather(-1, x.long()[..., None])
    variance = torch.sigmoid(ends[1])
    prior = 0.5 * ((1.0 - variance) * data.square() + variance - torch.log(variance) - 1.0)
    t = t.clone().requires_grad_()
    g = gamma(parameters, t)
    slope = torch.autograd.grad(g.sum(), t)[0]
    variance = torch.sigmoid(g.detach())[:, None, None, None]
    z = torch.sqrt(1.0 - variance) * data + torch.sqrt(variance) * eps
    error = (eps - score(parameters, z.float(), g.detach().float())).square().sum((1, 2, 3))
    if T is not None:
        slope = T * torch.expm1(g.detach() - gamma(parameters, t.detach() - 1.0 / T))
    return {"recon": -chosen.sum((1, 2, 3, 4)), "prior": prior.sum((1, 2, 3)), "diffusion": 0.5 * slope * error}
