"""What training minimises: the bound and its weighted relatives, at stratified or independent times, at any T."""

import math

import pytest
import torch
from tiny import SMALL, images, small

from fastdiff.datasets import digits
from fastdiff.kernels import Noise, Stream, centre
from fastdiff.models import DDPM, VDM, DDPMConfig, VDMConfig
from fastdiff.process import PREDICTIONS, alpha, sigma
from fastdiff.training import TrainConfig, TrainState, flip_images, train
from fastdiff.vlb import independent_times, loss_weight, stratified_times


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_elbo_is_the_bound_with_its_gradients(steps, schedule):
    model, x, noise = small("levels", schedule=schedule), images(5), Noise(3)
    goal, vlb = model.objective(x, noise, steps=steps), model.vlb(x, noise, steps)
    torch.testing.assert_close(goal.loss, vlb.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(goal.vlb.total, vlb.total.detach(), rtol=1e-6, atol=0)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(goal.loss.sum(), parameters, allow_unused=True)
    plain = torch.autograd.grad(vlb.total.sum(), parameters, allow_unused=True)
    for one, other in zip(ours, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()) + 1e-6)


@pytest.mark.parametrize("name", ["simple", "min-snr", "sigmoid"])
@pytest.mark.parametrize("steps", [None, 7])
def test_weighted_losses_from_the_papers_formulas(name, steps):
    """w · |eps - eps_hat|², recomputed: 1; min(SNR, 5) / SNR; ½ gamma' sigmoid(2 + gamma)."""
    model, x, noise = small(learn_endpoints=False), images(6), Noise(5)
    goal = model.objective(x, noise, loss=name, steps=steps)
    u = stratified_times(noise, 6)
    t = u if steps is None else (1 + torch.floor(u * steps)) / steps
    gamma = -8.0 + 13.0 * t
    slope = (
        torch.full((6,), 13.0).double() if steps is None else steps * torch.expm1(torch.tensor(13.0 / steps)).double()
    )
    g = gamma[:, None, None, None]
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape).double()
    z = alpha(g) * centre(x, 17) + sigma(g) * eps
    with torch.no_grad():
        square = (eps - model.eps_hat(z.float(), gamma.float())).square().flatten(1).sum(1)
    snr = torch.exp(-gamma)
    factor = {
        "simple": torch.ones(6).double(),
        "min-snr": torch.minimum(snr, torch.tensor(5.0).double()) / snr,
        "sigmoid": 0.5 * slope * torch.sigmoid(2.0 + gamma),
    }[name]
    ends = goal.vlb.recon + goal.vlb.prior
    torch.testing.assert_close((goal.loss.detach() - ends).double(), factor * square, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(goal.vlb.diffusion.double(), 0.5 * slope * square, rtol=1e-4, atol=1e-3)


def test_unknown_loss():
    with pytest.raises(ValueError, match="unknown loss 'l1'; allowed: elbo, simple, min-snr, sigmoid"):
        loss_weight("l1", torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="unknown loss 'l1'"):
        small().objective(images(1), Noise(0), loss="l1")


def test_independent_times_are_independent_and_uniform():
    u = torch.stack([independent_times(Noise(1, step), 8) for step in range(4000)])
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * u.numel())
    correlation = torch.corrcoef(u.T) - torch.eye(8)
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(4000)
    whole = independent_times(Noise(1, 3), 8)
    parts = torch.cat([independent_times(Noise(1, 3, first_sample=first), 4) for first in (0, 4)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("stratified", [True, False])
def test_both_kinds_of_times_estimate_the_same_bound(stratified):
    """Means over many steps agree with a fine midpoint rule in t."""
    model, x = small(learn_endpoints=False, fourier=None), images(4)
    draws = torch.stack([model.objective(x, Noise(2, k), stratified=stratified).vlb.diffusion for k in range(600)])
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    with torch.no_grad():
        rule = [
            model.diffusion_nats(centre(x[b : b + 1], 17).expand(2000, -1, -1, -1), Noise(3, b), u, None).mean()
            for b in range(4)
        ]
    error = float(draws.mean(1).std()) / math.sqrt(600) + float(torch.stack(rule).mean()) * 0.005
    assert abs(float(draws.mean() - torch.stack(rule).mean())) < 4 * error


@pytest.mark.parametrize("head", [*PREDICTIONS, "levels"])
def test_every_head_learns(head):
    """Sixty steps on the digits lower the bound well below that of fresh weights."""
    torch.manual_seed(0)
    model = VDM(VDMConfig((1, 8, 8), 17, gamma_0=-8.0, learn_endpoints=False, fourier=None, head=head, network=SMALL))
    config = TrainConfig("digits", steps=60, batch_size=64, learning_rate=5e-3, warm_up=5)
    reports = list(train(TrainState(model, config), digits()))
    first = sum(float(report.bpd.total) for report in reports[:3]) / 3
    last = sum(float(report.bpd.total) for report in reports[-10:]) / 10
    assert last < 0.8 * first


@pytest.mark.parametrize("variance", ["large", "learned"])
def test_ddpm_learns_on_the_simple_loss(variance):
    torch.manual_seed(0)
    model = DDPM(DDPMConfig((1, 8, 8), 17, steps=100, variance=variance, network=SMALL))
    config = TrainConfig("digits", steps=60, batch_size=64, loss="simple", learning_rate=5e-3, warm_up=5)
    reports = list(train(TrainState(model, config), digits()))
    assert float(reports[-1].loss) < 0.5 * float(reports[0].loss)
    assert reports[-1].bpd.total.isfinite()


def test_training_a_learned_schedule_keeps_its_ends_and_clips_it_apart():
    torch.manual_seed(0)
    model = VDM(
        VDMConfig((1, 8, 8), 17, gamma_0=-8.0, schedule="learned", learn_endpoints=False, fourier=None, network=SMALL)
    )
    state = TrainState(model, TrainConfig("digits", steps=20, batch_size=16, clip_norm=1e-3))
    assert len(state.interior) == 4
    before = [p.detach().clone() for p in state.interior]
    norms = [float(report.gradient_norm) for report in train(state, digits())]
    assert all(not torch.equal(p, old) for p, old in zip(state.interior, before, strict=True))
    assert [float(end) for end in model.gamma.endpoints()] == [-8.0, 5.0]
    assert max(norms) < 1e4  # 2 L times larger gradients of the schedule are not in it
    steps = TrainConfig("digits", steps=2, clip_norm=None)
    assert len(list(train(TrainState(small(), steps), digits()))) == 2


def test_finite_steps_can_be_trained_and_rates_can_stay():
    state = TrainState(small(), TrainConfig("digits", steps=3, bound_steps=10, decay="constant", warm_up=1))
    reports = list(train(state, digits()))
    assert [report.rate for report in reports] == [0.5, 1.0, 1.0]
    assert float(reports[0].bpd.diffusion) > 0


def test_flips_mirror_whole_images_with_their_probability():
    x = images(2000)
    flipped = flip_images(x, 0.3, Noise(1, 2))
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) | mirrored).all()
    assert abs(float(mirrored.float().mean()) - 0.3) < 4 * (0.21 / 2000) ** 0.5
    assert torch.equal(flip_images(x, 0.0, Noise(1)), x)
    assert torch.equal(flip_images(x, 1.0, Noise(1)), x.flip(3))
