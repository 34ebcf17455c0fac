"""The operations as a user would write them in plain PyTorch, for comparison with fastdiff.

Each is the shortest good eager form: losses through ``mse_loss``, the discretised likelihood through
``cross_entropy``, coefficients of the sampler as Python numbers, one ``randn_like`` per draw.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def noised(x: Tensor, gamma: Tensor, eps: Tensor | None = None) -> Tensor:
    """z_t = alpha x + sigma eps, with gamma [B]."""
    eps = torch.randn_like(x) if eps is None else eps
    gamma = gamma.view(-1, *(1,) * (x.dim() - 1))
    alpha, sigma = torch.sigmoid(-gamma).sqrt().to(x.dtype), torch.sigmoid(gamma).sqrt().to(x.dtype)
    return alpha * x + sigma * eps


def noise_loss(eps_hat: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
    """weight · Σ (eps - eps_hat)² per sample, in nats [B]."""
    return weight * F.mse_loss(eps_hat, eps, reduction="none").flatten(1).sum(1, dtype=torch.float32)


def fourier(z: Tensor, frequencies: Tensor) -> Tensor:
    """[z, sin f z, cos f z] on the channels, for frequencies f = 2ⁿπ in float32 [F, 1, 1]."""
    angle = (z.float().unsqueeze(2) * frequencies).flatten(1, 2)
    return torch.cat([z, angle.sin().to(z.dtype), angle.cos().to(z.dtype)], dim=1)


def ancestral_step(
    z_t: Tensor,
    eps_hat: Tensor,
    mean: float | Tensor,
    remove: float | Tensor,
    std: float | Tensor,
    eps: Tensor | None = None,
) -> Tensor:
    """z_s = mean (z_t - remove eps_hat) + std eps."""
    eps = torch.randn_like(z_t) if eps is None else eps
    return mean * (z_t - remove * eps_hat) + std * eps


def multistep(
    z_t: Tensor, eps_hat: Tensor, inverse_alpha: float, ratio: float, a: float, b: float, c: float, x_prev: Tensor
) -> tuple[Tensor, Tensor]:
    """z_s = a z_t + b x_hat + c x_prev with x_hat = z_t / alpha_t - (sigma_t / alpha_t) eps_hat; returns both."""
    x_hat = inverse_alpha * z_t - ratio * eps_hat
    return a * z_t + b * x_hat + c * x_prev, x_hat


def latent(mean: Tensor, logvar: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """z = mean + std eps, and the KL to N(0, I) per sample, in nats [B]."""
    eps = torch.randn_like(mean) if eps is None else eps
    kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1.0)
    return mean + (0.5 * logvar).exp() * eps, kl.flatten(1).sum(1, dtype=torch.float32)


def log_ratio(z: Tensor, mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """log q(z) - log p(z) of two diagonal Gaussians per sample, in nats [B]."""
    q = (z - mean_q).square() * torch.exp(-logvar_q) + logvar_q
    p = (z - mean_p).square() * torch.exp(-logvar_p) + logvar_p
    return 0.5 * (p - q).flatten(1).sum(1, dtype=torch.float32)


def diffusers_step(z_t: Tensor, eps_hat: Tensor, steps: int, k: int) -> dict[str, Callable[[], object]]:
    """Step k of ``steps`` of diffusers' DDPM scheduler as ``{"diffusers": call}``, or {} if it is not installed.

    Its betas differ from our gamma, so only the time per element is compared, not the numbers.
    """
    try:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ImportError:
        return {}
    scheduler = DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    scheduler.set_timesteps(steps, device=z_t.device)
    t = scheduler.timesteps.tolist()[k]
    return {"diffusers": lambda: scheduler.step(eps_hat, t, z_t, return_dict=False)[0]}


def norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """silu(group_norm(x) (1 + scale) + shift), with scale and shift [B, C] or none."""
    x = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype))
    if scale is not None and shift is not None:
        x = torch.addcmul(shift[:, :, None, None], x, 1.0 + scale[:, :, None, None])
    return F.silu(x)


def fused_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, pre_shift: Tensor | None, residual: Tensor | None,
    skip: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """The addition and the concatenation before the norm, each as an operation of its own: y, or y and their result."""
    if pre_shift is not None:
        x = x + pre_shift[:, :, None, None]
    if residual is not None:
        x = x + residual
    total = x if skip is None else torch.cat([x, skip], dim=1)
    y = norm_silu(total, groups, weight, bias)
    return y if residual is None and skip is None else (y, total)


def level_nll(x: Tensor, mean: Tensor, logvar: Tensor, levels: int) -> Tensor:
    """-log softmax over the levels of a Gaussian at the bin centres, in nats [B]. Builds [B, ..., levels] tensors."""
    centres = (2.0 * torch.arange(levels, device=x.device) + 1.0) / levels - 1.0
    precision = torch.exp(-logvar).view(-1, *(1,) * mean.dim())
    logits = -0.5 * precision * (mean.float().unsqueeze(-1) - centres).square()
    nats = F.cross_entropy(logits.flatten(0, -2), x.flatten().long(), reduction="none")
    return nats.view(len(x), -1).sum(1)


def bound(model: torch.nn.Module, x: Tensor, draws: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """The VDM's bound in nats [B], T = infinity. ``draws``: (t, eps, eps_0), by default from torch's generator."""
    centred = (2.0 * x.float() + 1.0) / model.levels - 1.0
    if draws is None:
        t = (torch.rand((), device=x.device) + torch.arange(len(x), device=x.device) / len(x)) % 1.0
        draws = t, torch.randn_like(centred), torch.randn_like(centred)
    t, eps, eps_0 = draws
    gamma_0, gamma_1 = model.gamma.endpoints()

    gamma_t = model.gamma(t)
    eps_hat = model.eps_hat(noised(centred, gamma_t, eps), gamma_t)
    diffusion = noise_loss(eps_hat, eps, 0.5 * model.gamma.slope(t))

    at_zero = gamma_0.expand(len(x))
    z_0 = noised(centred, at_zero, eps_0)
    recon = level_nll(x, z_0 / torch.sigmoid(-gamma_0).sqrt(), at_zero, model.levels)

    variance = torch.sigmoid(gamma_1)
    prior = 0.5 * ((1.0 - variance) * centred.square() + variance - variance.log() - 1.0).flatten(1).sum(1)
    return diffusion + recon + prior


@torch.no_grad()
def ancestral_loop(model: torch.nn.Module, steps: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Sample levels, uint8 [B, C, H, W]; ``draw(k)`` gives the noise of step k, and of the first latent for k = -1."""
    z = draw(-1)
    gamma = model.gamma(torch.linspace(1.0, 0.0, steps + 1, device=z.device))
    alpha, sigma = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
    c = -torch.expm1(gamma[1:] - gamma[:-1])
    mean, remove, std = alpha[1:] / alpha[:-1], c * sigma[:-1], c.sqrt() * sigma[1:]
    for k in range(steps):
        eps_hat = model.eps_hat(z, gamma[k].expand(len(z)))
        z = ancestral_step(z, eps_hat, mean[k], remove[k], std[k], draw(k))
    return model.most_likely(z).cpu()
