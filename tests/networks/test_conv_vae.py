"""The convolutional encoder and decoder of a VAE against float64, and their start."""

import math

import attrs
import pytest
import torch
from torch.nn import functional as F

from fastdiff.networks import ConvVAEConfig
from fastdiff.networks.conv_vae import ConvDecoder, ConvEncoder

TINY = ConvVAEConfig(widths=(8, 12, 6), blocks=2, dropout=0.0, max_groups=4)
SHAPE, LATENT = (2, 8, 12), 5


def perturbed(config: ConvVAEConfig = TINY) -> tuple[ConvEncoder, ConvDecoder]:
    torch.manual_seed(0)
    networks = config.build(SHAPE, LATENT)
    for network in networks:
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return networks


class Plain:
    """Layers with the parameters in the order in which the network uses them, in float64."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.weights = iter([value.double() for value in network.state_dict().values()])

    def take(self):
        return next(self.weights), next(self.weights)

    def norm_silu(self, x):
        return F.silu(F.group_norm(x, math.gcd(x.shape[1], 4), *self.take()))

    def conv(self, x, stride=1, padding=1):
        return F.conv2d(x, *self.take(), stride, padding)

    def blocks(self, x):
        for _ in range(2):
            h = self.conv(self.norm_silu(x))
            x = x + self.conv(self.norm_silu(h))
        return x

    def linear(self, x):
        weight, bias = self.take()
        return x @ weight.T + bias

    def enlarge(self, x):
        weight, bias = self.take()
        cells = torch.einsum("bchw,cdij->bdhiwj", x, weight)
        return cells.flatten(4, 5).flatten(2, 3) + bias[:, None, None]

    def finished(self):
        return next(self.weights, None) is None


def test_encoder_and_decoder_against_float64():
    encoder, decoder = perturbed()
    x, z = torch.randn(3, *SHAPE), torch.randn(3, LATENT)
    plain = Plain(encoder)
    h = plain.blocks(plain.conv(x.double()))
    for _ in range(2):
        h = plain.blocks(plain.conv(h, 2, 0))
    out = plain.linear(plain.norm_silu(h).flatten(1))
    assert plain.finished()
    mean, logvar = encoder(x)
    torch.testing.assert_close(mean.double(), out[:, :LATENT], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logvar.double(), 10 * torch.tanh(out[:, LATENT:] / 10), rtol=1e-5, atol=1e-5)
    plain = Plain(decoder)
    h = plain.blocks(plain.linear(z.double()).reshape(3, 6, 2, 3))
    for _ in range(2):
        h = plain.blocks(plain.enlarge(h))
    out = plain.conv(plain.norm_silu(h))
    assert plain.finished()
    mean, logvar = decoder(z)
    torch.testing.assert_close(mean.double(), out[:, :2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logvar.double(), 10 * torch.tanh(out[:, 2:] / 10), rtol=1e-5, atol=1e-5)
    assert mean.is_contiguous()
    assert logvar.is_contiguous()


def test_an_untrained_posterior_depends_on_the_image_and_has_variances_near_one():
    encoder, _ = ConvVAEConfig().build((1, 8, 8), 16)
    with torch.no_grad():
        mean, logvar = encoder.eval()(torch.randn(64, 1, 8, 8))
    assert float(encoder.gaussian.linear.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not encoder.gaussian.linear.bias.any()
    assert float(mean.std(dim=0).min()) > 0.05
    assert float(logvar.mean().abs()) < 0.2
    h = torch.randn(2, 32, 8, 8)
    assert torch.equal(encoder.layers[1](h), h)  # a residual block


def test_every_parameter_gets_a_gradient_and_dropout_acts_in_training_only():
    encoder, decoder = perturbed(attrs.evolve(TINY, dropout=0.5))
    x, z = torch.randn(3, *SHAPE), torch.randn(3, LATENT)
    for network, argument, plain in ((encoder, x, perturbed()[0]), (decoder, z, perturbed()[1])):
        assert not torch.equal(network(argument)[0], network(argument)[0])
        network.eval()
        torch.testing.assert_close(network(argument), plain(argument))
        sum(part.square().sum() for part in network(argument)).backward()
        assert all(p.grad is not None and float(p.grad.abs().max()) > 1e-6 for p in network.parameters())


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 8, 12), True), ((3, 4, 4), True), ((1, 8, 6), False), ((1, 9, 8), False)]
)
def test_images_must_be_halved_twice(shape, fits):
    if fits:
        TINY.check("here", shape, LATENT)
        encoder, decoder = TINY.build(shape, LATENT)
        assert encoder(torch.zeros(1, *shape))[0].shape == (1, LATENT)
        assert decoder(torch.zeros(1, LATENT))[0].shape == (1, *shape)
    else:
        with pytest.raises(ValueError, match="here: height and width must be multiples of 4"):
            TINY.check("here", shape, LATENT)
