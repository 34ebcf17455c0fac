"""All faults, in the order of the table: the modules that declare them are imported here."""

# isort: off
from . import kills, flips, mutations, pickles, data_files, wrong_calls, full_disks, places, writers  # noqa: F401
from . import signals, ranks, divergence, resume, sampling, shell, tested  # noqa: F401

# isort: on
from .fault import FAULTS

__all__ = ["FAULTS"]
