"""The kernels run in Triton's interpreter here; the operations run on the reference unless a test asks otherwise.

Every process has one thread, so that the two processes of `make test` share two cores without disturbing each other.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])  # for the processes that tests start
os.environ["TRITON_INTERPRET"] = "1"  # before the first import of a kernel: decoration looks at it
os.environ["FASTDIFF_BACKEND"] = "torch"
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

collect_ignore = ["machine"]  # compiles kernels, in a process of its own: tests/machine/run.py

torch.set_num_threads(1)
settings.register_profile("fastdiff", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("fastdiff")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
