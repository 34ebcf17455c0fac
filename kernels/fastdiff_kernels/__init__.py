"""The fused operations of fastdiff: Triton kernels with plain-PyTorch references.

Importing the package imports nothing else. The first use of a name imports torch (PEP 562), and the first launch of a
kernel imports triton.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import backend, use_backend
    from .decoder_nll import decoder_nll, to_unit_range
    from .diffuse import diffuse
    from .dropout import dropout
    from .eps_loss import eps_loss
    from .errors import BackendError, FastdiffError, InvalidTypeError, InvalidValueError, UnsupportedTransformError
    from .fourier import fourier_features
    from .gaussian_log_ratio import gaussian_log_ratio
    from .group_norm import group_norm_silu
    from .noise import Noise, Stream
    from .noise_sum import noise_sum
    from .reparameterize import reparameterize
    from .sampler_step import sampler_step

__all__ = [
    "BackendError", "FastdiffError", "InvalidTypeError", "InvalidValueError", "Noise", "Stream",
    "UnsupportedTransformError", "backend", "decoder_nll", "diffuse", "dropout", "eps_loss",
    "fourier_features", "gaussian_log_ratio", "group_norm_silu", "noise_sum", "reparameterize", "sampler_step",
    "to_unit_range", "use_backend",
]  # fmt: skip

_MODULES = {
    "BackendError": "errors", "FastdiffError": "errors", "InvalidTypeError": "errors", "InvalidValueError": "errors",
    "UnsupportedTransformError": "errors", "Noise": "noise", "Stream": "noise", "to_unit_range": "decoder_nll",
    "use_backend": "backend", "fourier_features": "fourier", "group_norm_silu": "group_norm",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name at its first use; most operations are in the module of their name."""
    if name not in __all__:
        raise AttributeError(f"module 'fastdiff_kernels' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, name)}"), name)


class _Package(ModuleType):
    """A package in which ``diffuse`` is the operation although importing the module ``diffuse`` binds the name too."""

    def __setattr__(self, name: str, value: object) -> None:
        is_module = isinstance(value, ModuleType) and name in __all__
        super().__setattr__(name, getattr(value, name) if is_module else value)


sys.modules[__name__].__class__ = _Package
