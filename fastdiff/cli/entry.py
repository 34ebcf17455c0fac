"""Where the command line starts: signals are handled before anything slow is imported.

SIGINT, SIGTERM and SIGHUP (unless it is ignored, as under nohup) end the command with one line on stderr and the exit
code 128 + the signal. While modules are imported they end it at once: nothing is half written then, and an exception
would come out of whatever is being imported. While the command runs they raise `KeyboardInterrupt` and `Terminated`, so
that temporary files are removed; ``train`` has handlers of its own (`training/signals.py`).

What comes before the first line of this file, the start of Python itself, is out of reach.
"""

import os
import signal
import sys

from .interrupts import Terminated, end_at_once, end_in_order, handle

BROKEN_PIPE = 128 + 13


def main() -> int:
    """Run the command line of this process; return its exit code."""
    handle(end_at_once)
    from .main import main as run

    try:
        handle(end_in_order)
        code = run()
        handle(end_at_once)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        code = BROKEN_PIPE
    except KeyboardInterrupt:  # `run` handles both; these are signals in its first or last line
        end_at_once(signal.SIGINT, None)
    except Terminated as terminated:
        end_at_once(int(str(terminated.code)) - 128, None)
    finally:
        handle(end_at_once)
    handle(signal.SIG_IGN)  # the work is done: as Python ends it would restore the default, which is no exit code
    return code


def _output_is_closed() -> bool:
    """Return whether nobody reads the output any more, as after ``| head``. What is still to be written is dropped."""
    import select

    if not hasattr(select, "poll"):
        return False
    closed = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for the flush at the end of the process
            closed = True
    return closed
