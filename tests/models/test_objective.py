"""What training minimises: the bound and the weighted losses, at stratified or independent times, at any T."""

import math

import pytest
import torch
from tiny import DATA, SMALL, diffusion_nats, images, small

from fastdiff.data import digits
from fastdiff.diffusion.bound import loss_weight, stratified_times
from fastdiff.diffusion.process import PREDICTIONS, alpha, sigma
from fastdiff.kernels import InvalidValueError, Noise, Stream, to_unit_range
from fastdiff.models import DDPM, VDM, DDPMConfig, VDMConfig
from fastdiff.training import TrainConfig, TrainState, train


@pytest.mark.parametrize("T", [None, 7])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_elbo_is_the_bound_with_its_gradients(T, schedule):
    model, x, noise = small("categorical", schedule=schedule), images(5), Noise(3)
    objective, vlb = model(x, noise, T=T), model.vlb(x, noise, T)
    torch.testing.assert_close(objective.loss, vlb.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(objective.vlb.total, vlb.total.detach(), rtol=1e-6, atol=0)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(objective.loss.sum(), parameters, allow_unused=True)
    plain = torch.autograd.grad(vlb.total.sum(), parameters, allow_unused=True)
    for one, other in zip(ours, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()) + 1e-6)


@pytest.mark.parametrize("name", ["simple", "min-snr", "sigmoid", "flow", "edm"])
@pytest.mark.parametrize("T", [None, 7])
def test_weighted_losses_from_the_papers_formulas(name, T):
    """w · |eps - eps_hat|², recomputed: 1; min(SNR, 5) / SNR; ½ gamma' times a sigmoid, e^{gamma / 2}, EDM's."""
    model, x, noise = small(learn_endpoints=False), images(6), Noise(5)
    objective = model(x, noise, loss=name, T=T)
    u = stratified_times(noise, 6)
    t = u if T is None else (1 + torch.floor(u * T)) / T
    gamma = -8.0 + 13.0 * t
    slope = torch.tensor(13.0 if T is None else T * math.expm1(13.0 / T), dtype=torch.float64)
    g = gamma[:, None, None, None]
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
    z = alpha(g) * to_unit_range(x, 17) + sigma(g) * eps
    with torch.no_grad():
        square = (eps - model.eps_hat(z.float(), gamma.float())).square().flatten(1).sum(1)
    snr, normal = torch.exp(-gamma), torch.distributions.Normal(-2.4, 2.4).log_prob(gamma)
    factor = {
        "simple": torch.ones(6).double(),
        "min-snr": torch.minimum(snr, torch.tensor(5.0).double()) / snr,
        "sigmoid": 0.5 * slope * torch.sigmoid(2.0 + gamma),
        "flow": 0.5 * slope * torch.exp(gamma / 2),
        "edm": 0.5 * slope * 8.0 * normal.exp() * (gamma.exp() + 0.25),
    }[name]
    ends = objective.vlb.recon + objective.vlb.prior
    torch.testing.assert_close((objective.loss.detach() - ends).double(), factor * square, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(objective.vlb.diffusion.double(), 0.5 * slope * square, rtol=1e-4, atol=1e-3)


def test_unknown_loss():
    with pytest.raises(
        InvalidValueError, match="loss must be one of elbo, simple, min-snr, sigmoid, flow, edm, got 'l1'"
    ):
        loss_weight("l1", torch.zeros(1), torch.ones(1))


@pytest.mark.parametrize("stratified", [True, False])
def test_both_kinds_of_times_estimate_the_same_bound(stratified):
    """Means over many steps agree with a fine midpoint rule in t."""
    model, x = small(learn_endpoints=False, fourier=None), images(4)
    each = x.repeat(8, 1, 1, 1)
    u = (torch.arange(250, dtype=torch.float64) + 0.5) / 250
    with torch.no_grad():
        draws = torch.stack([model(each, Noise(2, k), stratified=stratified).vlb.diffusion for k in range(60)])
        rule = [diffusion_nats(model, x[b : b + 1].expand(250, -1, -1, -1), Noise(3, b), u).mean() for b in range(4)]
    expected = torch.stack(rule).mean()
    error = float(draws.mean(1).std()) / math.sqrt(60) + float(expected) * 0.005
    assert abs(float(draws.mean() - expected)) < 4 * error


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "edm", "categorical"])
def test_every_prediction_learns(prediction):
    """A few steps on the digits lower the bound of fresh weights; v, whose start is best, to 0.82 of it."""
    torch.manual_seed(0)
    settings = DATA | {"gamma_0": -8.0, "learn_endpoints": False, "fourier": None, "network": SMALL}
    model = VDM(VDMConfig(**settings, prediction=prediction))
    config = TrainConfig(data="digits", max_steps=40, batch_size=32, learning_rate=1e-2, warm_up=5)
    reports = list(train(TrainState(model, config), digits()))
    first = sum(float(report.bpd.total) for report in reports[:3]) / 3
    last = sum(float(report.bpd.total) for report in reports[-8:]) / 8
    assert last < 0.88 * first


@pytest.mark.parametrize("variance", ["fixed_large", "learned"])
def test_ddpm_learns_on_the_simple_loss(variance):
    torch.manual_seed(0)
    model = DDPM(DDPMConfig(**DATA, T=100, variance=variance, network=SMALL))
    config = TrainConfig(data="digits", max_steps=30, batch_size=32, loss="simple", learning_rate=1e-2, warm_up=5)
    reports = list(train(TrainState(model, config), digits()))
    assert float(reports[-1].loss) < 0.5 * float(reports[0].loss)
    assert reports[-1].bpd.total.isfinite()
