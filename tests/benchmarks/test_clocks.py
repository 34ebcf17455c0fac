"""What can be said of the clocks without a GPU."""

import torch

from benchmarks.clocks import FLUSH_ROWS, flush_of
from benchmarks.dispatch_counts import counted


def test_a_flush_reads_its_buffer_and_writes_next_to_nothing():
    """Lines that are written would have to go to memory while the next call is timed."""
    size = 1 << 22
    ((name, count),) = counted(flush_of(size, torch.device("cpu"))).items()
    assert name == "sum.IntList_out"
    assert (count.calls, count.launches) == (1, 1)
    assert count.bytes == size + 2 * 4 * FLUSH_ROWS  # out is an argument and the result
