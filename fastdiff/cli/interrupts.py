"""What a signal does to a command: one line on stderr, and the exit code 128 + the signal.

This is imported before anything slow, and imports nothing slow.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

TEXTS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: the exit code is 128 + the signal."""


def message(number: int) -> str:
    """Return what the command says when a signal ends it."""
    return f"fastdiff: {TEXTS.get(number, 'hung up')}"


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal by ending the process, without an exception and without cleaning up."""
    try:
        os.write(2, f"{message(number)}\n".encode())
    finally:
        os._exit(128 + number)


def end_in_order(number: int, frame: FrameType | None) -> None:
    """Handle a signal by an exception, so that what is half written is removed; in an import end at once."""
    place = frame
    while place is not None:
        if place.f_code.co_filename.startswith("<frozen importlib"):
            end_at_once(number, frame)
        place = place.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)


def handle(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set the handler of the signals."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        ignored = number is not signal.SIGINT and number is not None and signal.getsignal(number) is signal.SIG_IGN
        if number is not None and not ignored:
            signal.signal(number, handler)
