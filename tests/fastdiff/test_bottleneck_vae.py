"""The VAE networks of DiffuseVAE: their size by hand, their function, their start, training, and what they refuse."""

import json
import math
from itertools import pairwise

import pytest
import torch
from tiny import images
from torch import nn
from torch.nn import functional as F

import fastdiff
from fastdiff.config import ConfigError, from_dict, to_dict
from fastdiff.datasets import digits
from fastdiff.kernels import Noise, centre
from fastdiff.models import HVAE, BottleneckVAEConfig, ConvVAEConfig, HVAEConfig, build
from fastdiff.models.bottleneck_vae import BottleneckDecoder, BottleneckEncoder
from fastdiff.models.vae_networks import LOGVAR_LIMIT

TINY = BottleneckVAEConfig(widths=(4, 6, 8), rates=(2, 4), encoder=(1, 2, 1), decoder=(1, 0, 2))
CIFAR = HVAEConfig((3, 32, 32), 256, latent=512, network=BottleneckVAEConfig())
CELEBA_NETWORK = BottleneckVAEConfig(
    widths=(64, 128, 256, 256, 256, 512),
    rates=(2, 2, 2, 2, 4),
    encoder=(7, 4, 7, 3, 3, 2),
    decoder=(1, 2, 3, 7, 8, 10),
)
CELEBA = HVAEConfig((3, 64, 64), 256, latent=512, network=CELEBA_NETWORK)

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


def on_meta(config: HVAEConfig) -> HVAE:
    with torch.device("meta"):
        return HVAE(config)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "config", "encoder", "decoder"),
    [("cifar10", CIFAR, 5_830_528, 3_412_579), ("celeba64", CELEBA, 8_029_184, 5_982_723)],
)
def test_the_networks_of_the_paper_have_their_size(name, config, encoder, decoder):
    """All but the last convolution, which has the log-variances' 3 channels more: 9 · 64 · 3 + 3 parameters."""
    assert published_size(PUBLISHED[name]) == (encoder, decoder)
    model = on_meta(config)
    assert count(model.encoder) == encoder
    assert count(model.decoder) == decoder + (9 * 64 * 3 + 3)
    assert count(model) == encoder + decoder + 1731


