"""UniPC and DEIS: orders of convergence on Gaussian data, where the flow has a closed form, and their special cases."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import plan_at

from fastdiff.diffusion import DEIS, LinearSchedule, Plan, UniPC, make_plan
from fastdiff.diffusion.multistep import _moments, deis, unipc
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.diffusion.rows import ddim, dpm_solver

S2 = 0.25  # variance of the data
A, B, C_1, C_2, C_3, D = 2, 3, 6, 7, 8, 9  # columns of a row


def deviation(gamma: torch.Tensor) -> torch.Tensor:
    """Standard deviation of z_t for x ~ N(0, S2): the flow is z_t = deviation(gamma_t) times a constant."""
    return (alpha(gamma) ** 2 * S2 + sigma(gamma) ** 2).sqrt()


def error(plan: Plan, gamma: torch.Tensor, exact_calls: int = 0) -> float:
    """Error of the last latent in float64; the first ``exact_calls`` latents are replaced by those of the flow."""
    z, latents, estimates = deviation(gamma[-1]), [0.0, 0.0], [0.0, 0.0, 0.0]
    for k, (g, row) in enumerate(zip(plan.gamma, plan.table.tolist(), strict=True)):
        z = deviation(g) if k < exact_calls else z
        x_hat = alpha(g) * S2 / deviation(g) ** 2 * z
        third = latents[1] if plan.third_is_latent else estimates[2]
        z_s = row[A] * z + row[B] * x_hat + row[C_1] * estimates[0] + row[C_2] * estimates[1]
        z_s = z_s + row[C_3] * third + row[D] * latents[0]
        z, latents, estimates = z_s, [z, latents[0]], [x_hat, *estimates[:2]]
    return abs(float(z - deviation(gamma[0])))


METHODS = {
    **{f"UniPC {p}": (p + 1, lambda gamma, p=p: unipc(gamma, p)) for p in (1, 2, 3)},
    **{f"UniPC {p}, bh1": (p + 1, lambda gamma, p=p: unipc(gamma, p, solver="bh1")) for p in (1, 2, 3)},
    **{f"UniP {p}": (p, lambda gamma, p=p: unipc(gamma, p, corrector=False)) for p in (1, 2, 3)},
    **{f"DEIS {p}": (p, lambda gamma, p=p: deis(gamma, p)) for p in (1, 2, 3)},
}


def slopes(make, exact_calls: int) -> list[float]:
    """Orders between 32, 64, 128 and 256 steps, in gamma from 4 to -2."""
    errors = []
    for steps in (32, 64, 128, 256):
        gamma = torch.linspace(-2, 4, steps + 1, dtype=torch.float64)
        errors.append(error(make(gamma), gamma, exact_calls))
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("name", METHODS)
def test_orders_of_convergence(name):
    """From exact latents at the first four calls: halving the step divides the error by 2^order, the corrector's is one
    more than the predictor's.

    Measured at the last halving, for orders 1, 2, 3: UniPC 2.00, 2.96, 4.09; with bh1 2.01, 2.99, 4.09; without its
    corrector 1.00, 2.03, 3.01; DEIS 1.00, 1.99, 3.07.
    """
    order, make = METHODS[name]
    found = slopes(make, 4)
    assert abs(found[-1] - order) < 0.1
    assert all(abs(slope - order) < 0.3 for slope in found)


def test_orders_from_the_first_step():
    """As they are used: the lower order of the last steps, or of DEIS's first one, leaves order 2.

    Measured at the last halving: UniPC 2.00, and 4.11 without lower orders at the end; DEIS 2.23.
    """
    assert slopes(UniPC(), 0)[-1] == pytest.approx(2.0, abs=0.05)
    assert slopes(UniPC(lower_order_final=False), 0)[-1] > 3.0
    assert 2.0 < slopes(DEIS(), 0)[-1] < 2.4


@pytest.mark.parametrize("make", [UniPC(), UniPC(order=2, solver="bh1"), DEIS(), DEIS(order=2)])
def test_a_point_mass_is_left_at_its_noise_level(make):
    """x_hat constant: z_0 = alpha_0 x + sigma_0 eps in any number of steps, for the weights of a step add up."""
    gamma = torch.linspace(-9, 6, 7, dtype=torch.float64)
    x, eps = 0.7, -1.3
    plan = make(gamma)
    z, latents = alpha(gamma[-1]) * x + sigma(gamma[-1]) * eps, [0.0, 0.0]
    for k, row in enumerate(plan.table.tolist()):
        estimates = [x if j < k else 0.0 for j in range(3)]
        third = latents[1] if plan.third_is_latent else estimates[2]
        others = row[C_1] * estimates[0] + row[C_2] * estimates[1] + row[C_3] * third + row[D] * latents[0]
        z, latents = row[A] * z + row[B] * x + others, [z, latents[0]]
    torch.testing.assert_close(z, alpha(gamma[0]) * x + sigma(gamma[0]) * eps, rtol=2e-14, atol=0)


# ------------------------------------------------------------------------------------------------ special cases

UNEVEN = torch.tensor([-9.0, -6.5, -2.0, -1.5, 0.2, 2.0, 5.5], dtype=torch.float64)


def test_low_orders_are_known_samplers():
    """Order 1 without corrector is DDIM; DEIS of order 1 too; UniP of order 2 with bh2 is DPM-Solver++(2M)."""
    for gamma in (UNEVEN, torch.linspace(-400, 400, 9, dtype=torch.float64)):
        torch.testing.assert_close(unipc(gamma, 1, corrector=False).table, ddim(gamma).table, rtol=1e-14, atol=1e-15)
        assert torch.equal(deis(gamma, 1).table, ddim(gamma).table)
        plan = unipc(gamma, 2, corrector=False)
        torch.testing.assert_close(plan.table, dpm_solver(gamma).table, rtol=1e-14, atol=1e-15)
        assert plan.table.isfinite().all()


def test_b_cancels_from_three_estimates_on():
    """A row of order 3 after a step of order 3 is the same with both B(h)."""
    one, other = (unipc(UNEVEN, 3, solver=solver).table for solver in ("bh1", "bh2"))
    torch.testing.assert_close(one[3:], other[3:], rtol=1e-14, atol=1e-15)
    assert not torch.allclose(one[1], other[1], rtol=1e-3)


def test_deis_integrates_the_polynomial_in_log_rho():
    """The weight of eps_hat_k is alpha_s ∫ Π_j log(rho / rho_j) / log(rho_k / rho_j) d rho (Zhang and Chen 2023)."""
    plan, down = deis(UNEVEN), UNEVEN.flip(0)
    u, du = np.polynomial.legendre.leggauss(40)
    for i in range(2, len(down) - 1):
        nodes = np.exp(0.5 * down[i - 2 : i + 1].numpy()[::-1])  # rho of this call and of the two before
        low, high = nodes[0], math.exp(0.5 * float(down[i + 1]))
        log_rho = math.log(low) + (u + 1) / 2 * math.log(high / low)
        d_rho = du / 2 * math.log(high / low) * np.exp(log_rho)
        weights = [
            float(alpha(down[i + 1])) * float((d_rho * np.prod(
                [(log_rho - math.log(other)) / math.log(node / other) for other in nodes if other != node], axis=0
            )).sum())
            for node in nodes
        ]  # fmt: skip
        earlier_sigma = sigma(down[i - 2 : i + 1]).flip(0).tolist()
        row = plan.table[i].tolist()
        ratio = float(alpha(down[i + 1]) / alpha(down[i]))
        latents = [ratio + weights[0] / earlier_sigma[0], weights[1] / earlier_sigma[1], weights[2] / earlier_sigma[2]]
        assert [row[A], row[D], row[C_3]] == pytest.approx(latents, rel=1e-11)
        estimates = [-weight / node for weight, node in zip(weights, nodes, strict=True)]
        assert [row[B], row[C_1], row[C_2]] == pytest.approx(estimates, rel=1e-11)


def test_moments_by_quadrature():
    """j! phi_{j+1}(x) = ∫ e^{x (1 - u)} u^j du, also where the recursion would cancel."""
    x = torch.tensor([-30.0, -5.0, -1.0, -0.999, -0.1, -1e-3, -1e-6, -1e-12, 1e-9, 0.3, 1.5, 20.0], dtype=torch.float64)
    u, du = np.polynomial.legendre.leggauss(60)
    u, du = (u + 1) / 2, du / 2
    expected = [[float((du * np.exp(value * (1 - u)) * u**j).sum()) for j in range(4)] for value in x.tolist()]
    torch.testing.assert_close(
        _moments(x, 4), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0
    )  # measured: 8e-14


@pytest.mark.parametrize("sampler", [UniPC(), DEIS()])
def test_orders_of_the_steps(sampler):
    """The number of estimates that a row reads: orders 1, 2, 3, ..., 3, 2, 1, or up to 2 before a DDPM's last row."""
    gamma = torch.linspace(-8, 5, 8, dtype=torch.float64)
    last = C_2 if sampler == DEIS() else C_3  # UniPC's corrector reads one more
    for to_x, of_last in ((False, 1), (True, 2)):
        plan = plan_at(gamma, sampler, to_x)
        free = plan_at(gamma, type(sampler)(lower_order_final=False), to_x)
        assert torch.equal(plan.table[:6], free.table[:6]) is to_x
        assert torch.equal(plan.table[:5], free.table[:5])
        if sampler == DEIS():
            assert (plan.table[6, [C_1, C_2]] != 0).tolist() == [of_last > 1, of_last > 2]
            assert (free.table[2:7, last] != 0).all()
    assert plan_at(torch.linspace(-8, 5, 2, dtype=torch.float64), sampler).table.shape == (1, 10)


def test_few_betas():
    """The noise levels of evenly spaced betas, with the orders of a chain that ends with a decoder."""
    betas = torch.linspace(1e-6, 0.8, 6, dtype=torch.float64)
    kept = torch.cumprod(1.0 - betas, 0)
    gamma = torch.log((1.0 - kept) / kept)
    plan = make_plan(UniPC(betas=(1e-6, 0.8)), LinearSchedule(-8.0, 5.0), 6, network_decoder=True)
    torch.testing.assert_close(plan.table[:-1], unipc(gamma, final_order=2).table, rtol=1e-9, atol=1e-12)
    assert plan.table[-1, A:].tolist() == [0, 1, 0, 1, 0, 0, 0, 0]
