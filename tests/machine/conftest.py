"""These tests need a process of their own, with the plugin that makes the machine active."""

import pytest


def pytest_collection(session: pytest.Session) -> None:
    if not session.config.pluginmanager.has_plugin("machine.plugin"):
        raise pytest.UsageError("run the machine's tests by `make machine` or `python tests/machine/run.py`")
