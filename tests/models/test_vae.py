"""VAE and hierarchical VAE: a linear-Gaussian chain whose bound is tight, the terms, training and sampling."""

import math

import pytest
import torch
from tiny import DATA, images
from tiny import small_vae as chain
from torch import nn

import fastdiff
from fastdiff.data import digits
from fastdiff.evaluation import evaluate, evaluate_latents
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import InvalidValueError, Noise, Stream, to_unit_range
from fastdiff.models import HVAE, ConvVAEConfig, HVAEConfig, Latents
from fastdiff.training import TrainConfig, TrainState, train


class Linear(nn.Module):
    """A Gaussian with mean ``scale`` times its input, flattened or shaped, and a fixed variance."""

    def __init__(self, scale: float, variance: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.logvar, self.shape = scale, math.log(variance), shape
        self.unused = nn.Parameter(torch.zeros(()))  # the device of a model is that of its parameters

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.scale * x.reshape(len(x), *self.shape)
        return mean, torch.full_like(mean, self.logvar)


C, S, RHO = 0.12, 0.05, 0.6  # the data lie far inside the levels, and a level is narrow beside S


def exact(depth: int) -> HVAE:
    """p: z_T ~ N(0, 1), z_{t-1} = RHO z_t + noise, x = C z_1 + S noise; q is its exact posterior, layer by layer."""
    model = chain(depth, shape=(1, 2, 2), levels=256, latent=4, network=ConvVAEConfig(widths=(8,)))
    total = C**2 + S**2
    model.encoder = Linear(C / total, S**2 / total, (4,))
    model.decoder = Linear(C, S**2, (1, 2, 2))
    model.up = nn.ModuleList(Linear(RHO, 1 - RHO**2, (4,)) for _ in range(depth - 1))
    model.down = nn.ModuleList(Linear(RHO, 1 - RHO**2, (4,)) for _ in range(depth - 1))
    return model


def gaussian_data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels of x ~ N(0, C² + S²), and their log-probabilities: density times the width of a level."""
    x = (C**2 + S**2) ** 0.5 * torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    levels = torch.round(0.5 * ((x + 1) * 256 - 1)).clamp(0, 255).to(torch.uint8)
    normal = torch.distributions.Normal(0.0, (C**2 + S**2) ** 0.5)
    log_p = normal.log_prob(to_unit_range(levels, 256).double()) + math.log(2 / 256)
    return levels, log_p.flatten(1).sum(1)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_draw_of_the_exact_chain_is_the_log_likelihood(depth):
    """With the true posterior log p(x, z) - log q(z | x) is log p(x) whatever z: measured 3.3e-6 of 17 nats."""
    x, log_p = gaussian_data(500)
    terms = exact(depth).terms(x, Noise(3), analytic=False)
    total = terms.recon + torch.stack(terms.layers).sum(0)
    torch.testing.assert_close(total.double(), -log_p, rtol=0, atol=6e-6)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_bound_of_the_exact_chain_is_the_entropy(depth):
    """With the KL of the top layer in closed form, on average, in bits per dimension."""
    x, log_p = gaussian_data(4000)
    model = exact(depth)
    result = evaluate(model, x, draws=4)
    own = -float(log_p.mean()) / (4 * math.log(2))
    error = float((result.bpd.total + log_p / (4 * math.log(2))).std()) / 4000**0.5
    assert abs(result.mean - own) < 4 * error + 1e-5
    assert float(result.bpd.prior.mean()) > 0
    if depth == 1:
        assert not result.bpd.diffusion.any()
    assert error < 0.01


def test_an_analytic_kl_at_a_lower_layer_would_be_wrong():
    """KL(q(z_1 | x) || p(z_1 | z_2)) at a z_2 that was drawn from z_1 would treat the two as independent."""
    x, log_p = gaussian_data(4000)
    model = exact(2)
    terms = model.terms(x, Noise(1))
    mean, logvar = model.encoder(to_unit_range(x, 256))
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    mean, logvar = model.down[0](terms.latents[1])
    p = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    wrong = terms.recon + torch.distributions.kl_divergence(q, p).sum(1) + terms.layers[-1]
    assert abs(float((wrong + log_p).mean())) > 0.1


@pytest.mark.parametrize("depth", [1, 3])
def test_terms_recomputed(depth):
    """Each term from the networks' outputs, in float64 with torch.distributions."""
    model, x, noise = chain(depth), images(4), Noise(2)
    with torch.no_grad():
        terms = model.terms(x, noise)
        q, z, layers = [model.encoder(to_unit_range(x, 17))], [], []
        for t in range(depth):
            eps = noise.at(stream=Stream.VAE + 256 * t).normal((4, 5))
            z.append(q[t][0] + (0.5 * q[t][1]).exp() * eps)
            if t < depth - 1:
                q.append(model.up[t](z[t]))
        normal = [torch.distributions.Normal(m.double(), (0.5 * v.double()).exp()) for m, v in q]
        for t in range(depth - 1):
            mean, logvar = model.down[t](z[t + 1])
            p = torch.distributions.Normal(mean.double(), (0.5 * logvar.double()).exp())
            layers.append((normal[t].log_prob(z[t].double()) - p.log_prob(z[t].double())).sum(1))
        standard = torch.distributions.Normal(torch.zeros(4, 5).double(), 1.0)
        layers.append(torch.distributions.kl_divergence(normal[-1], standard).sum(1))
        mean, logvar = model.decoder(z[0])
        centres = to_unit_range(torch.arange(17), 17).double()
        logits = -0.5 * torch.exp(-logvar.double())[..., None] * (mean.double()[..., None] - centres) ** 2
        recon = -torch.log_softmax(logits, -1).gather(-1, x.long()[..., None]).flatten(1).sum(1)
    for ours, theirs in zip([terms.recon, *terms.layers], [recon, *layers], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)
    vlb = model.vlb(x, noise)
    torch.testing.assert_close(vlb.diffusion, sum(terms.layers[:-1], torch.zeros(4)))
    torch.testing.assert_close(vlb.prior, terms.layers[-1])


def test_more_samples_tighten_the_importance_weighted_bound():
    model, x = chain(2), images(40)
    bounds = [float(model.log_likelihood(x, Noise(1), k).mean()) for k in (1, 6, 36)]
    assert bounds == sorted(bounds)
    single = model.terms(x, Noise(1), analytic=False)
    expected = -(single.recon + torch.stack(single.layers).sum(0)).double()
    torch.testing.assert_close(model.log_likelihood(x, Noise(1), 1), expected.detach())
    exactly, log_p = gaussian_data(50)
    torch.testing.assert_close(exact(3).log_likelihood(exactly, Noise(0), 5), log_p, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="samples"):
        model.log_likelihood(x, Noise(0), 0)


def test_beta_and_free_bits():
    x, noise = images(6), Noise(5)
    plain = chain(2)(x, noise)
    torch.testing.assert_close(plain.loss.detach(), plain.vlb.total)
    double = chain(2, beta=2.0)(x, noise)
    torch.testing.assert_close(double.loss.detach(), plain.vlb.total + plain.vlb.prior + plain.vlb.diffusion)
    high = chain(2, free_bits=1e6)
    loss = high(x, noise).loss.mean()
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in high.down.parameters())  # the term of no layer is trained
    torch.testing.assert_close(loss.detach(), plain.vlb.recon.mean() + 2e6)
    low = chain(2, free_bits=1e-6)
    torch.testing.assert_close(low(x, noise).loss.detach().mean(), plain.vlb.total.mean(), rtol=1e-5, atol=0)


