"""Work in numbered parts, divided among the processes of a run; the results come in order in every process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from torch import Tensor

from .processes import agree, count, in_order, rank

# those that a training or a command handles; Windows has no SIGHUP
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))


def divide_work(n: int, work: Callable[[int], Tensor], sharded: bool) -> Iterator[Tensor]:
    """Yield ``work(0)`` .. ``work(n - 1)`` in order, the same in every process.

    With ``sharded``, part k is done by process k % `count` alone and sent to the others; all processes must call this
    with the same n. They meet after every `count` parts, so an error in one of them, or its death, ends all of them
    then. An exception that a signal handler raises is handled as an error of the part during which it arrives: it is
    held back while the processes exchange results, which must not be left half done.

    Raises:
        PeerError: another process raised an error.
        ProcessError: another process has ended.
    """
    if not sharded or count() == 1:
        yield from map(work, range(n))
        return
    with deferred_signals() as delivered:
        for first in range(0, n, count()):
            own, part, error = first + rank(), {}, None
            try:
                with delivered():
                    if own < n:
                        part[own] = work(own).cpu()
            except BaseException as raised:
                error = raised
            agree(error)
            yield from in_order(part)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold back Python's handlers of SIGINT and SIGTERM; call them inside ``delivered()`` and at the end.

    Signals without a handler in Python act as they do. Outside the main thread, which handles signals, nothing is held.
    """
    main = threading.current_thread() is threading.main_thread()
    former: dict[int, Callable] = {}
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    def hold() -> None:
        for number in SIGNALS if main else ():
            handler = signal.getsignal(number)
            if callable(handler) and handler is not note:
                former[number] = handler
                signal.signal(number, note)

    def release() -> None:
        for number, handler in former.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)
        former.clear()
        while caught:
            signal.raise_signal(caught.pop(0))

    @contextmanager
    def delivered() -> Iterator[None]:
        try:
            release()
            yield
        finally:
            hold()

    hold()
    try:
        yield delivered
    finally:
        release()
