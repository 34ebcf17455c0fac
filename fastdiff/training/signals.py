"""Signals during training: after the step in hand, or at once where the work in hand can be abandoned.

SIGINT and SIGTERM stop a training, and SIGHUP where it is not ignored, as it is under nohup. The first signal is noted;
the loop looks at `Stop.number` after every step. What need not be finished, such as an evaluation, runs within
`Stop.abandonable`, which the signal ends with `Abandoned`. Signals within two seconds of the first count as the same
one, since torchrun sends its processes what the terminal has sent them already; a later one acts at once.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SAME = 2.0  # seconds after the first signal in which others count as the same
WORKER_GRACE = 30  # seconds that a worker has after SIGTERM


class Abandoned(BaseException):
    """Work within `Stop.abandonable` was ended by a signal. No error: ``except Exception`` lets it through."""


class Stop:
    """Whether a training is to stop.

    number: the signal that stops it, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._can_abandon = False
        self._former: dict[int, signal._HANDLER] = {}

    def set(self, number: int) -> None:
        """Stop as if by a signal, such as one that another process of the run has met. The first one counts."""
        if self.number is None:
            self.number, self._since = number, time.monotonic()

    def abandonable(self) -> "_Abandonable":
        """Return a context for work that a signal ends at once, by `Abandoned`; one that has come already does too.

        Catch `Abandoned` around the context, not in it.
        """
        return _Abandonable(self)

    def _collect(self) -> None:
        """Handle the signals from now on.

        Raises:
            ValueError: this is not the main thread, which alone may set handlers.
        """
        handled = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            handled.append(hangup)
        for number in handled:
            former = signal.signal(number, self._handle)
            self._former[number] = signal.SIG_DFL if former is None else former

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.set(number)
            if self._can_abandon:
                self._can_abandon = False
                raise Abandoned
        elif time.monotonic() - self._since >= SAME:
            self._restore()
            signal.raise_signal(number)


class _Abandonable:
    """The context of `Stop.abandonable`: a class, since a generator could not leave it at any moment of a signal."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.outer = False

    def __enter__(self) -> None:
        self.outer = self.stop._can_abandon
        self.stop._can_abandon = True
        if self.stop.number is not None:
            self.stop._can_abandon = False
            raise Abandoned

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop._can_abandon = self.outer and self.stop.number is None


@contextmanager
def signals() -> Iterator[Stop]:
    """Collect the signals that stop a training; restore the former handlers at the end.

    In a thread other than the main one no handler can be set: the signals act as they did before.
    """
    stop = Stop()
    try:
        stop._collect()
    except ValueError:
        yield stop
        return
    try:
        yield stop
    finally:
        stop._restore()


def ignore_in_worker(worker_id: int) -> None:
    """Leave the signals to the trainer, in a worker of a DataLoader (its ``worker_init_fn``).

    Ctrl-C in a terminal and a closing terminal reach all its processes, and a job scheduler's SIGTERM does too. A
    worker outlives them, after SIGTERM by 30 seconds, so that the trainer can finish its step; it ends the worker then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:
    signal.alarm(WORKER_GRACE)