def test_large_weights_keep_the_bound_finite():
    """The networks bound their log-variances."""
    model = chain(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(100.0)
    assert model.vlb(images(3), Noise(0)).total.isfinite().all()


def test_it_learns_and_its_units_become_active():
    torch.manual_seed(0)
    network = ConvVAEConfig(widths=(8,), dropout=0.0)
    model, x = HVAE(HVAEConfig(**DATA, depth=2, latent=8, hidden=16, network=network)), digits().test_images
    config = TrainConfig(data="digits", max_steps=50, batch_size=32, learning_rate=6e-3, warm_up=5)
    reports = list(train(TrainState(model, config), digits()))
    assert float(reports[-1].bpd.total) < 0.8 * float(reports[0].bpd.total)
    assert evaluate_latents(model, x)["active_units"][0] > 0


@pytest.mark.parametrize("depth", [1, 3])
def test_samples_are_decoded_latents_of_the_prior(depth):
    """Layer by layer with the networks: z_T from N(0, temperature² I), then z_t ~ p(z_t | z_{t+1}), then E[x | z_1]."""
    model, noise = chain(depth), Noise(4)
    with torch.no_grad():
        z = 0.7 * noise.at(stream=Stream.VAE + 256 * (depth - 1)).normal((3, 5))
        for t in range(depth - 2, -1, -1):
            mean, logvar = model.down[t](z)
            z = mean + (0.5 * logvar).exp() * noise.at(stream=Stream.VAE + 256 * t).normal((3, 5))
        expected = torch.round(0.5 * ((model.decoder(z)[0] + 1) * 17 - 1)).clamp(0, 16)
    ours = fastdiff.sample(model, 3, seed=4, latents=Latents(temperature=0.7), output="levels", batch_size=2)
    assert (ours != expected).float().mean() < 0.01  # rounding may move a pixel by a level
    assert torch.equal(fastdiff.sample(model, 3, latents=Latents(z=z), output="levels"), model.decode(z))


def test_encode_and_decode_every_layer():
    """With means instead of draws: each layer given the means of the layers below, and back."""
    model, x = chain(3), images(2)
    with torch.no_grad():
        q = [model.encoder(to_unit_range(x, 17))]
        q += [model.up[0](q[0][0])]
        q += [model.up[1](q[1][0])]
    for ours, theirs in zip(model.encode(x), q, strict=True):
        torch.testing.assert_close(ours, theirs)
    z = model.down[0](model.down[1](q[2][0])[0])[0]
    assert torch.equal(model.decode(q[2][0], layer=3), model.decode(z))
    assert not torch.equal(model.decode(q[2][0], Noise(0), layer=3), model.decode(z))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 0}, "depth"),
        ({"beta": -1.0}, "beta"),
        ({"num_classes": 10}, "num_classes must be 0"),
        ({"shape": (1, 9, 8)}, "multiples of 2"),
    ],
)
def test_wrong_configurations(change, words):
    with pytest.raises(ConfigError, match=words):
        chain(**change)


def test_wrong_calls():
    model, x = chain(2), images(2)
    with pytest.raises(InvalidValueError, match="T must be 2"):
        evaluate(model, x, T=10)
    with pytest.raises(InvalidValueError, match="loss must be elbo"):
        model(x, Noise(0), loss="simple")
    with pytest.raises(InvalidValueError, match="layer"):
        model.decode(torch.zeros(2, 5), layer=3)
    with pytest.raises(InvalidValueError, match="z must have shape"):
        model.decode(torch.zeros(2, 4))
