"""Requests that `fastdiff.sample` rejects, each with an error that names the argument; and its signature."""

import inspect

import numpy as np
import pytest
import torch
from tiny import images, small, small_ddpm, small_diffusevae, small_vae
from torch import nn

import fastdiff
from fastdiff import Latents, sample
from fastdiff.diffusion import DDIM, Ancestral, sample_latents
from fastdiff.kernels import FastdiffError

CLASSES = {"model": small(num_classes=3)}
WRONG = [
    ("n must", {"n": -1}), ("n must", {"n": 2.0}), ("n must", {"n": True}),
    ("steps must", {"steps": 0}), ("steps must", {"steps": 2.0}), ("steps must", {"model": small_ddpm(), "steps": 1}),
    ("batch_size must", {"batch_size": 0}), ("output must", {"output": "png"}), ("seed", {"seed": -1}),
    ("sampler must", {"sampler": "runge"}), ("sampler must", {"sampler": ""}), ("sampler must", {"sampler": 3}),
    ("sampler must", {"sampler": lambda gamma: gamma}),
    ("variance must", {"sampler": Ancestral(variance="learned")}), ("betas must", {"sampler": DDIM(betas=(0.1, 0.5))}),
    ("labels must", {"labels": 3}), ("labels must", {"labels": [-1, 1]}), ("labels must", {"labels": [0, 1, 2]}),
    ("labels must", {"labels": [[0, 1]]}), ("labels must", {"labels": 0.5}), ("labels must", {"labels": "seven"}),
    ("labels must", {"labels": torch.tensor([2**63 + 1, 0], dtype=torch.uint64)}),
    ("labels must", {"labels": torch.tensor([2**64 - 1, 0], dtype=torch.uint64)}),
    ("labels must", {"labels": 2**64}), ("labels must", {"labels": [2**63, 0]}),
    ("labels must", {"labels": torch.tensor([1 + 0j, 0])}), ("labels must", {"labels": 1j}),
    ("labels must", {"labels": [True, False]}),
    ("guidance must", {"guidance": 2.0}), ("guidance must", {"guidance": float("nan")}),
    ("guidance must", {"labels": 0, "guidance": float("nan")}),
    ("guidance must", {"labels": 0, "guidance": float("inf")}), ("guidance must", {"labels": 0, "guidance": "2"}),
    ("no labels", {"model": small(), "labels": np.array([0, 1])}), ("no cond", {"cond": images(2).numpy()}),
    ("latents must", {"latents": 0.5}),
    ("z must", {"model": small_vae(), "steps": None, "latents": Latents(z=torch.zeros(3, 5))}),
    ("z must", {"model": small_vae(), "steps": None, "latents": Latents(z=torch.zeros(2, 5).long())}),
    ("z must", {"model": small_diffusevae(), "latents": Latents(z=torch.full((2, 5), torch.inf))}),
    ("model must", {"model": nn.Linear(1, 1)}), ("model must", {"model": "nothing of this name"}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "request_"), WRONG, ids=[f"{k} {message}" for k, (message, _) in enumerate(WRONG)])
def test_requests_that_are_rejected(message, request_):
    with pytest.raises(FastdiffError, match=message):
        sample(**(CLASSES | {"n": 2, "steps": 2} | request_))


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("temperature", {"temperature": 0.0}), ("temperature", {"temperature": float("nan")}),
        ("temperature", {"temperature": True}), ("mixture", {"mixture": 3}),
        ("z must", {"z": torch.zeros(1, 5), "temperature": 0.5}), ("z must", {"z": torch.zeros(1, 5), "mixture": "m"}),
    ],
)  # fmt: skip
def test_latents_that_are_rejected(message, options):
    with pytest.raises(FastdiffError, match=message):
        Latents(**options)


def test_the_signatures_stay_short():
    for function, most in ((fastdiff.sample, 14), (sample_latents, 7)):
        parameters = inspect.signature(function).parameters.values()
        assert len(parameters) <= most
        assert {each.kind for each in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
