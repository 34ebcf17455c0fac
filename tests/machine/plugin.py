"""The pytest plugin of the machine's process: the tests of the kernels run on the machine.

`run.py` loads it, and names the files of tests/kernels that cannot run here. Kernels are compiled for sm_90 and run on
the machine, and ``use_backend("interpreter")`` means the machine. Of the kernels' tests, those that are parametrised to
run on the reference are left to the main suite.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fastdiff_kernels import use_backend
from hypothesis import settings as hypothesis_settings
from machine.backend import on_machine

torch.set_num_threads(1)
hypothesis_settings.register_profile("fastdiff", deadline=None, derandomize=True, print_blob=True)
hypothesis_settings.load_profile("fastdiff")

LONG = ("test_cases", "test_executed_cost", "test_gpu_run")  # of which the default suite runs what is marked as brief


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "brief: part of the subset that the default suite runs")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--brief", action="store_true", help="run only the subset that the default suite runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped, kept = [], []
    for item in items:
        brief = item.path.parent.name == "machine" and (item.path.stem not in LONG or item.get_closest_marker("brief"))
        other = item.path.parent.name == "kernels" and runs_elsewhere(item)
        (dropped if other or (config.getoption("--brief") and not brief) else kept).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def runs_elsewhere(item: pytest.Item) -> bool:
    """Whether a test of the kernels is parametrised to run on the reference, which the main suite does."""
    values = getattr(getattr(item, "callspec", None), "params", {})
    return any(values.get(name) == "torch" for name in ("backend", "path", "mode"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _on_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The machine is active; operations that ask for no backend run on the reference, as in the main suite."""
    with on_machine(), use_backend("torch"):
        yield
