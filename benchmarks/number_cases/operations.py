"""Cases on the fused operations by themselves: values and gradients, in three dtypes."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from number_cases.families import Case
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE = (3, 4, 5, 6)
STEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped, with history": {"clip": 0.8, "history": True},
    "clipped, guided, with noise": {"clip": 0.8, "guidance": 1.5, "noisy": True},
}


def cases() -> Iterator[Case]:
    """All cases of this file."""
    for dtype in DTYPES:
        for name, operation in OPERATIONS.items():
            yield Case(f"{name}, {dtype}", lambda api, run=operation, dtype=dtype: run(api, dtype))
        for text, options in STEPS.items():
            yield Case(
                f"sampler_step, {dtype}: {text}", lambda api, options=options, dtype=dtype: step(api, dtype, **options)
            )
    yield Case("to_unit_range", lambda api: [api.to_unit_range(torch.arange(17).to(torch.uint8), 17)])


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Random numbers that take gradients."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def with_gradients(operation: Callable[..., Any], *leaves: Tensor) -> Any:
    """The results of an operation, and the gradients of a weighted sum of them."""
    results = operation(*leaves)
    results = [result for result in (results if isinstance(results, tuple) else (results,)) if result is not None]
    sums = [(r.double() * values(tuple(r.shape), torch.float64, 9).detach()).sum() for r in results]
    torch.stack(sums).sum().backward()
    return [results, [leaf.grad for leaf in leaves]]


def step(
    api: Any, dtype: torch.dtype, clip: float | None = None, history: bool = False, guidance: float | None = None,
    noisy: bool = False,
) -> Any:  # fmt: skip
    """One step of a sampler with the coefficients (1/alpha, sigma/alpha, A, B, S, C_1)."""
    z_t, eps_hat, x_prev, uncond = (values(SHAPE, dtype, seed) for seed in range(4))
    leaves = [z_t, eps_hat, *([x_prev] if history else []), *([uncond] if guidance else [])]
    noise = api.Noise(11, 2, 3) if noisy else None
    row = (1.25, 0.75, 0.6, 0.3, 0.4 if noisy else 0.0, -0.2 if history else 0.0)

    def operation(*tensors: Tensor) -> Any:
        others = list(tensors[2:])
        previous = others.pop(0) if history else None
        return api.step(*tensors[:2], row, noise, clip, previous, others.pop(0) if guidance else None, guidance)

    return with_gradients(operation, *leaves)


def draws(api: Any, dtype: torch.dtype) -> Any:
    """Normals and uniforms of several streams and samples."""
    noises = [api.Noise(3), api.Noise(2**63 + 5, 7, first_sample=9, stream=3), api.Noise(3).at(step=2)]
    return [[noise.normal((3, 2, 5), dtype=dtype), noise.uniform((2, 7), dtype=dtype)] for noise in noises]


def diffuse(api: Any, dtype: torch.dtype) -> Any:
    """Alpha x + sigma eps, with drawn noise."""
    gamma = values((3,), torch.float32, 1)
    return with_gradients(lambda x, g: api.kernels.diffuse(x, g, api.Noise(5)), values(SHAPE, dtype, 0), gamma)


def eps_loss(api: Any, dtype: torch.dtype) -> Any:
    """Weight · Σ (eps - eps_hat)², with drawn noise."""
    weight = values((3,), torch.float32, 1)
    return with_gradients(lambda e, w: api.kernels.eps_loss(e, api.Noise(5), w), values(SHAPE, dtype, 0), weight)


def fourier_features(api: Any, dtype: torch.dtype) -> Any:
    """Two frequencies."""
    return with_gradients(lambda z: api.kernels.fourier_features(z, 3, 4), values(SHAPE, dtype, 0))


def reparameterize(api: Any, dtype: torch.dtype) -> Any:
    """A latent and its KL, with drawn noise."""
    leaves = values((3, 7), dtype, 0), values((3, 7), dtype, 1)
    return with_gradients(lambda mean, logvar: api.kernels.reparameterize(mean, logvar, api.Noise(5)), *leaves)


def gaussian_log_ratio(api: Any, dtype: torch.dtype) -> Any:
    """Log q - log p."""
    return with_gradients(api.kernels.gaussian_log_ratio, *(values((3, 7), dtype, seed) for seed in range(5)))


def decoder_nll(api: Any, dtype: torch.dtype) -> Any:
    """Log-variances per image and per pixel."""
    x = torch.arange(math.prod(SHAPE)).remainder(17).reshape(SHAPE).to(torch.uint8)
    results = []
    for shape, kind in (((3,), torch.float32), (SHAPE, dtype)):
        leaves = values(SHAPE, dtype, 0), values(shape, kind, 1)
        results.append(with_gradients(lambda mean, logvar: api.kernels.decoder_nll(x, mean, logvar, 17), *leaves))
    return results


def group_norm_silu(api: Any, dtype: torch.dtype) -> Any:
    """With and without modulation."""
    results = []
    for modulated in (False, True):
        leaves = [values(SHAPE, dtype, 0), values((4,), torch.float32, 1), values((4,), torch.float32, 2)]
        leaves += [values((3, 4), torch.float32, seed) for seed in (3, 4)] if modulated else []
        results.append(with_gradients(lambda x, *others: api.kernels.group_norm_silu(x, 2, *others, eps=1e-5), *leaves))
    return results


OPERATIONS: dict[str, Callable[[Any, torch.dtype], Any]] = {
    "noise": draws,
    "diffuse": diffuse,
    "eps_loss": eps_loss,
    "fourier_features": fourier_features,
    "reparameterize": reparameterize,
    "gaussian_log_ratio": gaussian_log_ratio,
    "decoder_nll": decoder_nll,
    "group_norm_silu": group_norm_silu,
}
