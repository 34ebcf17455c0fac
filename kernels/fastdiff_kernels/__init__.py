"""The fused operations of fastdiff: Triton kernels with plain-PyTorch references. Imports torch and triton only."""

from .decoder_nll import centre, decoder_nll
from .diffuse import diffuse
from .eps_loss import eps_loss
from .fourier import fourier_features
from .gaussian import gaussian_log_ratio, reparameterize
from .group_norm import group_norm_silu
from .launch import BackendError, backend, use_backend
from .noise import Noise, Stream
from .sampler_step import sampler_step

__all__ = [
    "BackendError", "Noise", "Stream", "backend",
    "centre", "decoder_nll", "diffuse", "eps_loss", "fourier_features", "gaussian_log_ratio", "group_norm_silu",
    "reparameterize", "sampler_step", "use_backend",
]  # fmt: skip
