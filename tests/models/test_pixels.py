"""Levels at the ends of [-1, 1], as other libraries have them: the data, the decoder, the images, the densities."""

import math

import pytest
import torch
from tiny import images, small_ddpm
from torch.distributions import Normal

from fastdiff.evaluation import evaluate_ode
from fastdiff.evaluation.dequantization import dequantize
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import Noise
from fastdiff.models import DDPM, Downsample, RestorationConfig

LEVELS = 17


def ends() -> DDPM:
    return small_ddpm(pixels="ends")


def test_data_and_levels():
    model, x = ends(), torch.arange(LEVELS, dtype=torch.uint8)
    torch.testing.assert_close(model.to_unit(x), 2.0 * torch.arange(LEVELS) / (LEVELS - 1) - 1.0)
    values = torch.linspace(-1.2, 1.2, 1001)
    expected = torch.round((values.clamp(-1, 1) + 1.0) / 2.0 * (LEVELS - 1)).to(torch.uint8)
    assert torch.equal(model.nearest_level(values), expected)
    assert torch.equal(model.nearest_level(model.to_unit(x)), x)


def test_bytes_are_those_of_an_image_in_0_to_1():
    """((x / 2 + ½) 255).round(), as pipelines of diffusers end."""
    model = small_ddpm(pixels="ends", levels=256)
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    expected = ((values / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(model.nearest_level(values), expected)


def test_the_decoder_is_ddpms():
    """Bins of ± 1 / (levels - 1) around the levels, the outer ones to infinity (Ho et al. 2020, eq. 13)."""
    model, x = ends(), images(3)
    gamma_0 = model.gamma.endpoints()[0].expand(3)
    z_0 = model.to_unit(x) + 0.05 * torch.randn(x.shape)
    with torch.no_grad():
        found = model.recon_nats(x, z_0)
        eps_hat = model.eps_hat(z_0, gamma_0).double()
    bar = torch.sigmoid(-gamma_0.double()).reshape(-1, 1, 1, 1)
    mean = (z_0 - (1 - bar).sqrt() * eps_hat) / bar.sqrt()
    normal = Normal(mean, math.exp(0.5 * model.decoder_log_variances[0]))
    data, half = 2.0 * x.double() / (LEVELS - 1) - 1.0, 1.0 / (LEVELS - 1)
    above = torch.where(x == LEVELS - 1, 1.0, normal.cdf(data + half))
    below = torch.where(x == 0, 0.0, normal.cdf(data - half))
    torch.testing.assert_close(found.double(), -(above - below).log().flatten(1).sum(1), rtol=1e-5, atol=0)


def test_the_bound_is_that_of_the_data_at_the_ends():
    """The prior term, of x itself."""
    model, x = ends(), images(3)
    with torch.no_grad():
        prior = model.vlb(x, Noise(0), T=5).prior
    gamma_1 = model.gamma.endpoints()[1].double()
    q = Normal(torch.sigmoid(-gamma_1).sqrt() * model.to_unit(x).double(), torch.sigmoid(gamma_1).sqrt())
    kl = torch.distributions.kl_divergence(q, Normal(torch.zeros(()).double(), torch.ones(()).double()))
    torch.testing.assert_close(prior.double(), kl.flatten(1).sum(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["uniform", "truncated-normal"])
def test_dequantised_data_fill_the_bins(name):
    """z_0 / alpha_0 lies within ± 1 / (levels - 1) of x; the uniform q integrates to 1 over the bin."""
    model, x = ends(), images(8)
    z_0, log_q = dequantize(name, model, x, Noise(1))
    alpha_0 = torch.sigmoid(-model.gamma.endpoints()[0].double()).sqrt()
    distance = (z_0 / alpha_0 - model.to_unit(x)).abs() * (LEVELS - 1)
    assert distance.max() <= 1.0 + 1e-6
    if name == "uniform":
        assert distance.max() > 0.95
        torch.testing.assert_close(log_q / model.dims, -torch.log(2.0 * alpha_0 / (LEVELS - 1)).expand(8))


def test_the_likelihood_by_the_ode_runs():
    assert torch.isfinite(evaluate_ode(ends(), images(4), steps=4)).all()


def test_conditional_models_have_centers():
    with pytest.raises(ConfigError, match="pixels must be 'centers'"):
        RestorationConfig(shape=(1, 8, 8), levels=17, pixels="ends", degradation=Downsample(factor=2))
    with pytest.raises(ConfigError, match="pixels must be one of"):
        small_ddpm(pixels="edges")
