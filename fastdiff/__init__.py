"""fastdiff: variational diffusion, DDPM and VAEs as one family, with fused Triton kernels.

    import fastdiff
    images = fastdiff.sample("digits", 64)        # uint8 [64, 1, 8, 8]

Kernels: `fastdiff.kernels`. Models: `fastdiff.models`. Command line: ``fastdiff --help``.
"""

from .checkpoint import load
from .kernels import Noise, backend
from .sample import sample  # eagerly, so that fastdiff.sample is this function and not the module of the same name

__version__ = "0.1.0"
__all__ = ["Noise", "__version__", "backend", "load", "sample"]
