"""fastdiff: variational diffusion, DDPM and VAEs as one family, with fused Triton kernels.

    import fastdiff
    images = fastdiff.sample("digits", 64)        # uint8 [64, 1, 8, 8]

Kernels: `fastdiff.kernels`. Models: `fastdiff.models`. Samplers: `fastdiff.diffusion`. Other libraries:
`fastdiff.interop`. Command line: ``fastdiff --help``. Importing fastdiff imports neither torch nor triton; the first
use does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .sample import sample  # eagerly, so that fastdiff.sample is this function and not the module of the same name

if TYPE_CHECKING:
    from . import interop
    from .checkpoints import load
    from .kernels import FastdiffError, Noise, backend
    from .models import Guidance, Latents
    from .sampling import Engine

__version__ = "0.2.0"  # pyproject.toml takes it from here
__all__ = [
    "Engine", "FastdiffError", "Guidance", "Latents", "Noise", "__version__", "backend", "interop", "load", "sample",
]  # fmt: skip

_HOMES = {
    "Engine": "fastdiff.sampling",
    "FastdiffError": "fastdiff.kernels",
    "Guidance": "fastdiff.models",
    "Latents": "fastdiff.models",
    "Noise": "fastdiff.kernels",
    "backend": "fastdiff.kernels",
    "interop": "fastdiff.interop",
    "load": "fastdiff.checkpoints",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")
    module = import_module(_HOMES[name])
    value = globals()[name] = module if name == "interop" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
