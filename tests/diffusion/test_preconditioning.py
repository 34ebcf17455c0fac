"""EDM's preconditioning against the paper's formulas in sigma, and what it is for: unit variances."""

import pytest
import torch

from fastdiff.diffusion import process
from fastdiff.diffusion.preconditioning import c_in, c_out, c_skip, eps_from_edm, unit_variance

GAMMA = torch.linspace(-30.0, 30.0, 601, dtype=torch.float64)
SIGMA = torch.exp(GAMMA / 2)  # the noise of y = z / alpha
DATA = [0.5, 1.0, 3.0]  # sigma_data


def of_the_paper(d: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """c_skip, c_out and c_in (Karras et al. 2022, table 1, last column)."""
    total = SIGMA**2 + d**2
    return d**2 / total, SIGMA * d / total.sqrt(), 1.0 / total.sqrt()


@pytest.mark.parametrize("d", DATA)
def test_the_formulas_of_the_paper(d):
    """Relative errors, measured: 2.0e-15 in float64; 1.9e-6 in float32, half of it from the rounding of gamma."""
    for ours, expected in zip((c_skip, c_out, c_in), of_the_paper(d), strict=True):
        torch.testing.assert_close(ours(GAMMA, d), expected, rtol=1e-14, atol=0)
        rounded = ours(GAMMA.float(), d).double()
        torch.testing.assert_close(rounded, expected, rtol=3e-6, atol=0)
    low, high = GAMMA[:1], GAMMA[-1:]
    for gamma, limits in ((low, (1.0, SIGMA[0], 1 / d)), (high, (d**2 / SIGMA[-1] ** 2, d, 1 / SIGMA[-1]))):
        for ours, limit in zip((c_skip, c_out, c_in), limits, strict=True):
            assert float(ours(gamma, d)) == pytest.approx(float(limit), rel=1e-11)


@pytest.mark.parametrize("d", DATA)
def test_inputs_and_targets_have_unit_variance(d):
    """Of independent x and noise with deviations d and sigma: the variances of c_in y and of (x - c_skip y) / c_out."""
    skip, out, scale = c_skip(GAMMA, d), c_out(GAMMA, d), c_in(GAMMA, d)
    torch.testing.assert_close(scale**2 * (d**2 + SIGMA**2), torch.ones_like(GAMMA), rtol=1e-13, atol=0)
    noise_share = SIGMA**2 / (SIGMA**2 + d**2)  # 1 - c_skip, without cancellation
    target = (noise_share**2 * d**2 + skip**2 * SIGMA**2) / out**2
    torch.testing.assert_close(target, torch.ones_like(GAMMA), rtol=1e-13, atol=0)
    gamma = torch.tensor([-9.0, -1.0, 0.0, 2.0, 9.0])[:, None]
    x, eps = d * torch.randn(5, 40_000), torch.randn(5, 40_000)
    seen = unit_variance(process.alpha(gamma) * x + process.sigma(gamma) * eps, gamma, d)
    assert float((seen.var(1) - 1.0).abs().max()) < 4 * (2 / 40_000) ** 0.5


@pytest.mark.parametrize("d", DATA)
def test_epsilon_from_the_networks_output(d):
    """Against x_hat = c_skip y + c_out F in float64; float32 has an error of a few ulp at every gamma.

    Measured: 2.9e-15 e^{|gamma| / 2}, the error of the formula that divides by sigma; 1.9 ulp of the largest of |z|,
    |F|, |eps| in float32.
    """
    gamma = GAMMA[:, None]
    x, eps, out = d * torch.randn(601, 16).double(), torch.randn(601, 16).double(), torch.randn(601, 16).double()
    z = process.alpha(gamma) * x + process.sigma(gamma) * eps
    y = z / process.alpha(gamma)
    skip, scale, _ = (part[:, None] for part in of_the_paper(d))
    expected = process.eps_from_x(z, skip * y + scale * out, gamma)
    ours = eps_from_edm(z, out, gamma, d)
    condition = torch.exp(gamma.abs() / 2)
    assert float(((ours - expected).abs() / condition).max()) < 1e-14
    torch.testing.assert_close(unit_variance(z, gamma, d), y / (SIGMA**2 + d**2).sqrt()[:, None], rtol=1e-13, atol=0)
    single = [value.float() for value in (z, out, gamma)]
    exact = eps_from_edm(*(value.double() for value in single), d)
    size = torch.stack([z.abs(), out.abs(), eps.abs(), exact.abs()]).amax(0)
    error = (eps_from_edm(*single, d) - exact).abs() / size / torch.finfo(torch.float32).eps
    assert float(error.max()) < 3


def test_with_unit_deviation_the_network_predicts_minus_v():
    gamma = GAMMA[:, None]
    z, v = torch.randn(601, 8).double(), torch.randn(601, 8).double()
    torch.testing.assert_close(eps_from_edm(z, -v, gamma, 1.0), process.eps_from_v(z, v, gamma), rtol=1e-14, atol=1e-15)
