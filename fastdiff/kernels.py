"""The fused operations under the name that users import: ``from fastdiff.kernels import diffuse``."""

from fastdiff_kernels import *  # noqa: F403
from fastdiff_kernels import __all__  # noqa: F401
