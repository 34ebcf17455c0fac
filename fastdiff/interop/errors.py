"""The error of a library that is not installed."""

from ..kernels import FastdiffError


class MissingLibraryError(FastdiffError, ImportError):
    """A library of the extra ``interop`` that is not installed."""
