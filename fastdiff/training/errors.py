"""The errors of training."""

from ..kernels import FastdiffError


class RunError(FastdiffError, RuntimeError):
    """The folder of a run that cannot be started or resumed, or that another training uses."""


class TrainingError(FastdiffError, RuntimeError):
    """Training that has diverged."""
