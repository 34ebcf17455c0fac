"""The errors that users cause. All derive from `FastdiffError`; anything else that is raised is a defect of fastdiff.

A message is a sentence: the argument, what it must be, what was given.
"""


class FastdiffError(Exception):
    """Base class of every error that a user's input causes. The command line prints it without a traceback."""


class InvalidValueError(FastdiffError, ValueError):
    """An argument of the right type whose value is not allowed."""


class InvalidTypeError(FastdiffError, TypeError):
    """An argument of a type that is not allowed."""


class BackendError(FastdiffError, RuntimeError):
    """A backend that does not exist, or that this process cannot run."""


class UnsupportedTransformError(FastdiffError, NotImplementedError):
    """A derivative or a function transform that an operation does not support."""
