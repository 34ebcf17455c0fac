"""What a run prints where no progress bars are shown, such as in a log: lines on stderr."""

import sys
import time

from tqdm import tqdm

from ..evaluation import Evaluation

SECONDS = 60.0  # between two lines about steps, unless their number is given


class ProgressLines:
    """Prints the averages of the last steps, the speed and the time left; and evaluations.

    Args:
        max_steps: the last step.
        step: steps done before.
        every: steps between two lines; the line comes with the next averages. 0 prints nothing, evaluations included.
            None: one after the first averages, then one a minute at most.
        shown: whether anything is printed.
    """

    def __init__(self, max_steps: int, step: int = 0, every: int | None = None, shown: bool = True) -> None:
        self.max_steps, self.every, self.shown = max_steps, every, shown and every != 0
        self._first = self._last = step
        self._began = self._since = self._printed = time.monotonic()
        self._none_yet = True

    def steps(self, step: int, averages: dict[str, str]) -> None:
        """Print a line about the steps since the last one, if it is time for one.

        Args:
            step: number of steps done.
            averages: what a progress bar shows, of `MetricsLog.flush`.
        """
        if not self.shown or not self._is_due(step):
            return
        now = time.monotonic()
        speed = (step - self._last) / max(now - self._since, 1e-9)
        left = (self.max_steps - step) * (now - self._began) / max(step - self._first, 1)  # evaluations are part of it
        loss = f"loss {averages['loss']}, {averages['bits/dim']} bits/dim, {speed:.3g} steps/s"
        self.say(f"{self._at(step)}: {loss}, {tqdm.format_interval(round(left))} left")
        self._last, self._since, self._printed, self._none_yet = step, now, now, False

    def _is_due(self, step: int) -> bool:
        if step == self.max_steps or (self._none_yet and self.every is None):
            return True
        if self.every is None:
            return time.monotonic() - self._printed >= SECONDS
        return step // self.every > self._last // self.every

    def exclude(self, seconds: float) -> None:
        """Leave out seconds that were spent on something else, such as an evaluation, from the steps per second."""
        self._since += seconds

    def evaluation(self, step: int, evaluation: Evaluation, draws: int) -> None:
        """Print a line about an evaluation of the held-out images."""
        error = evaluation.standard_error
        self.say(f"{self._at(step)}: held-out images {evaluation.mean:.3f} ± {error:.3f} bits/dim, {draws} draws each")

    def say(self, line: str) -> None:
        """Print a line."""
        if self.shown:
            print(line, file=sys.stderr, flush=True)

    def _at(self, step: int) -> str:
        return f"step {step:,} of {self.max_steps:,}"
