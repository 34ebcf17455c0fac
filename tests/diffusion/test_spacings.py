"""Karras's noise levels, explicit times, and the times that a model brings."""

import json

import pytest
import torch
from tiny import small, small_ddpm, small_vae

import fastdiff
from fastdiff.diffusion import DDIM, DEIS, LinearSchedule, UniPC, gamma_table, make_plan
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import FastdiffError, InvalidValueError

SCHEDULE = LinearSchedule(-13.3, 5.0)
TIMES = (0.0, 0.1, 0.35, 1.0)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0, 7.0, 40.0])
def test_karras_noise_levels_are_even_in_the_root_of_the_noise_to_signal_ratio(rho):
    gamma = gamma_table(SCHEDULE, 9, "karras", rho)
    root = torch.exp(gamma / (2.0 * rho))
    torch.testing.assert_close(root, torch.linspace(1, 0, 10, dtype=torch.float64) * (root[0] - root[-1]) + root[-1])
    ends = gamma_table(SCHEDULE, 1)
    assert torch.equal(gamma[[0, -1]], ends)


def test_karras_tends_to_even_steps_in_gamma():
    even = gamma_table(SCHEDULE, 12, "gamma")
    gaps = [float((gamma_table(SCHEDULE, 12, "karras", rho) - even).abs().max()) for rho in (1e2, 1e3, 1e4)]
    assert gaps[0] > 9 * gaps[1] > 80 * gaps[2]
    assert gaps[2] < 5e-3


def test_explicit_times():
    gamma = -13.3 + 18.3 * torch.tensor(TIMES, dtype=torch.float64)
    torch.testing.assert_close(gamma_table(SCHEDULE, 3, TIMES), gamma, rtol=0, atol=2e-6)  # a float32 schedule
    plan = make_plan(DDIM(spacing=TIMES), SCHEDULE, 3)
    torch.testing.assert_close(plan.gamma, gamma.flip(0)[:-1], rtol=0, atol=2e-6)
    assert DDIM(spacing=list(TIMES)) == DDIM(spacing=TIMES)  # pyright: ignore[reportArgumentType]
    ddpm = small_ddpm()
    plan = make_plan(DDIM(spacing=TIMES), ddpm.gamma, 4, ddpm.variance, network_decoder=True)  # the decoder takes one
    assert len(plan.gamma) == 4
    images = [
        fastdiff.sample(small(), 3, 4, DDIM(spacing=s), output="levels") for s in ("time", (0, 0.25, 0.5, 0.75, 1))
    ]
    assert torch.equal(*images)


def test_the_times_of_a_model(tmp_path):
    """They are saved with it, for a sampler and a number of steps."""
    model = small()
    model.spacings = {"unipc": {3: TIMES}, "ddim": {2: (0.0, 0.4, 1.0)}}
    model.save(tmp_path / "model")
    description = json.loads((tmp_path / "model" / "config.json").read_text())
    assert description["spacings"] == {"unipc": {"3": list(TIMES)}, "ddim": {"2": [0.0, 0.4, 1.0]}}
    again = fastdiff.load(tmp_path / "model")
    assert again.spacings == model.spacings  # pyright: ignore[reportAttributeAccessIssue]
    ours, expected = (
        fastdiff.sample(again, 2, 3, UniPC(spacing=spacing), output="levels") for spacing in ("model", TIMES)
    )
    assert torch.equal(ours, expected)
    assert not small().spacings
    small().save(tmp_path / "without")
    assert "spacings" not in json.loads((tmp_path / "without" / "config.json").read_text())


def test_the_times_of_a_ddpm(tmp_path):
    """Its decoder takes a step, so there are as many times as steps."""
    model = small_ddpm()
    model.spacings = {"deis": {4: TIMES}}
    model.save(tmp_path / "model")
    again = fastdiff.load(tmp_path / "model")
    calls = []
    fastdiff.sample(again, 1, 4, DEIS(spacing="model"), callback=lambda step, nfe, z, x: calls.append(nfe))
    assert calls == [1, 2, 3, 4]


WRONG_TIMES = [(0.0,), (0.0, 0.5), (0.1, 1.0), (0.0, 0.5, 0.5, 1.0), (0.0, 0.7, 0.2, 1.0), (), (0.0, float("nan"), 1.0)]


@pytest.mark.parametrize("times", WRONG_TIMES)
def test_wrong_times(times):
    with pytest.raises(ConfigError, match="spacing"):
        DDIM(spacing=times)
    model = small()
    with pytest.raises(ConfigError, match="spacings"):
        model.take_spacings({"ddim": {"1": list(times)}})
    model.spacings = {"ddim": {len(times) - 1: times}}
    with pytest.raises(ConfigError, match="spacings"):
        model.description()


@pytest.mark.parametrize(
    "spacings", [3, [], {"ddim": 3}, {"ddim": {"two": [0, 0.5, 1]}}, {"ddim": {"3": [0, 0.5, 1]}}, {"ddim": {"1": "x"}}]
)
def test_spacings_of_a_file_that_do_not_fit(spacings, tmp_path):
    from fastdiff.checkpoints import CheckpointError, model_from

    description = small().description() | {"spacings": spacings}
    with pytest.raises(CheckpointError, match="spacings"):
        model_from(tmp_path, description)
    with pytest.raises(CheckpointError, match="spacings"):
        model_from(tmp_path, small_vae().description() | {"spacings": {}})


WRONG = {
    "rho": lambda: DDIM(spacing="karras", rho=0.0),
    "rho must be 7 unless": lambda: DDIM(rho=3.0),
    "rho must be finite": lambda: gamma_table(SCHEDULE, 3, "karras", -1.0),
    "one of 'time'": lambda: UniPC(spacing="cosine"),
    "order": lambda: UniPC(order=4),
    "order must be one of": lambda: DEIS(order=0),
    "solver": lambda: UniPC(solver="bh3"),
    "4 increasing times": lambda: make_plan(DDIM(spacing=(0, 0.5, 1)), SCHEDULE, 3),  # pyright: ignore
    "for the sampler unipc it has none": lambda: make_plan(UniPC(spacing="model"), SCHEDULE, 3),
    "one for 3 steps, got 5 steps": lambda: make_plan(
        DDIM(spacing="model"), SCHEDULE, 5, spacings={"ddim": {3: TIMES}}
    ),
    "spacing must be 'time' where betas": lambda: make_plan(
        DDIM(spacing="karras", betas=(0.1, 0.2)), SCHEDULE, 5, network_decoder=True
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_options(words):
    with pytest.raises(FastdiffError, match=words) as caught:
        WRONG[words]()
    assert isinstance(caught.value, ValueError)


def test_explicit_times_fix_the_number_of_steps():
    with pytest.raises(InvalidValueError, match="251 increasing times from 0 to 1 for 250 steps between them, got 4"):
        fastdiff.sample(small(), 1, sampler=DDIM(spacing=TIMES))
