"""The command that measures reading: the folder that it makes, and memory that processes share counts once."""

import sys

import pytest
import torch

from benchmarks.data_loading import make_folder, measure
from fastdiff.data import load_dataset

FORKS = """
import json, os, time
shared = bytearray(os.urandom(1 << 20)) * 96
child = os.fork()
time.sleep(1.2)
if child:
    os.waitpid(child, 0)
    print(json.dumps({"held": len(shared)}))
"""


def test_the_folder(tmp_path):
    make_folder(tmp_path, 60)
    data = load_dataset(str(tmp_path))
    assert (data.shape, len(data.train_images), len(data.test_images)) == ((3, 64, 64), 57, 3)
    assert len(data.train_images[torch.arange(57)].unique(dim=0)) == 57


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is Linux's")
def test_shared_memory_counts_once():
    found = measure([sys.executable, "-c", FORKS])
    assert (found["held"], found["processes"]) == (96 << 20, 2)
    assert 96 < found["peak_pss_mib"] < 96 + 48  # an interpreter each
    with pytest.raises(SystemExit, match="exit code 3"):
        measure([sys.executable, "-c", "raise SystemExit(3)"])
