"""Bits per dimension with importance-sampled gamma: the same expectation, in any batch, with less variance."""

import math

import pytest
import torch
from tiny import images, small, small_ddpm, small_restoration, small_vae

from fastdiff import load
from fastdiff.data import digits
from fastdiff.diffusion import LinearSchedule, PiecewiseLinearSchedule
from fastdiff.evaluation import evaluate, importance
from fastdiff.kernels import FastdiffError, Noise

STEP = 2**32 - 1
X = images(7)


@pytest.fixture(autouse=True)
def _small_pilot(monkeypatch):
    monkeypatch.setattr(importance, "PILOT_SAMPLES", 64)


@pytest.mark.parametrize("build", [small, lambda: small("v", num_classes=3), small_restoration])
def test_the_average_by_hand_in_any_batch(build, monkeypatch):
    """With the proposal that the pilot pass found, which the size of its batches changes by rounding only."""
    model, found = build(), []
    original = importance.fit_proposal
    monkeypatch.setattr(importance, "fit_proposal", lambda *rest: found.append(original(*rest)) or found[-1])
    results = [evaluate(model, X, T=None, draws=2, seed=5, batch_size=n, importance=True) for n in (3, 14)]
    rounds = [
        model.vlb(X, Noise(5, STEP, first_sample=7 * r), None, total=14, proposal=found[0]).detach() for r in range(2)
    ]
    expected = torch.stack([v.total.double() for v in rounds]).mean(0) / (math.prod(model.shape) * math.log(2.0))
    for result in results:
        torch.testing.assert_close(result.bpd.total, expected, rtol=1e-4, atol=1e-6)
        assert result.kind == "VLB, continuous time, importance"
    torch.testing.assert_close(found[0].times, found[1].times, rtol=1e-4, atol=0)
    own = evaluate(model, X, T=None, draws=2, seed=5)
    assert own.kind == "VLB, continuous time"
    torch.testing.assert_close(own.bpd.prior, results[0].bpd.prior, rtol=1e-6, atol=0)
    assert not torch.equal(own.bpd.diffusion, results[0].bpd.diffusion)


def test_any_proposal_is_unbiased():
    """Means of 400 draws under an uneven proposal and the model's own schedule, within four standard errors."""
    model, x = small(fourier=None), X[:1].expand(400, 1, 8, 8)
    proposal = PiecewiseLinearSchedule(torch.tensor([-8.0, -2.0, 5.0]), torch.tensor([0.0, 0.8, 1.0]))
    with torch.no_grad():
        own, other = (model.vlb(x, Noise(k), None, proposal=p) for k, p in ((1, None), (2, proposal)))
        linear = model.vlb(x, Noise(1), None, proposal=LinearSchedule(-8.0, 5.0))
    difference = float(own.diffusion.double().mean() - other.diffusion.double().mean())
    error = math.sqrt(float(own.diffusion.var() + other.diffusion.var()) / 400)
    assert abs(difference) < 4.0 * error
    torch.testing.assert_close(own.diffusion, linear.diffusion, rtol=1e-5, atol=0)  # the model's own is this one


def test_the_embedded_model_has_less_variance(monkeypatch):
    """Variance over 12 seeds of an image's diffusion term from two draws, with the same pilot size for all."""
    monkeypatch.setattr(importance, "PILOT_SAMPLES", 512)
    model, x = load("digits"), digits().test_images[:24]
    spread = []
    for important in (True, False):
        runs = [evaluate(model, x, T=None, draws=2, seed=seed, importance=important) for seed in range(6)]
        spread.append(float(torch.stack([run.bpd.diffusion for run in runs]).var(0).mean()))
    assert spread[0] < 0.6 * spread[1]


@pytest.mark.parametrize(
    ("model", "T", "message"),
    [(small(), 5, "T = 5"), (small_ddpm(5), "own", "T = 5"), (small_vae(2), "own", "the hvae model")],
)
def test_where_gamma_cannot_be_sampled(model, T, message):
    with pytest.raises(FastdiffError, match=f"importance needs a diffusion in continuous time.*{message}"):
        evaluate(model, X, T=T, importance=True)


def test_proposals_that_are_rejected():
    proposal = LinearSchedule(-8.0, 5.0)
    with pytest.raises(FastdiffError, match="proposal must be None at a finite T"):
        small().vlb(X, Noise(0), 4, proposal=proposal)
    with pytest.raises(FastdiffError, match="proposal must be None for a hvae model"):
        small_vae(2).vlb(X, Noise(0), proposal=proposal)
