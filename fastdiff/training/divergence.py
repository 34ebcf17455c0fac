"""Whether a training has diverged: its loss and weights against their own history, and the bound that it ends with.

"Far" was chosen on 300 steps of the presets digits, ddpm-digits, vae-digits and hvae-digits and of six small models of
the tests (VDM of three kinds, DDPM, VAE, HVAE), in windows of ten steps, at multiples of their learning rates:

    learning rate    largest loss, of the largest in ten windows    weight norm, of the median    stopped below
                     at the start                                   of the windows before
    x 1, x 10        1.0                                            1.9                           none of 20
    x 100            3.5; 21 (vae-digits), 3e7 (the two HVAEs)      2.7                           2 of 10: HVAEs
    x 1000           1.2; 1e3 to 1e9 (vae- and hvae-digits)         2.4                           3 of 10: VAEs
    x 100,000        -                                              480 (VAE)                     6 of 6, 4 by gradients

A loss that is 10 times too large for three windows in a row, or 1000 times in one, is far outside: a single spike of a
healthy VAE is not. Weights that have grown 30 times within the last thousand steps are, too. Of the rest some end at a
useful bound, also at 1000 times the learning rate, and some do not: `verdict` says so at the end.
"""

import math
import statistics
from collections import deque

from ..io.folders import Json
from .errors import TrainingError

MAX_SKIPPED = 10  # steps in a row whose gradient is not finite
FIRST, RECENT = 10, 100  # windows
FAR_LOSS, WINDOWS, VERY_FAR_LOSS = 10.0, 3, 1000.0
FAR_WEIGHTS, SMALL_WEIGHTS = 30.0, 1.0  # the norm below which growth means nothing, as of weights that begin at zero
ADVICE = "try a smaller learning_rate, a longer warm_up, a smaller clip_norm, or fp32 if the run has mixed precision"


class Monitor:
    """Follows a training by its windows of ten steps, and raises a `TrainingError` once it has diverged.

    Args:
        state: what `state` returned when the run was interrupted; None for a new run. Values that are not of that form
            count as no history, since a monitor must not keep a run from being resumed.
    """

    def __init__(self, state: Json | None = None) -> None:
        state = state or {}
        self._first = _finite_numbers(state.get("first"))[:FIRST]  # losses
        self._losses = deque(_finite_numbers(state.get("losses")), RECENT)
        self._weights = deque(_finite_numbers(state.get("weights")), RECENT)
        far = state.get("far")
        self._far = far if isinstance(far, int) else 0

    @property
    def in_doubt(self) -> bool:
        """Whether the last window was far outside the history: the training may be about to diverge."""
        return self._far > 0

    def state(self) -> Json:
        """Return the history as plain JSON types, for a checkpoint."""
        return {
            "first": list(self._first), "losses": list(self._losses), "weights": list(self._weights), "far": self._far,
        }  # fmt: skip

    def add(self, step: int, loss: float, weight_norm: float, skipped: int = 0) -> None:
        """Add a window of ten steps.

        Args:
            step: number of steps done.
            loss: mean of the training loss over the steps of the window that were not skipped; nan if all were.
            weight_norm: norm of all parameters.
            skipped: number of the last steps in a row that were skipped, since their gradient was not finite.

        Raises:
            TrainingError: the training has diverged. The message gives the figures and says what to try.
        """
        if skipped >= MAX_SKIPPED:
            raise _diverged(step, f"the gradient was not finite in {skipped} steps in a row")
        if not math.isfinite(weight_norm):
            raise _diverged(step, f"the norm of the weights is {weight_norm}")
        if not math.isfinite(loss):
            if skipped:
                return  # no step of the window counts
            raise _diverged(step, f"the loss is {loss}")
        self._check_weights(step, weight_norm)
        self._check_loss(step, loss)
        self._weights.append(weight_norm)
        if not self._far:  # a window that is far outside the history is no part of it
            self._losses.append(loss)
            if len(self._first) < FIRST:
                self._first.append(loss)

    def _check_weights(self, step: int, norm: float) -> None:
        usual = max(statistics.median(self._weights), SMALL_WEIGHTS) if self._weights else math.inf
        if norm > FAR_WEIGHTS * usual:
            raise _diverged(step, f"the norm of the weights is {norm:.3g} after {usual:.3g} before")

    def _check_loss(self, step: int, loss: float) -> None:
        if not self._losses:
            return
        usual = max(*map(abs, self._first), abs(statistics.median(self._losses)), 0.0)
        self._far = self._far + 1 if loss > FAR_LOSS * usual > 0.0 else 0
        if self._far >= WINDOWS or loss > VERY_FAR_LOSS * usual > 0.0:
            raise _diverged(step, f"the loss is {loss:.3g}, after at most {usual:.3g} at the start and in the middle")


def _diverged(step: int, what: str) -> TrainingError:
    return TrainingError(f"training has diverged: {what}, at step {step}; {ADVICE}")


def _finite_numbers(values: object) -> list[float]:
    found = values if isinstance(values, list) else []
    return [float(value) for value in found if isinstance(value, (int, float)) and math.isfinite(value)]


def verdict(bpd: float, early_bpd: float | None, levels: int, learning_rate: float) -> str | None:
    """Say that a run has ended at a useless bound, and what to try; None for one that has not.

    Args:
        bpd: the bound at the end, in bits per dimension.
        early_bpd: that of the first evaluation or the first steps; None if it is not known.
        levels: values of a pixel.
        learning_rate: the peak.
    """
    uniform = math.log2(levels)
    slower = f"learning_rate {learning_rate:g} is probably too large; try {learning_rate / 10:g}"
    ended = f"the run ended at {bpd:.2f} bits/dim"
    if not math.isfinite(bpd):
        return f"{ended}: {slower}"
    rose = early_bpd is not None and bpd > early_bpd + max(0.05, 0.02 * abs(early_bpd))
    if bpd < uniform:
        return f"{ended}, above the {early_bpd:.2f} that it had early in training: {slower}" if rose else None
    useless = f"{ended}, no better than uniform pixels (log2 {levels} = {uniform:.2f})"
    if early_bpd is not None and bpd < 0.9 * early_bpd:
        return f"{useless}: it was still falling, from {early_bpd:.2f}; train it for more steps"
    return f"{useless}: {slower}"
