"""What the faults of this folder have found, each by the smallest call that met it."""

import math
import signal

import pytest
import torch
from tiny import images, small, small_vae

import fastdiff
from fastdiff.cli import entry
from fastdiff.data import DataError, from_torch, load_dataset
from fastdiff.diffusion import SamplingError
from fastdiff.evaluation import evaluate
from fastdiff.evaluation.bits_per_dim import EvaluationError
from fastdiff.io.configuration import ConfigError, from_dict
from fastdiff.kernels import InvalidTypeError, InvalidValueError
from fastdiff.models import VDMConfig
from fastdiff.sampling.images import OutOfMemoryError
from fastdiff.training import RunError, TrainConfig, TrainState, runs, train


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", 1.5])
def test_devices(device, tmp_path):
    config = TrainConfig(data="digits", max_steps=1)
    for call in (lambda: fastdiff.sample(small(), 1, steps=1, device=device),
                 lambda: runs.start(tmp_path / "run", small, config, load_dataset("digits"), device)):  # fmt: skip
        with pytest.raises(InvalidValueError, match="device must be"):
            call()


def test_a_key_without_a_name():
    with pytest.raises(ConfigError, match="unknown keys"):
        from_dict(VDMConfig, {"": {}}, "config")


def test_arguments_of_the_bound():
    for model in (small(), small_vae()):
        for call in (model.vlb, model.forward):
            with pytest.raises(InvalidTypeError, match="noise must be"):
                call(images(1), 3)
    with pytest.raises(InvalidValueError, match="draws"):
        evaluate(small(), images(1), draws="1")  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="steps must be <= 1000000"):
        fastdiff.sample(small(), 1, steps=10**9)
    with pytest.raises(InvalidTypeError, match="z must be a tensor"):
        fastdiff.Latents(z=3)  # type: ignore[arg-type]


def test_weights_that_are_not_numbers():
    model, vae = small(), small_vae()
    for part in (model.network, vae.decoder):
        with torch.no_grad():
            next(parameter for parameter in part.parameters() if parameter.dim() > 1).fill_(math.nan)
    with pytest.raises(EvaluationError, match="not a number for 3 of 3 images"):
        evaluate(model, images(3), draws=1)
    with pytest.raises(SamplingError):
        fastdiff.sample(vae, 1)


def test_batches_that_do_not_fit(monkeypatch):
    """The images, and the calls of the callback, are those of smaller batches."""
    model = small()
    expected, real, sizes = fastdiff.sample(model, 5, steps=2), model.predict, []

    def limited(z_t, *args, **options):
        if len(z_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(z_t))
        return real(z_t, *args, **options)

    monkeypatch.setattr(model, "predict", limited)
    assert torch.equal(fastdiff.sample(model, 5, steps=2, progress=True), expected)
    assert sizes == [2, 2, 2, 2, 1, 1]
    monkeypatch.setattr(model, "predict", lambda *_, **__: limited(torch.zeros(3)))
    with pytest.raises(OutOfMemoryError, match="too small for one image"):
        fastdiff.sample(model, 5, steps=2)


def test_data_sets_that_are_none():
    for call in (
        lambda: load_dataset(None),
        lambda: load_dataset("digits", 3),  # type: ignore[arg-type]
        lambda: from_torch([images(1)[0]], [images(1)[0]], levels="x"),  # type: ignore[arg-type]
        lambda: from_torch([images(1)[0]], [images(1)[0]], num_classes=1.5),
    ):  # type: ignore[arg-type]
        with pytest.raises(DataError, match="must "):
            call()


def test_trainings_that_are_none(tmp_path):
    config, digits = TrainConfig(data="digits", max_steps=1), load_dataset("digits")
    with pytest.raises(InvalidTypeError, match="state must be"):
        next(train(None, digits))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="data must be"):
        next(train(TrainState(small(), config), None))  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="workers"):
        next(train(TrainState(small(), config), digits, -1))
    for arguments in ((None, config), (small(), None)):
        with pytest.raises(InvalidTypeError):
            TrainState(*arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match="start"):
        runs.start(tmp_path / "run", lambda: None, config, digits)  # type: ignore[arg-type,return-value]
    for name in ("a\0b", "x" * 300):
        with pytest.raises(RunError, match="cannot be written"):
            runs.start(tmp_path / name, small, config, digits)
    with pytest.raises(InvalidTypeError, match="path of a folder"):
        runs.resume(None, {})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value"), [("save_every", 0), ("keep", 1.5), ("evaluations", -1), ("workers", "x")])
def test_options_of_runs(name, value):
    with pytest.raises(ConfigError, match=f"RunOptions: {name} must be"):
        runs.RunOptions(**{name: value})


def test_signals_after_the_work(monkeypatch):
    """While Python ends it would restore the default handlers, which end the process as if killed."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr("fastdiff.cli.main.main", lambda: 0)
    try:
        assert entry.main() == 0
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in former)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
