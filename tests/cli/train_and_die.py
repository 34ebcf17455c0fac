"""A program for torchrun: `fastdiff train`, whose second process dies after two steps when it is started first."""

import os
import signal
import sys

from fastdiff.cli.main import main
from fastdiff.training.keeping import RunKeeper

after_step = RunKeeper._after_step


def dying(self, report, *arguments):
    after_step(self, report, *arguments)
    if report.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)


if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
    RunKeeper._after_step = dying
sys.exit(main())