@pytest.mark.parametrize(("name", "config"), [("cifar10", CIFAR), ("celeba64", CELEBA)])
def test_the_resolutions_and_widths_that_the_blocks_see(name, config):
    """The blocks' inputs in order: every resolution of the tables as often as they say, and the right convolutions."""
    model, seen = on_meta(config), []
    for module in model.modules():
        if hasattr(module, "convs"):
            module.register_forward_pre_hook(
                lambda m, args: seen.append((tuple(args[0].shape), m.convs[1].kernel_size))
            )
    table = PUBLISHED[name]
    expected = [((2, w, r, r), (3, 3) if r > 1 else (1, 1)) for r, (w, n, _) in table.items() for _ in range(n)]
    mean, logvar = model.encoder(torch.zeros(2, *config.shape, device="meta"))
    assert mean.shape == logvar.shape == (2, 512)
    assert seen == expected
    seen.clear()
    up = reversed(table.items())
    expected = [((2, w, r, r), (3, 3) if r > 1 else (1, 1)) for r, (w, _, n) in up for _ in range(n)]
    mean, logvar = model.decoder(mean)
    assert mean.shape == logvar.shape == (2, *config.shape)
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
    encoder, decoder = BottleneckEncoder((2, 8, 8), TINY), BottleneckDecoder((2, 8, 8), TINY)
    perturbed(encoder, decoder)
    x, z = torch.randn(3, 2, 8, 8), torch.randn(3, 8)
    plain = Plain(encoder)
    h = plain.run(x.double(), "in,8x2,8d2,8t4,4x3,4d4,4t1,1x1")
    mean, raw = plain.conv(h, False).flatten(1), plain.conv(h, False).flatten(1)
    ours = encoder(x)
    torch.testing.assert_close(ours[0].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1].double(), LOGVAR_LIMIT * torch.tanh(raw / LOGVAR_LIMIT), rtol=1e-5, atol=1e-5)
    out = Plain(decoder).run(z.double()[:, :, None, None], "1x1,1u4,1t4,4u2,4t8,8x2,out")
    ours = decoder(z)
    torch.testing.assert_close(ours[0].double(), out[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours[1].double(), LOGVAR_LIMIT * torch.tanh(out[:, 2:] / LOGVAR_LIMIT), rtol=1e-5, atol=1e-5
    )
    assert all(part.is_contiguous() for part in (*ours, *encoder(x)))


def test_the_start_at_the_depth_of_the_paper():
    """Rows of up to 25 blocks neither blow up nor die out; q starts with variance 1, p(x | z) near N(0, 1)."""
    torch.manual_seed(0)
    model = HVAE(CIFAR)
    for module in model.modules():
        bias = getattr(module, "bias", None)
        assert bias is None or not bias.any()
    spread = {}
    for name, part in (("encoder", model.encoder), ("decoder", model.decoder)):
        blocks = [module for module in part.modules() if hasattr(module, "convs")]
        last = part.layers[-1]
        last.register_forward_pre_hook(lambda _, args, name=name: spread.update({name: float(args[0].std())}))
        assert len(blocks) == {"encoder": 25, "decoder": 28}[name]
    with torch.no_grad():
        mean, logvar = model.encoder(torch.randn(2, 3, 1, 1).expand(2, 3, 32, 32))
        assert not logvar.any()
        assert 0.3 < float(mean.std()) < 3
        model.decoder(torch.randn(2, 512))
        assert 0.3 < spread["encoder"] < 3
        assert 0.3 < spread["decoder"] < 3
        x = images(2, shape=(3, 32, 32), levels=256)
        bits = model.vlb(x, Noise(0)).bpd(3072).total
        uniform = torch.log2(torch.exp(-0.5 * centre(torch.arange(256), 256) ** 2).sum())
        near = float(uniform) + 0.5 * float(centre(x, 256).square().mean()) / math.log(2)
        assert abs(float(bits.mean()) - near) < 0.3  # an undecided p says N(0, 1) over the levels


def small() -> HVAE:
    torch.manual_seed(0)
    network = BottleneckVAEConfig(widths=(16, 32, 32), rates=(2, 4), encoder=(1, 1, 1), decoder=(1, 1, 2))
    return HVAE(HVAEConfig((1, 8, 8), 17, latent=32, network=network))


def fit(x: torch.Tensor, steps: int) -> list[float]:
    """Bits per dimension of a small model at every step on one batch."""
    model, bits = small(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        goal = model.objective(x, Noise(0, step))
        optimizer.zero_grad()
        goal.loss.mean().backward()
        optimizer.step()
        bits.append(float(goal.vlb.bpd(64).total.mean()))
    assert all(parameter.grad is not None for parameter in model.parameters())
    return bits


def test_it_overfits_a_batch_of_digits():
    bits = fit(digits().train_images[:16], 60)
    assert sum(bits[-5:]) < 0.75 * sum(bits[:5])


def test_it_says_with_z_which_image_it_is():
    """Black and white quarters, each image with its negative: a decoder that ignores z pays at least log2(17) bits.

    Its logits f are concave in the level, so that the sum of exp(f) is at least that of their chord's, and by Jensen
    at least 17 exp((f(0) + f(16)) / 2).
    """
    quarters = [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    black = torch.tensor(quarters, dtype=torch.uint8).reshape(4, 1, 2, 2)
    x = 16 * torch.cat([black, 1 - black]).repeat_interleave(4, 2).repeat_interleave(4, 3)
    bits = fit(x, 80)
    assert sum(bits[-10:]) / 10 < math.log2(17) - 0.1


@pytest.mark.parametrize("depth", [1, 3])
def test_round_trips(tmp_path, depth):
    torch.manual_seed(0)
    config = HVAEConfig((1, 8, 8), 17, depth=depth, latent=8, hidden=8, network=TINY)
    model = HVAE(config).eval()
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m")
    assert isinstance(again, HVAE)
    assert again.config == config
    x = images(2)
    assert torch.equal(again.vlb(x, Noise(1)).total, model.vlb(x, Noise(1)).total)
    plain = json.loads(json.dumps(to_dict(config)))
    assert plain["network"]["kind"] == "bottleneck"
    assert build("hvae", plain, "here").config == config
    conv = json.loads(json.dumps(to_dict(HVAEConfig((1, 8, 8), 17, network=ConvVAEConfig()))))
    assert build("hvae", conv, "here").config.network == ConvVAEConfig()
    assert fastdiff.sample(model, 2, output="levels").shape == (2, 1, 8, 8)


def test_an_unknown_network_in_a_configuration():
    with pytest.raises(ConfigError, match=r"x\.network: unknown kind 'other'; allowed: 'conv', 'bottleneck'"):
        from_dict(HVAEConfig, {"shape": [1, 8, 8], "levels": 17, "network": {"kind": "other"}}, "x")


WRONG = {
    r"kind is 'conv'; allowed: 'bottleneck'": {"kind": "conv"},
    r"5 widths, 1 rates, blocks at 5 and 5 resolutions; allowed: .*one rate less": {"rates": (32,)},
    r"5 widths, 4 rates, blocks at 5 and 1 resolutions; allowed: .*blocks for each width": {"decoder": (1,)},
    r"1 widths, 0 rates.*at least 2 widths": {"widths": (8,), "rates": (), "encoder": (1,), "decoder": (1,)},
    r"widths \(63, .*allowed: even widths >= 2": {"widths": (63, 128, 256, 256, 512)},
    r"rates \(2, 2, 1, 4\).*allowed: .*rates >= 2": {"rates": (2, 2, 1, 4)},
    r"encoder \(7, 4, 4, -1, 3\).*allowed: .*numbers of blocks >= 0": {"encoder": (7, 4, 4, -1, 3)},
    r"BottleneckVAEConfig\.rates\[0\]: 2\.0 is a float; allowed: int": {"rates": (2.0, 2, 2, 4)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_configurations(message):
    with pytest.raises(ValueError, match=message):
        BottleneckVAEConfig(**WRONG[message])


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 8, 16), (1, 4, 8), (1, 9, 9)])
def test_images_of_another_size(shape):
    side = r"rates \(2, 4\), whose last resolution is one pixel; allowed: height and width 8"
    with pytest.raises(ValueError, match=rf"HVAEConfig: shape \({shape[0]}, {shape[1]}, {shape[2]}\).*{side}"):
        HVAEConfig(shape, 17, latent=8, network=TINY)


def test_a_latent_of_another_size():
    with pytest.raises(ValueError, match=r"HVAEConfig: latent 16 with .* widths \(4, 6, 8\); allowed: 8, the last"):
        HVAEConfig((1, 8, 8), 17, network=TINY)
