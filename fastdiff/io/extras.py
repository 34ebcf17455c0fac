"""The error of a package of an extra that is not installed."""

from fastdiff_kernels.errors import FastdiffError


class MissingPackageError(FastdiffError, ImportError):
    """A package of an extra that is not installed."""
