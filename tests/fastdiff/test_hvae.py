"""VAE and hierarchical VAE: a linear-Gaussian chain whose bound is tight, the terms, sampling, and what it refuses."""

import math

import pytest
import torch
from tiny import images
from tiny import small_vae as chain
from torch import nn

import fastdiff
from fastdiff.datasets import digits
from fastdiff.evaluation import evaluate
from fastdiff.kernels import Noise, Stream, centre
from fastdiff.models import HVAE, ConvVAEConfig, HVAEConfig
from fastdiff.models.hvae import active_units
from fastdiff.models.vae_networks import LOGVAR_LIMIT, bounded
from fastdiff.training import TrainConfig, TrainState, train


class Linear(nn.Module):
    """A Gaussian with mean ``scale`` times its input, flattened or shaped, and a fixed variance."""

    def __init__(self, scale: float, variance: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.scale, self.logvar, self.shape = scale, math.log(variance), shape
        self.place = nn.Parameter(torch.zeros(()))  # says on which device the model is

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.scale * x.reshape(len(x), *self.shape)
        return mean, torch.full_like(mean, self.logvar)


C, S, RHO = 0.12, 0.05, 0.6  # the data lie far inside the levels, and a level is narrow beside S


def exact(depth: int) -> HVAE:
    """p: z_T ~ N(0, 1), z_{t-1} = RHO z_t + noise, x = C z_1 + S noise; q is its exact posterior, level by level."""
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
    log_p = normal.log_prob(centre(levels, 256).double()) + math.log(2 / 256)
    return levels, log_p.flatten(1).sum(1)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_draw_of_the_exact_chain_is_the_log_likelihood(depth):
    """With the true posterior log p(x, z) - log q(z | x) is log p(x) whatever z: measured 3.3e-6 of 17 nats."""
    x, log_p = gaussian_data(500)
    drawn = exact(depth).walk(x, Noise(3), analytic=False)
    total = drawn.recon + torch.stack(drawn.levels).sum(0)
    torch.testing.assert_close(total.double(), -log_p, rtol=0, atol=6e-6)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_bound_of_the_exact_chain_is_the_entropy(depth):
    """With the top level's KL in closed form, on average, term by term and in bits per dimension."""
    x, log_p = gaussian_data(4000)
    model = exact(depth)
    result = evaluate(model, x, draws=4)
    own = -float(log_p.mean()) / (4 * math.log(2))
    error = float((result.bpd.total + log_p / (4 * math.log(2))).std()) / 4000**0.5
    assert abs(result.mean - own) < 4 * error + 1e-5
    assert float(result.bpd.prior.mean()) > 0
    if depth == 1:
        assert not result.bpd.diffusion.any()
    # levels below the top share the information that the top does not hold: it falls by RHO² per level
    assert error < 0.01


def test_an_analytic_kl_at_a_lower_level_would_be_wrong():
    """The trap: KL(q(z_1 | x) || p(z_1 | z_2)) at a z_2 that was drawn from z_1 takes the two as independent."""
    x, log_p = gaussian_data(4000)
    model = exact(2)
    drawn = model.walk(x, Noise(1))
    mean, logvar = model.encoder(centre(x, 256))
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    mean, logvar = model.down[0](drawn.latents[1])
    p = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    wrong = drawn.recon + torch.distributions.kl_divergence(q, p).sum(1) + drawn.levels[-1]
    assert abs(float((wrong + log_p).mean())) > 0.1


@pytest.mark.parametrize("depth", [1, 3])
def test_terms_recomputed(depth):
    """Each term from the networks' outputs, in float64 with torch.distributions."""
    model, x, noise = chain(depth), images(4), Noise(2)
    with torch.no_grad():
        drawn = model.walk(x, noise)
        q, z, levels = [model.encoder(centre(x, 17))], [], []
        for t in range(depth):
            eps = noise.at(stream=Stream.VAE + 256 * t).normal((4, 5))
            z.append(q[t][0] + (0.5 * q[t][1]).exp() * eps)
            if t < depth - 1:
                q.append(model.up[t](z[t]))
        normal = [torch.distributions.Normal(m.double(), (0.5 * v.double()).exp()) for m, v in q]
        for t in range(depth - 1):
            mean, logvar = model.down[t](z[t + 1])
            p = torch.distributions.Normal(mean.double(), (0.5 * logvar.double()).exp())
            levels.append((normal[t].log_prob(z[t].double()) - p.log_prob(z[t].double())).sum(1))
        standard = torch.distributions.Normal(torch.zeros(4, 5).double(), 1.0)
        levels.append(torch.distributions.kl_divergence(normal[-1], standard).sum(1))
        mean, logvar = model.decoder(z[0])
        centres = centre(torch.arange(17), 17).double()
        logits = -0.5 * torch.exp(-logvar.double())[..., None] * (mean.double()[..., None] - centres) ** 2
        recon = -torch.log_softmax(logits, -1).gather(-1, x.long()[..., None]).flatten(1).sum(1)
    for ours, theirs in zip([drawn.recon, *drawn.levels], [recon, *levels], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)
    vlb = model.vlb(x, noise)
    torch.testing.assert_close(vlb.diffusion, sum(drawn.levels[:-1], torch.zeros(4)))
    torch.testing.assert_close(vlb.prior, drawn.levels[-1])


def test_more_samples_tighten_the_importance_weighted_bound():
    model, x = chain(2), images(40)
    bounds = [float(model.log_likelihood(x, Noise(1), k).mean()) for k in (1, 8, 64)]
    assert bounds == sorted(bounds)
    single = model.walk(x, Noise(1), analytic=False)
    expected = -(single.recon + torch.stack(single.levels).sum(0)).double()
    torch.testing.assert_close(model.log_likelihood(x, Noise(1), 1), expected.detach())
    exactly, log_p = gaussian_data(50)
    torch.testing.assert_close(exact(3).log_likelihood(exactly, Noise(0), 5), log_p, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="samples is 0; allowed: an integer >= 1"):
        model.log_likelihood(x, Noise(0), 0)


def test_beta_and_free_bits():
    x, noise = images(6), Noise(5)
    plain = chain(2).objective(x, noise)
    torch.testing.assert_close(plain.loss.detach(), plain.vlb.total)
    double = chain(2, beta=2.0).objective(x, noise)
    torch.testing.assert_close(double.loss.detach(), plain.vlb.total + plain.vlb.prior + plain.vlb.diffusion)
    high = chain(2, free_bits=1e6)
    loss = high.objective(x, noise).loss.mean()
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in high.down.parameters())  # no level's term is pushed
    torch.testing.assert_close(loss.detach(), plain.vlb.recon.mean() + 2e6)
    low = chain(2, free_bits=1e-6)
    torch.testing.assert_close(low.objective(x, noise).loss.detach().mean(), plain.vlb.total.mean(), rtol=1e-5, atol=0)


