"""EDM's preconditioning (Karras et al. 2022, Elucidating the design space of diffusion models, table 1).

In the variance-exploding process y = z_t / alpha_t = x + s eps, s = e^{gamma / 2}, with data of deviation sigma_data,

    x_hat = c_skip y + c_out F(c_in y),
    c_skip = sigma_data² / (s² + sigma_data²),   c_out = s sigma_data / sqrt(s² + sigma_data²),
    c_in = 1 / sqrt(s² + sigma_data²),

so that the network F has inputs and targets of unit variance at every gamma. With g = gamma - 2 ln sigma_data, the
negative log-SNR of data divided by sigma_data, these are alpha(g)², sigma_data sigma(g) and alpha(g) / sigma_data. F
predicts -v of such data; for sigma_data = 1 it is -v. The conversion to eps_hat has condition number 1.

Functions of gamma work in the dtype of gamma and broadcast, see `fastdiff.diffusion.process`.
"""

import math

from torch import Tensor

from .process import alpha, eps_from_v, sigma


def c_skip(gamma: Tensor, sigma_data: float) -> Tensor:
    """Return sigma_data² / (s² + sigma_data²), the factor of y in x_hat."""
    return alpha(_relative(gamma, sigma_data)).square()


def c_out(gamma: Tensor, sigma_data: float) -> Tensor:
    """Return s sigma_data / sqrt(s² + sigma_data²), the factor of the network's output in x_hat."""
    return sigma_data * sigma(_relative(gamma, sigma_data))


def c_in(gamma: Tensor, sigma_data: float) -> Tensor:
    """Return 1 / sqrt(s² + sigma_data²), the factor of y in the network's input."""
    return alpha(_relative(gamma, sigma_data)) / sigma_data


def unit_variance(z_t: Tensor, gamma: Tensor, sigma_data: float) -> Tensor:
    """Return c_in y = z_t / sqrt(alpha_t² sigma_data² + sigma_t²), the network's input."""
    return z_t / ((sigma_data * alpha(gamma)).square() + sigma(gamma).square()).sqrt()


def eps_from_edm(z_t: Tensor, output: Tensor, gamma: Tensor, sigma_data: float) -> Tensor:
    """Return eps_hat = (z_t - alpha_t x_hat) / sigma_t = sigma(g) c_in y - alpha(g) F for the network's output F."""
    return eps_from_v(unit_variance(z_t, gamma, sigma_data), -output, _relative(gamma, sigma_data))


def _relative(gamma: Tensor, sigma_data: float) -> Tensor:
    """Return gamma of data divided by sigma_data."""
    return gamma - 2.0 * math.log(sigma_data)
