"""Signals during training: noted once, acted on at once where asked, and given back to whoever had them."""

import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastdiff.training import signals as module
from fastdiff.training.signals import Abandoned, ignore_in_worker, signals

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def acted():
    """The signals that reach the handlers from before; those are in place again after every test."""
    seen: list[int] = []

    def note(number, frame):
        seen.append(number)

    former = {number: signal.signal(number, note) for number in ALL}
    yield seen
    assert all(signal.getsignal(number) is note for number in ALL)
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_noted(number, acted):
    with signals() as stop:
        assert stop.number is None
        signal.raise_signal(number)
        assert stop.number == number
    assert acted == []


def test_signals_at_once_are_one_and_a_later_one_acts(acted, monkeypatch):
    with signals() as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.number == signal.SIGINT
        assert acted == []
        now = time.monotonic()
        monkeypatch.setattr(module.time, "monotonic", lambda: now + module.SAME)
        signal.raise_signal(signal.SIGTERM)
        assert acted == [signal.SIGTERM]
        signal.raise_signal(signal.SIGINT)  # the former handlers are back
        assert acted == [signal.SIGTERM, signal.SIGINT]


def test_work_is_abandoned_in_the_middle():
    done = []
    with signals() as stop:
        with stop.abandonable():
            done.append("before")
        try:
            with stop.abandonable():
                signal.raise_signal(signal.SIGTERM)
                done.append("after")
        except Abandoned:
            done.append("abandoned")
    assert done == ["before", "abandoned"]


def test_work_is_not_begun_after_a_signal():
    with signals() as stop:
        stop.set(signal.SIGINT)
        with pytest.raises(Abandoned), stop.abandonable():
            pytest.fail("it has begun")
        signal.raise_signal(signal.SIGINT)  # outside of such work a signal raises nothing
        assert stop.number == signal.SIGINT


def test_no_except_exception_swallows_it():
    assert not issubclass(Abandoned, Exception)


def test_work_after_inner_work_can_be_abandoned():
    done = []

    def work(stop):
        with stop.abandonable():
            with stop.abandonable():
                done.append("inner")
            signal.raise_signal(signal.SIGINT)
            done.append("outer")

    with signals() as stop, pytest.raises(Abandoned):
        work(stop)
    assert done == ["inner"]


def test_a_hangup_that_is_ignored_stays_ignored(acted):
    note = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.number is None
    assert signal.signal(signal.SIGHUP, note) is signal.SIG_IGN


def test_another_thread_leaves_the_signals_alone():
    found = []

    def work():
        before = [signal.getsignal(number) for number in ALL]
        with signals() as stop, stop.abandonable():
            found.append((stop.number, [signal.getsignal(number) for number in ALL] == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, True)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_worker_outlives_the_signals(acted):
    """Sent to the worker itself, as a terminal or a scheduler sends them to every process of the job."""
    data = TensorDataset(torch.arange(6))
    with signals() as stop:
        loader = iter(DataLoader(data, num_workers=1, prefetch_factor=1, worker_init_fn=ignore_in_worker))
        found = [next(loader)[0]]  # the worker has started
        (worker,) = loader._workers  # type: ignore[attr-defined]
        for number in ALL:
            os.kill(worker.pid, number)
        found += [batch for (batch,) in loader]
        assert torch.cat(found).tolist() == list(range(6))
        worker.join(10)
        assert worker.exitcode == 0
        assert stop.number is None