def test_log_variances_are_bounded():
    raw = torch.tensor([-1e4, -3.0, 0.0, 1e4], requires_grad=True)
    values = bounded(raw)
    assert float(values.detach().abs().max()) <= LOGVAR_LIMIT
    values.sum().backward()
    assert abs(float(raw.grad[2]) - 1) < 1e-6
    model = chain(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(100.0)
    assert model.vlb(images(3), Noise(0)).total.isfinite().all()


def test_it_learns_and_its_units_are_active():
    torch.manual_seed(0)
    model = HVAE(HVAEConfig((1, 8, 8), 17, depth=2, latent=8, hidden=32, network=ConvVAEConfig(widths=(16,))))
    reports = list(train(TrainState(model, TrainConfig("digits", steps=120, learning_rate=3e-3, warm_up=10)), digits()))
    assert float(reports[-1].bpd.total) < 0.8 * float(reports[0].bpd.total)
    model.eval()
    units = active_units(model, digits().test_images)
    assert len(units) == 2
    assert units[0] > 0
    untrained = chain(1)
    untrained.encoder.gaussian.linear.weight.data.zero_()
    assert active_units(untrained, images(30)) == [0]


@pytest.mark.parametrize("depth", [1, 3])
def test_samples_depend_on_the_seed_and_the_index_alone(depth):
    model = chain(depth)
    whole = fastdiff.sample(model, 7, seed=4, output="levels")
    parts = fastdiff.sample(model, 7, seed=4, batch_size=3, output="levels")
    assert (whole != parts).float().mean() < 0.01  # rounding may move a pixel by a level
    assert not torch.equal(whole, fastdiff.sample(model, 7, seed=5, output="levels"))
    assert fastdiff.sample(model, 2, output="pil")[0].size == (8, 8)
    still = fastdiff.sample(model, 5, temperature=1e-9, output="levels")
    assert depth > 1 or (still == still[:1]).all()


def test_round_trips(tmp_path):
    model = chain(3)
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m")
    assert isinstance(again, HVAE)
    assert again.config == model.config
    x = images(2)
    assert torch.equal(again.vlb(x, Noise(1)).total, model.vlb(x, Noise(1)).total)
    assert model.decode(model.encode(x)[0][0]).shape == x.shape
    assert model.decode(model.encode(x)[2][0], Noise(0), from_level=3).shape == x.shape


WRONG = {
    "depth 0.*allowed: numbers of at least 1": {"depth": 0},
    "latent 0": {"latent": 0},
    "beta -1.0.*allowed: .*numbers >= 0": {"beta": -1.0},
    "classes 10, augmented False; allowed: 0 and False": {"classes": 10},
    "shape \\(1, 9, 8\\) with a network that halves it; allowed: multiples of 2": {"shape": (1, 9, 8)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_configurations(message):
    with pytest.raises(ValueError, match=message):
        chain(**WRONG[message])


def test_wrong_networks():
    with pytest.raises(ValueError, match=r"widths \(\), blocks 1.*allowed: numbers of at least 1"):
        ConvVAEConfig(widths=())
    with pytest.raises(ValueError, match="kind is 'other'; allowed: 'conv'"):
        ConvVAEConfig(kind="other")


def test_what_a_vae_has_not():
    model, x = chain(2), images(2)
    with pytest.raises(ValueError, match="steps is 10 for a VAE of depth 2; allowed: its own, or None"):
        evaluate(model, x, steps=10)
    with pytest.raises(ValueError, match="loss is 'simple' for a VAE; allowed: elbo"):
        model.objective(x, Noise(0), loss="simple")
    for option in ({"steps": 10}, {"sampler": "ddim"}, {"labels": 3}, {"clip": True}, {"grid": "gamma"}):
        with pytest.raises(ValueError, match="for a VAE, which has one chain and no labels; allowed: None"):
            fastdiff.sample(model, 1, **option)
    with pytest.raises(ValueError, match=r"z has shape \(2, 4\), level 1; allowed: \[B, 5\], levels 1 .. 2"):
        model.decode(torch.zeros(2, 4))
