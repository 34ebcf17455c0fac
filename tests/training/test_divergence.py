"""Divergence: curves recorded from healthy and from diverged trainings, and the verdict on the end of a run."""

import json
import math

import pytest

from fastdiff.training.divergence import MAX_SKIPPED, Monitor, verdict
from fastdiff.training.errors import TrainingError

# Losses and weight norms of every fifth window of 300 steps, recorded from the presets.
HEALTHY = {
    "digits": ([179, 118, 98.3, 97.6, 90.6, 91], [46.2, 46.5, 48, 49, 50.3, 51.3]),
    "digits, 1000 times the learning rate, and useful": (
        [192, 157, 146, 161, 464, 2680, 198, 879, 208, 143], [176, 362, 436, 414, 268, 452, 289, 401, 687, 675],
    ),
    "ddpm-digits, weighted": ([62.2, 43.6, 11.6, 8.37, 7.27, 6.71], [45.3, 45.3, 45.5, 45.9, 47.5, 48.1]),
    "learned endpoints, which start far": ([11_100, 8730, 2410, 305, 387, 199], [383, 623, 602, 470, 505, 472]),
    "a VAE with a spike": ([1880, 4610, 3310, 194, 140, 5730, 128], [254, 462, 504, 371, 420, 474, 487]),
    "weights from zero": ([100, 90, 80, 70], [1e-3, 0.5, 5, 20]),
}  # fmt: skip
DIVERGED = {
    "hvae-digits, 100 times the learning rate": ([182, 147, 133, 158, 4.12e8], [44, 57, 81, 100, 168], "4.12e+08"),
    "a loss that stays 20 times too large": ([170, 126, 122, 3550, 3400, 3900], [41, 54, 90, 177, 359, 323], "3.9e+03"),
    "weights of 1e25": ([170, 126, 122], [41, 54, 1e25], "norm of the weights is 1e+25"),
    "weights that run away slowly": ([7e8, 1.4e4, 1.2e4, 1.1e4], [5.9e3, 1.4e4, 6.8e6, 4e9], "6.8e+06"),
    "nan": ([170, math.nan], [41, 41], "the loss is nan"),
    "inf from the start": ([math.inf], [41], "the loss is inf"),
    "weights of nan": ([170, 120], [41, math.nan], "norm of the weights is nan"),
}


def feed(losses, norms, interrupted: bool = False) -> None:
    """Feed a monitor with windows; with ``interrupted`` each goes to a new one with the history of the last."""
    monitor = Monitor()
    for k, (loss, norm) in enumerate(zip(losses, norms, strict=True), 1):
        if interrupted:
            monitor = Monitor(json.loads(json.dumps(monitor.state())))
        monitor.add(10 * k, loss, norm)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_trainings_go_on(name):
    feed(*HEALTHY[name])


@pytest.mark.parametrize("name", DIVERGED)
def test_diverged_trainings_stop(name):
    """At the last window of those given, and not before; after an interruption just the same."""
    losses, norms, figure = DIVERGED[name]
    if name != "weights that run away slowly":
        feed(losses[:-1], norms[:-1])
    with pytest.raises(TrainingError, match="has diverged") as error:
        feed(losses, norms)
    assert figure in str(error.value)
    assert "learning_rate" in str(error.value)
    with pytest.raises(TrainingError) as other:
        feed(losses, norms, interrupted=True)
    assert str(other.value) == str(error.value)


def test_a_slow_rise_over_a_long_run_is_no_divergence():
    feed([100 + k for k in range(2000)], [10 * 1.01**k for k in range(2000)])


def test_skipped_steps():
    monitor = Monitor()
    monitor.add(10, 100.0, 5.0, skipped=MAX_SKIPPED - 1)
    monitor.add(20, math.nan, 5.0, skipped=3)  # all steps of the window were skipped
    with pytest.raises(TrainingError, match="10 steps in a row"):
        monitor.add(30, 100.0, 5.0, skipped=MAX_SKIPPED)


@pytest.mark.parametrize("state", [None, {}, {"first": "x", "losses": [None, "a", 3], "weights": 7, "far": None}])
def test_a_history_that_is_none(state):
    monitor = Monitor(state)
    monitor.add(10, 1.0, 1.0)
    assert len(monitor.state()["losses"]) <= 2


@pytest.mark.parametrize(
    ("bpd", "early", "words"),
    [
        (2.1, 4.2, []),
        (2.1, None, []),
        (4.08, 4.2, []),
        (4.10, 4.05, ["4.10 bits/dim", "no better than uniform", "log2 17 = 4.09", "learning_rate 10", "try 1"]),
        (4.10, None, ["no better than uniform", "learning_rate"]),
        (6.0, 19.0, ["no better than uniform", "falling", "more steps"]),
        (3.9, 3.0, ["3.00", "learning_rate"]),
        (3.01, 3.0, []),  # within the error of the estimate
        (math.nan, 3.0, ["nan", "learning_rate"]),
    ],
)
def test_the_verdict_on_the_end_of_a_run(bpd, early, words):
    found = verdict(bpd, early, 17, 10.0)
    assert bool(found) == bool(words)
    assert all(word in (found or "") for word in words)
