"""Averaged weights: against the recursion written out, and what is shared with the model."""

import copy

import torch
from tiny import small, small_diffusevae

from fastdiff.training.average import Average


def test_the_recursion():
    """average <- d average + (1 - d) weight with d = min(decay, (1 + k) / (10 + k)); the first update copies."""
    model = small()
    average, expected = Average(model, 0.5), [p.detach().double() for p in model.parameters()]
    for step in range(12):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        average.update(step)
        decay = 0.0 if step == 0 else min(0.5, (1 + step) / (10 + step))
        expected = [
            decay * a + (1 - decay) * p.detach().double() for a, p in zip(expected, model.parameters(), strict=True)
        ]
    for found, value in zip(average.model.parameters(), expected, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_a_frozen_first_stage_is_shared_and_not_averaged():
    model = small_diffusevae()
    average = Average(model, 0.9)
    for (name, own), averaged in zip(model.named_parameters(), average.model.parameters(), strict=True):
        assert (own is averaged) == name.startswith("vae."), name
    frozen = {id(p) for p in model.vae.parameters()}
    assert not frozen & {id(tensor) for tensor in average.tensors() if isinstance(tensor, torch.nn.Parameter)}
    before = copy.deepcopy(model.vae.state_dict())
    average.update(0)
    assert all(torch.equal(value, before[name]) for name, value in average.model.vae.state_dict().items())


def test_buffers_are_copied():
    model = small(learn_endpoints=False)
    average = Average(model, 0.9)
    model.gamma.gamma_0.fill_(-7.0)
    average.update(3)
    assert float(average.model.gamma.gamma_0) == -7.0
