"""Averages over a data set by hand: bounds, the exact sum, the ODE's bound, standard errors, active units."""

import math

import numpy as np
import pytest
import torch
from tiny import images, small, small_ddpm, small_diffusevae, small_restoration, small_vae
from torch import nn

from fastdiff.diffusion import Vlb
from fastdiff.diffusion.process import posterior, transition_variance
from fastdiff.evaluation import Evaluation, evaluate, evaluate_latents, evaluate_ode, ode_nats, standard_error
from fastdiff.kernels import FastdiffError, Noise, Stream, to_unit_range
from fastdiff.models import AddNoise, UNetConfig

STEP = 2**32 - 1  # of the noise of an evaluation
BITS = 64 * math.log(2.0)  # nats of one bit per dimension
LABELS = torch.tensor([0, 2, 3, 1, 0, 2, 3])  # 3 stands for "no label"
X = images(7)
EVERY_MODEL = {
    "vdm": lambda: small(fourier=None),
    "vdm with labels": lambda: small("categorical", num_classes=3),
    "ddpm": lambda: small_ddpm(variance="learned", num_classes=3),
    "hvae": lambda: small_vae(3),
    "diffusevae": lambda: small_diffusevae(2, depth=2),
    "restoration": lambda: small_restoration(AddNoise()),
}


def terms_of(result: Evaluation) -> torch.Tensor:
    return torch.stack([result.bpd.recon, result.bpd.prior, result.bpd.diffusion])


# ------------------------------------------------------------------------------------------------ sampled bounds


@pytest.mark.parametrize("kind", EVERY_MODEL)
def test_the_average_of_every_image_by_hand(kind):
    """Draw r of image i is sample r · N + i of one global batch, whatever the batches are."""
    model = EVERY_MODEL[kind]()
    labels = LABELS if model.num_classes else None
    rounds = [
        model.vlb(X, Noise(5, STEP, first_sample=7 * r), model.T, labels=labels, total=21).detach() for r in range(3)
    ]
    expected = torch.stack([torch.stack([v.recon, v.prior, v.diffusion]).double() for v in rounds]).mean(0) / BITS
    for batch_size in (1, 4, 7, 64):
        result = evaluate(model, X, labels, draws=3, seed=5, batch_size=batch_size)
        torch.testing.assert_close(terms_of(result), expected, rtol=2e-5, atol=1e-6)
        assert terms_of(result).dtype == torch.float64
        assert result.T == model.T
        torch.testing.assert_close(result.bpd.total, expected.sum(0), rtol=2e-5, atol=1e-6)
    assert evaluate(model, X, labels, draws=3, seed=6).mean != result.mean


@pytest.mark.parametrize("T", [None, 1, 6])
def test_the_number_of_steps_reaches_the_bound(T):
    model = small()
    expected = model.vlb(X, Noise(5, STEP), T).detach().bpd(64)
    result = evaluate(model, X, T=T, draws=1, seed=5)
    torch.testing.assert_close(result.bpd.total, expected.total.double(), rtol=1e-5, atol=0)
    assert result.T == T


def test_the_model_is_evaluated_without_dropout_and_left_as_it_was():
    model = small(network=UNetConfig(widths=(8,), blocks=1, embedding=8, dropout=0.5, heads=2))
    expected = evaluate(model, X, draws=2).bpd.total
    model.train().network.attention.eval()
    assert torch.equal(evaluate(model, X, draws=2).bpd.total, expected)
    evaluate_ode(model, X[:1], steps=1, draws=1)
    assert model.training
    assert not model.network.attention.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_means_and_standard_errors():
    terms = torch.rand(3, 50, dtype=torch.float64)
    result, total = Evaluation(Vlb(*terms), 7), terms.sum(0).numpy()
    assert result.mean == pytest.approx(total.mean(), rel=1e-14)
    assert result.standard_error == pytest.approx(total.std(ddof=1) / np.sqrt(50), rel=1e-14)
    expected = [7, total.mean(), total.std(ddof=1) / np.sqrt(50), *terms.mean(1).tolist()]
    assert list(result.row()) == ["T", "bpd", "se", "recon", "prior", "diffusion"]
    assert list(result.row().values()) == pytest.approx(expected, rel=1e-14)
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)
    assert math.isnan(standard_error(torch.ones(1)))


# ------------------------------------------------------------------------------------------------ the exact sum


