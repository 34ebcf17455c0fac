"""The VAE networks of DiffuseVAE: their size by hand, their function and their start."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastdiff.networks import BottleneckDecoder, BottleneckEncoder, BottleneckVAEConfig

TINY = BottleneckVAEConfig(widths=(4, 6, 8), rates=(2, 4), encoder=(1, 2, 1), decoder=(1, 0, 2))
CIFAR = BottleneckVAEConfig()
CELEBA = BottleneckVAEConfig(
    widths=(64, 128, 256, 256, 256, 512),
    rates=(2, 2, 2, 2, 4),
    encoder=(7, 4, 7, 3, 3, 2),
    decoder=(1, 2, 3, 7, 8, 10),
)

# The authors' tables: resolution: (width, blocks of the encoder with those that are pooled, blocks of the decoder).
PUBLISHED = {
    "cifar10": {32: (64, 8, 15), 16: (128, 5, 7), 8: (256, 5, 3), 4: (256, 4, 2), 1: (512, 3, 1)},
    "celeba64": {
        64: (64, 8, 10), 32: (128, 5, 8), 16: (256, 8, 7), 8: (256, 4, 3), 4: (256, 4, 2), 1: (512, 2, 1),
    },
}  # fmt: skip


def published_size(table: dict[int, tuple[int, int, int]]) -> tuple[int, int]:
    """Parameters of the encoder and of the decoder with the authors' 3 channels of output."""

    def block(side: int, w: int) -> int:
        m, k = w // 2, 9 if side > 1 else 1
        return (w * m + m) + 2 * (k * m * m + m) + (m * w + w)

    widths = [row[0] for row in table.values()]
    between = sum(above * below for above, below in pairwise(widths))  # 1×1, no bias
    encoder = 9 * 3 * 64 + between + 2 * 512 * 512 + sum(n * block(r, w) for r, (w, n, _) in table.items())
    decoder = between + (9 * 64 * 3 + 3) + sum(n * block(r, w) for r, (w, _, n) in table.items())
    return encoder, decoder


def on_meta(config: BottleneckVAEConfig) -> tuple[BottleneckEncoder, BottleneckDecoder]:
    side = config.sides[0]
    with torch.device("meta"):
        return config.build((3, side, side), 512)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "config", "encoder", "decoder"),
    [("cifar10", CIFAR, 5_830_528, 3_412_579), ("celeba64", CELEBA, 8_029_184, 5_982_723)],
)
def test_the_networks_of_the_paper_have_their_size(name, config, encoder, decoder):
    """All but the last convolution, which has the log-variances' 3 channels more: 9 · 64 · 3 + 3 parameters."""
    assert published_size(PUBLISHED[name]) == (encoder, decoder)
    assert [count(network) for network in on_meta(config)] == [encoder, decoder + (9 * 64 * 3 + 3)]


@pytest.mark.parametrize(("name", "config"), [("cifar10", CIFAR), ("celeba64", CELEBA)])
def test_the_resolutions_and_widths_that_the_blocks_see(name, config):
    """The blocks' inputs in order: each resolution as often as in the tables, and 3×3 convolutions above one pixel."""
    encoder, decoder = on_meta(config)
    side, seen = config.sides[0], []
    for module in [*encoder.modules(), *decoder.modules()]:
        if hasattr(module, "convs"):
            module.register_forward_pre_hook(
                lambda m, args: seen.append((tuple(args[0].shape), m.convs[1].kernel_size))
            )
    table = PUBLISHED[name]
    expected = [((2, w, r, r), (3, 3) if r > 1 else (1, 1)) for r, (w, n, _) in table.items() for _ in range(n)]
    mean, logvar = encoder(torch.zeros(2, 3, side, side, device="meta"))
    assert mean.shape == logvar.shape == (2, 512)
    assert seen == expected
    seen.clear()
    up = reversed(table.items())
    expected = [((2, w, r, r), (3, 3) if r > 1 else (1, 1)) for r, (w, _, n) in up for _ in range(n)]
    mean, logvar = decoder(mean)
    assert mean.shape == logvar.shape == (2, 3, side, side)
    assert seen == expected


def perturbed(*networks: nn.Module) -> None:
    for network in networks:
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)


