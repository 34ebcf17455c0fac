"""Bounds of compiled models: without a graph break, and equal to the plain ones up to rounding."""

from collections import Counter

import pytest
import torch
from lengths import usually
from tiny import images, small, small_ddpm, small_diffusevae, small_restoration, small_vae

from fastdiff.diffusion import Execution
from fastdiff.evaluation import evaluate, evaluate_ode

BUILDS = {
    "vdm": small,
    "vdm with classes": lambda: small(num_classes=3, schedule="learned"),
    "ddpm": small_ddpm,
    "ddpm, learned variances": lambda: small_ddpm(variance="learned"),
    "vae": small_vae,
    "diffusevae": lambda: small_diffusevae(2),
    "restoration": small_restoration,
}


@pytest.fixture
def compiled(monkeypatch) -> list:
    """The graphs that are compiled, by a backend that runs them as they are: what is traced counts here."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    monkeypatch.setattr(Execution, "compile_options", {"backend": backend}, raising=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return graphs


def breaks() -> Counter:
    return torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("name", usually(["vdm with classes"], list(BUILDS)))
def test_bounds_compile_without_a_graph_break(name, compiled):
    """Once, for all batches and draws: 7 images twice in batches of 4, the last of them padded."""
    model = BUILDS[name]()
    x = images(7)
    labels = torch.arange(7) % 3 if model.num_classes else None
    plain = evaluate(model, x, labels, draws=2, seed=3, batch_size=4)
    ours = evaluate(model, x, labels, draws=2, seed=3, batch_size=4, compile=True)
    torch.testing.assert_close(ours.bpd.total, plain.bpd.total, rtol=1e-5, atol=1e-5)
    assert not breaks()
    assert len(compiled) == 1


@pytest.mark.slow
def test_exact_bounds_and_the_ode_compile_too(compiled):
    model, x = small_ddpm(4), images(3)
    plain = evaluate(model, x, draws=2, batch_size=2, exact=True)
    ours = evaluate(model, x, draws=2, batch_size=2, exact=True, compile=True)
    torch.testing.assert_close(ours.bpd.total, plain.bpd.total, rtol=1e-5, atol=1e-5)
    assert len(compiled) == 2  # the terms of the ends, and those of a step
    vdm = small(fourier=None)  # random weights behind Fourier features magnify the rounding of another batch size
    plain = evaluate_ode(vdm, x, steps=2, draws=1, batch_size=2)
    ours = evaluate_ode(vdm, x, steps=2, draws=1, batch_size=2, compile=True)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert not breaks()
    assert len(compiled) == 4  # the network with and without a gradient
