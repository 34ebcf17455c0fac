"""DDIM that steps with the network's eps_hat where x_hat is clipped."""

import pytest
import torch
from tiny import small, small_ddpm

from fastdiff import sample
from fastdiff.diffusion import DDIM
from fastdiff.diffusion.process import alpha, sigma
from fastdiff.kernels import Noise, Stream


@pytest.mark.parametrize("build", [small, small_ddpm], ids=["vdm", "ddpm"])
def test_without_clipping_it_is_ddim(build):
    """The rows are the same."""
    model = build()
    for eta in (0.0, 0.7):
        one, other = (path(model, DDIM(eta=eta, keep_eps_hat=keep), steps=6) for keep in (False, True))
        assert all(torch.equal(z, expected) for (z, _), (expected, _) in zip(other, one, strict=True))


def path(model, sampler, **request) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seen = []
    sample(model, 3, sampler=sampler, seed=4, callback=lambda step, nfe, z, x: seen.append((z, x)), **request)
    return seen


@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_step_is_the_equation_of_the_paper(eta, guidance):
    """z_s = alpha_s clip(x_hat) + sqrt(sigma_s² - d²) eps_hat + d eps (Song et al. 2021, eq. 12), in float64.

    Measured at most 2.0e-6.
    """
    model = small(num_classes=3)
    labels = torch.tensor([0, 2, 1])
    seen = path(
        model, DDIM(clip_denoised=True, keep_eps_hat=True, eta=eta), steps=5, labels=labels.tolist(), guidance=guidance
    )
    gamma = model.gamma(torch.linspace(1, 0, 6, dtype=torch.float64)).detach()
    z, clipped = Noise(4, stream=Stream.INITIAL).normal((3, 1, 8, 8)), 0
    for k, (g_t, g_s, (z_s, _)) in enumerate(zip(gamma[:-1], gamma[1:], seen, strict=True)):
        with torch.no_grad():
            eps_hat, free = (model.eps_hat(z, g_t.float().expand(3), y).double() for y in (labels, None))
        eps_hat = eps_hat if guidance is None else free + guidance * (eps_hat - free)
        x_hat = (z.double() - sigma(g_t) * eps_hat) / alpha(g_t)
        clipped += int((x_hat.abs() > 1).sum())
        d = eta * sigma(g_s) / sigma(g_t) * (1 - (alpha(g_t) / alpha(g_s)) ** 2).sqrt()
        eps = Noise(4, step=k, stream=Stream.SAMPLER).normal((3, 1, 8, 8))
        expected = alpha(g_s) * x_hat.clamp(-1, 1) + (sigma(g_s) ** 2 - d**2).sqrt() * eps_hat + d * eps
        assert (z_s - expected).abs().max() < 5e-6
        z = z_s
    assert clipped > 100
