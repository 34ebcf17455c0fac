"""The error that reading data raises."""

from fastdiff_kernels.errors import FastdiffError


class DataError(FastdiffError, ValueError):
    """A data set that is missing or damaged, or that has the wrong format, shape, dtype or range of values."""


class UnfitImageError(DataError):
    """A readable image of another size or mode than the data set's."""
