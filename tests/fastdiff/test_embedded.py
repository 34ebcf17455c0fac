"""The trained digits model: more steps lower its bound, and its samples look like digits to a classifier."""

from itertools import pairwise

import pytest
import torch

import fastdiff
from fastdiff.datasets import digits
from fastdiff.digit_features import load_digit_classifier
from fastdiff.evaluation import evaluate, evaluate_ode, standard_error
from fastdiff.frechet import fd_digits


def test_more_steps_lower_the_bound():
    """L_2T < L_T for T = 1, 2, 4, .., 512 with common noise, within two standard errors over the images."""
    model, x = fastdiff.load("digits"), digits().test_images
    totals = [evaluate(model, x, steps=2**k, draws=8).bpd.total for k in range(11)]
    for coarse, fine in pairwise(totals):
        difference = fine - coarse
        assert float(difference.mean()) < 2 * standard_error(difference)


def test_the_flow_agrees_with_the_bound():
    """The ODE's bound is the tighter one here, by 0.04 bits/dim; both have their own error."""
    model, x = fastdiff.load("digits"), digits().test_images[:48]
    flow = evaluate_ode(model, x, steps=16, draws=1)
    vlb = evaluate(model, x, draws=64)
    gap = flow - vlb.bpd.total
    assert -0.15 < float(gap.mean()) < 4 * standard_error(gap)


@pytest.mark.parametrize(("sampler", "steps"), [("ancestral", 100), ("dpm-solver", 20), ("heun", 15), ("ddim", 50)])
def test_samples_are_of_the_class_that_was_asked_for(sampler, steps):
    labels = torch.arange(10).repeat(6)
    images = fastdiff.sample("digits", 60, steps=steps, sampler=sampler, labels=labels, guidance=1.5, output="levels")
    with torch.no_grad():
        predicted = load_digit_classifier().logits(images).argmax(1)
    assert float((predicted == labels).float().mean()) > 0.9


def test_fd_digits_of_samples():
    """Close to the held-out digits' own distance at the same number of images, and falling with the steps."""
    held_out = fd_digits(digits().test_images).value
    few, many = (fd_digits(fastdiff.sample("digits", 297, steps=steps, output="levels")).value for steps in (3, 60))
    assert many < 3 * held_out
    assert many < few / 3