def drawn(x: torch.Tensor, gamma: torch.Tensor, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents at gamma and their noise, for images that start at a sample of the global batch, float64."""
    eps = Noise(5, STEP, first_sample=sample, stream=Stream.DIFFUSION).normal(x.shape).double()
    return torch.sigmoid(-gamma).sqrt() * to_unit_range(x, 17).double() + torch.sigmoid(gamma).sqrt() * eps, eps


@pytest.mark.parametrize("batch_size", [1, 10, 512])
def test_the_exact_sum_of_a_vdm(batch_size):
    """½ Σ expm1(gamma_t - gamma_s) |eps - eps_hat|² over all six steps, one z_t each."""
    model, labels = small("v", num_classes=3), LABELS
    gamma, expected = torch.linspace(-8.0, 5.0, 7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    for r in range(6):
        z_t, eps = drawn(X, gamma[r + 1], 7 * r)
        with torch.no_grad():
            eps_hat = model.eps_hat(z_t.float(), gamma[r + 1].float().expand(7), labels).double()
        expected += 0.5 * torch.expm1(gamma[r + 1] - gamma[r]) * (eps - eps_hat).square().flatten(1).sum(1)
    result = evaluate(model, X, labels, T=6, draws=2, seed=5, batch_size=batch_size, exact=True)
    torch.testing.assert_close(result.bpd.diffusion, expected / BITS, rtol=1e-4, atol=0)
    sampled = evaluate(model, X, labels, T=6, draws=2, seed=5, batch_size=batch_size)
    torch.testing.assert_close(result.bpd.recon, sampled.bpd.recon, rtol=1e-5, atol=1e-6)  # averages over the draws
    torch.testing.assert_close(result.bpd.prior, sampled.bpd.prior, rtol=1e-6, atol=0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_exact_sum_of_a_ddpm(variance):
    """KL(q(z_s | z_t, x) || p(z_s | z_t)) of the four Gaussian steps, by torch.distributions in float64."""
    model = small_ddpm(5, variance=variance)
    gamma = model.gamma(torch.linspace(0.0, 1.0, 5, dtype=torch.float64))
    expected = torch.zeros(7, dtype=torch.float64)
    for r in range(4):
        g_s, g_t = gamma[r], gamma[r + 1]
        z_t, _ = drawn(X, g_t, 7 * r)
        with torch.no_grad():
            eps_hat, v = model.predict(z_t.float(), g_t.float().expand(7))
        x_hat = (z_t - torch.sigmoid(g_t).sqrt() * eps_hat.double()) / torch.sigmoid(-g_t).sqrt()
        a, b, small_variance = posterior(g_s, g_t)
        large = transition_variance(g_s, g_t)
        v = {"fixed_small": 0.0, "fixed_large": 1.0}.get(variance, v)
        of_p = torch.as_tensor(large**v * small_variance ** (1 - v)).expand(z_t.shape)
        q = torch.distributions.Normal(a * z_t + b * to_unit_range(X, 17), small_variance.sqrt())
        p = torch.distributions.Normal(a * z_t + b * x_hat, of_p.sqrt())
        expected += torch.distributions.kl_divergence(q, p).flatten(1).sum(1)
    result = evaluate(model, X, draws=1, seed=5, batch_size=5, exact=True)
    torch.testing.assert_close(result.bpd.diffusion, expected / BITS, rtol=1e-4, atol=0)


@pytest.mark.parametrize("build", [small_restoration, small_diffusevae])
def test_the_exact_sum_is_what_the_draws_average_to(build):
    """Of a conditional model, whose conditioning images are drawn anew: within four standard errors over the images."""
    model, x = build(T=4), images(60)
    exact = evaluate(model, x, exact=True, draws=8)
    sampled = evaluate(model, x, draws=8)
    difference = exact.bpd.total - sampled.bpd.total
    assert abs(float(difference.mean())) < 4 * standard_error(difference)
    assert 0 < standard_error(difference) < 0.1 * exact.mean


# ------------------------------------------------------------------------------------------------ ODE


def test_the_bound_of_the_ode_by_hand():
    model, x, labels = small_ddpm(num_classes=3), X[:3], LABELS[:3]
    rounds = [ode_nats(model, x, Noise(5, STEP, first_sample=3 * r), 2, labels) for r in range(2)]
    expected = torch.stack(rounds).mean(0) / BITS
    result = evaluate_ode(model, x, labels, steps=2, draws=2, seed=5, batch_size=2)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    assert result.dtype == torch.float64


# ------------------------------------------------------------------------------------------------ latents


class SomeUnits(nn.Module):
    """An encoder of which two of five means vary by more than a hundredth, and a third by less."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))  # a model's device is that of its parameters

    def forward(self, x):
        mean = torch.zeros(len(x), 5)
        mean[::2, :2], mean[::2, 2] = 0.3, 0.1  # half of the images: variances 0.0225 and 0.0025
        return mean, torch.zeros(len(x), 5)


@pytest.mark.parametrize("build", [small_vae, small_diffusevae])
def test_active_units_and_terms_of_the_layers(build):
    """Variances of the means image by image in NumPy, and the sum of the terms; whatever the batches are."""
    model, x = build(depth=3), images(30)
    vae = model.autoencoder
    with torch.no_grad():
        vae.encoder.gaussian.linear.weight[:2] *= 0.2  # of the means
        vae.encoder.gaussian.linear.weight[2:5] *= 2.0
    encoded = [vae.encode(x[i : i + 1]) for i in range(30)]
    means = [np.stack([image[layer][0][0].double().numpy() for image in encoded]) for layer in range(3)]
    active = [int((np.mean((m - m.mean(0)) ** 2, axis=0) > 0.01).sum()) for m in means]
    assert active[0] == 3
    bound = vae.vlb(x, Noise(2, STEP)).detach()
    for batch_size in (1, 7, 512):
        found = evaluate_latents(model, x, seed=2, batch_size=batch_size)
        assert found["active_units"] == active
        assert found["layer_nats"][-1] == pytest.approx(float(bound.prior.double().mean()), rel=1e-5)
        below = float(bound.diffusion.double().mean())
        assert sum(found["layer_nats"][:-1]) == pytest.approx(below, rel=1e-4, abs=1e-4)


def test_units_on_either_side_of_the_threshold():
    vae = small_vae(3)
    vae.encoder = SomeUnits()
    assert evaluate_latents(vae, X[:6])["active_units"][0] == 2
    assert evaluate_latents(vae, X[:1])["active_units"] == [0, 0, 0]
    assert evaluate_latents(small(), X) == {}
    assert evaluate_latents(small_restoration(), X) == {}


# ------------------------------------------------------------------------------------------------ rejections

CLASSES = small(num_classes=3)
REJECTED = [
    (evaluate, "draws must", {"draws": 0}), (evaluate, "batch_size must", {"batch_size": 0}),
    (evaluate, "T must", {"model": small_ddpm(), "T": 1}), (evaluate, "T must", {"model": small_vae(2), "T": 10}),
    (evaluate, "exact", {"model": small_vae(), "exact": True}), (evaluate, "draws must", {"T": 2**32, "exact": True}),
    (evaluate, "labels", {"labels": [0, 1, 2, 0, 0, 0, 0]}), (evaluate, "labels", {"model": small(), "labels": LABELS}),
    (evaluate, "x must", {"images": X.float()}), (evaluate, "x must", {"images": X + 17 - X}),
    (evaluate, "model must", {"model": nn.Identity()}), (evaluate, "seed", {"seed": -1}),
    (evaluate_ode, "steps", {"steps": 0}), (evaluate_ode, "steps", {"steps": 2.0}),
    (evaluate_ode, "draws", {"draws": 0}),
    (evaluate_ode, "no diffusion model", {"model": small_vae()}), (evaluate_ode, "images", {"images": X[:0]}),
    (evaluate_ode, "ODE", {"model": small_diffusevae()}), (evaluate_ode, "ODE", {"model": small_restoration()}),
    (evaluate_latents, "images", {"model": small_vae(), "images": X[:0]}),
    (evaluate_latents, "x must", {"model": small_vae(), "images": X.float()}),
    (evaluate_latents, "batch_size", {"model": small_vae(), "batch_size": 0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "message", "arguments"), [pytest.param(*row, id=f"{k} {row[1]}") for k, row in enumerate(REJECTED)]
)
def test_arguments_that_are_rejected(function, message, arguments):
    with pytest.raises(FastdiffError, match=message):
        function(**({"model": CLASSES, "images": X} | arguments))


def test_the_schedule_is_checked_before_the_ode_is_integrated():
    model = small()
    with torch.no_grad():
        model.gamma.gamma_0.fill_(5.5)
    with pytest.raises(FastdiffError, match="increas"):
        evaluate_ode(model, X)
