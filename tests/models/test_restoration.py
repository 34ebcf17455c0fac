"""Degradations by plain loops, and models that restore images from them; see test_conditional for the diffusion."""

import json
import math

import pytest
import torch
from tiny import images
from tiny import small_restoration as restoration

import fastdiff
from fastdiff.checkpoints import CheckpointError
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import InvalidTypeError, InvalidValueError, Noise, Stream, to_unit_range
from fastdiff.models import AddNoise, Downsample

DEGRADATIONS = [Downsample(), Downsample(factor=4), AddNoise(), AddNoise(deviation=0.1)]


@pytest.mark.parametrize(("factor", "shape"), [(2, (3, 8, 12)), (3, (1, 6, 9)), (4, (2, 4, 8)), (8, (1, 8, 8))])
def test_downsample_by_loops(factor, shape):
    """Block means in float64 and repetition; measured 3e-8. The enlarged image has the mean of the image: 7.5e-9."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    degradation = Downsample(factor=factor)
    degraded = degradation.apply(x, Noise(0))
    again = degradation.upsample(degraded)
    assert tuple(degraded.shape[1:]) == degradation.shape(shape) == (shape[0], shape[1] // factor, shape[2] // factor)
    assert again.shape == x.shape
    for h in range(shape[1]):
        for w in range(shape[2]):
            i, j = h // factor, w // factor
            block = [x[:, :, i * factor + k, j * factor + m].double() for k in range(factor) for m in range(factor)]
            assert float((degraded[:, :, i, j] - sum(block) / factor**2).abs().max()) < 1e-7
            assert torch.equal(again[:, :, h, w], degraded[:, :, i, j])
    torch.testing.assert_close(again.double().mean((2, 3)), x.double().mean((2, 3)), rtol=0, atol=2e-8)


def test_added_noise_is_a_function_of_seed_step_and_sample():
    """Bit for bit; its deviation and mean within 4 standard errors, independent of the other streams."""
    model, x = restoration(AddNoise(deviation=0.25)), images(500)
    noise = Noise(5, step=3, first_sample=2)
    whole = model.degrade(x, noise)
    parts = [model.degrade(x[f : f + 200], Noise(5, step=3, first_sample=2 + f)) for f in (0, 200, 400)]
    assert torch.equal(whole, torch.cat(parts))
    added = (whole - to_unit_range(x, 17)).double()
    n = added.numel()
    assert abs(float(added.mean())) < 4 * 0.25 / math.sqrt(n)
    assert abs(float(added.std()) - 0.25) < 4 * 0.25 / math.sqrt(2 * n)
    for other in (Noise(6, step=3, first_sample=2), Noise(5, step=4, first_sample=2), Noise(5, step=3)):
        assert not torch.equal(model.degrade(x, other), whole)
    for stream in (Stream.DIFFUSION, Stream.RECON, Stream.INITIAL, Stream.SAMPLER, Stream.VAE):
        eps = noise.at(stream=stream).normal(x.shape).double()
        assert abs(float((added * eps).mean())) < 4 * 0.25 / math.sqrt(n)
    assert model.config.degradation.upsample(whole) is whole


WRONG = {
    "factor must divide": lambda: restoration(Downsample(factor=3)),
    "factor must be an integer": lambda: Downsample(factor=2.0),  # pyright: ignore[reportArgumentType]
    "factor must be >= 2": lambda: Downsample(factor=1),
    "kind must be one of 'downsample'": lambda: Downsample(kind="noise"),
    "deviation must be finite and > 0": lambda: AddNoise(deviation=0.0),
    "RestorationConfig: degradation": lambda: restoration(3),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_configurations(words):
    with pytest.raises(ConfigError, match=words):
        WRONG[words]()


def test_images_that_cannot_be_degraded():
    with pytest.raises(ConfigError, match="factor must divide"):
        Downsample(factor=3).apply(torch.zeros(2, 1, 8, 8), Noise(0))


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_round_trip(degradation, tmp_path):
    model = restoration(degradation, 2, continuous_noise_conditioning=True)
    model.save(tmp_path / "m")
    again = fastdiff.load(tmp_path / "m")
    assert again.config == model.config
    text = json.loads((tmp_path / "m" / "config.json").read_text())
    assert text["config"]["degradation"]["kind"] == degradation.kind


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"kind": "blur"}, "kind must be one of 'downsample', 'noise'"),
        (None, "kind must be one of 'downsample', 'noise'"),
        ({"kind": "noise", "factor": 2}, "unknown keys factor"),
        ({"kind": "downsample", "factor": "2"}, "factor must be an integer"),
    ],
)
def test_a_wrong_degradation_in_config_json(written, words, tmp_path, monkeypatch):
    """The description as a file would hold it; `fastdiff.load` checks the file's checksum before."""
    model = restoration()
    description = model.description()
    description["config"]["degradation"] = written
    monkeypatch.setattr(type(model), "description", lambda self: description)
    model.save(tmp_path / "m")
    with pytest.raises(CheckpointError, match=f"config.json: config.degradation.*{words}"):
        fastdiff.load(tmp_path / "m")


COND = torch.zeros(2, 1, 4, 4)
REQUESTS = {
    r"must be the degraded images, of shape \(2, 1, 4, 4\)": None,
    r"must have shape \(2, 1, 4, 4\), got \(2, 1, 8, 8\)": torch.zeros(2, 1, 8, 8),
    r"shape .* got \(3, 1, 4, 4\)": torch.zeros(3, 1, 4, 4),
    r"0 \.\. 16, got 17": COND.byte() + 17,
    "finite": COND + math.nan,
    "within ±1, got 100": COND + 100,
    "int64": COND.long(),
    "got a list": [0.0],
}


@pytest.mark.parametrize("words", REQUESTS)
def test_wrong_cond(words):
    with pytest.raises(
        InvalidTypeError if words in ("int64", "got a list") else InvalidValueError, match=f"cond.*{words}"
    ):
        fastdiff.sample(restoration(), 2, cond=REQUESTS[words])