class Plain:
    """The networks as functions of their weights in float64, by the order of the layers in the authors' strings."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = iter([value.double() for value in network.parameters()])

    def conv(self, x, bias):
        weight = next(self.weights)
        return F.conv2d(x, weight, next(self.weights) if bias else None, padding=weight.shape[2] // 2)

    def run(self, x, orders):
        for order in orders.split(","):
            if "x" in order:
                for _ in range(int(order.split("x")[1])):
                    h = x
                    for _ in range(4):
                        h = self.conv(0.5 * h * (1 + torch.erf(h / math.sqrt(2))), True)
                    x = x + h
            elif order in ("in", "out") or "t" in order:
                x = self.conv(x, order == "out")
            elif "d" in order:
                rate = int(order.split("d")[1])
                x = x.unflatten(3, (-1, rate)).unflatten(2, (-1, rate)).mean((3, 5))
            else:
                rate = int(order.split("u")[1])
                x = x.repeat_interleave(rate, 2).repeat_interleave(rate, 3)
        return x


def test_encoder_and_decoder_against_float64():
    torch.manual_seed(0)
    encoder, decoder = TINY.build((2, 8, 8), 8)
    perturbed(encoder, decoder)
    x, z = torch.randn(3, 2, 8, 8), torch.randn(3, 8)
    plain = Plain(encoder)
    h = plain.run(x.double(), "in,8x2,8d2,8t4,4x3,4d4,4t1,1x1")
    mean, raw = plain.conv(h, False).flatten(1), plain.conv(h, False).flatten(1)
    ours = encoder(x)
    torch.testing.assert_close(ours[0].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1].double(), 10 * torch.tanh(raw / 10), rtol=1e-5, atol=1e-5)
    out = Plain(decoder).run(z.double()[:, :, None, None], "1x1,1u4,1t4,4u2,4t8,8x2,out")
    ours = decoder(z)
    torch.testing.assert_close(ours[0].double(), out[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1].double(), 10 * torch.tanh(out[:, 2:] / 10), rtol=1e-5, atol=1e-5)
    assert all(part.is_contiguous() for part in (*ours, *encoder(x)))


def test_the_start_at_the_depth_of_the_paper():
    """Rows of up to 25 blocks neither blow up nor die out; q starts with variance 1, p(x | z) near N(0, I)."""
    torch.manual_seed(0)
    encoder, decoder = CIFAR.build((3, 32, 32), 512)
    for module in [*encoder.modules(), *decoder.modules()]:
        bias = getattr(module, "bias", None)
        assert bias is None or not bias.any()
    spread = {}
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        blocks = [module for module in network.modules() if hasattr(module, "convs")]
        last = network.layers[-1]
        last.register_forward_pre_hook(lambda _, args, name=name: spread.update({name: float(args[0].std())}))
        assert len(blocks) == {"encoder": 25, "decoder": 28}[name]
    with torch.no_grad():
        mean, logvar = encoder(torch.randn(2, 3, 1, 1).expand(2, 3, 32, 32))
        assert not logvar.any()
        assert 0.3 < float(mean.std()) < 3
        mean, logvar = decoder(torch.randn(2, 512))
    assert 0.3 < spread["encoder"] < 3
    assert 0.3 < spread["decoder"] < 3
    assert float(mean.std()) < 0.3
    assert float(logvar.std()) < 0.3


def test_every_parameter_gets_a_gradient():
    networks = TINY.build((2, 8, 8), 8)
    perturbed(*networks)
    for network, argument in zip(networks, (torch.randn(3, 2, 8, 8), torch.randn(3, 8)), strict=True):
        sum(part.square().sum() for part in network(argument)).backward()
        assert all(p.grad is not None and float(p.grad.abs().max()) > 1e-6 for p in network.parameters())


def test_the_images_and_the_latent_must_fit_the_rates_and_the_widths():
    TINY.check("here", (2, 8, 8), 8)
    assert TINY.sides == (8, 4, 1)
    for shape in ((1, 16, 16), (1, 8, 16), (1, 4, 8), (1, 9, 9)):
        with pytest.raises(ValueError, match="here: height and width must be 8"):
            TINY.check("here", shape, 8)
    with pytest.raises(ValueError, match="here: latent must be 8"):
        TINY.check("here", (1, 8, 8), 16)
