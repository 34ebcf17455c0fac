"""Evaluation divided among two, three or four processes has the figures of one, bit for bit; lazy sources; ends."""

import json

import pytest
import torch
from sharded import COUNTS, results
from sharded_run import EVALUATION, Lazy, X, bound, latents
from tiny import images, small, small_vae

from fastdiff.evaluation import evaluate, evaluate_latents, evaluate_ode
from fastdiff.kernels import FastdiffError


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("case", EVALUATION)
def test_every_process_has_the_figures_of_one(case, count):
    expected = EVALUATION[case](False)
    for found in results(count):
        assert found[case].dtype == torch.float64
        assert torch.equal(found[case], expected)


@pytest.mark.parametrize("count", COUNTS)
def test_the_command_prints_once(count):
    (code, out, _), *others = [found["evaluate"] for found in results(count)]
    assert [code, *others] == [0] + [(0, "", "")] * (count - 1)
    row = json.loads(out)
    expected = evaluate(small(), images(7), draws=2, batch_size=3).row()
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("count", COUNTS)
def test_a_users_error_ends_every_process_with_code_2(count):
    for found in results(count):
        for case, word in (("no model", "nothing"), ("no device", "device")):
            code, out, err = found[case]
            assert (code, out) == (2, "")
            assert word in err or not err


# ------------------------------------------------------------------------------------------------ lazy sources


def test_a_lazy_source_is_read_batch_by_batch():
    lazy = Lazy(X)
    assert torch.equal(bound(small(), False, lazy, draws=3, batch_size=2), bound(small(), False, draws=3, batch_size=2))
    assert torch.equal(latents(small_vae(), False, lazy), latents(small_vae(), False))
    assert torch.equal(
        evaluate_ode(small(), lazy, steps=1, batch_size=2), evaluate_ode(small(), X, steps=1, batch_size=2)
    )
    assert lazy.most == 2


def test_a_lazy_source_that_does_not_fit():
    """Another shape is found before the work, values and dtypes when they are read."""
    wrong = Lazy(X)
    wrong.shape = (3, 8, 8)
    for function in (evaluate, evaluate_latents):
        with pytest.raises(FastdiffError, match="shape"):
            function(small_vae(), wrong)
        with pytest.raises(FastdiffError, match="x must lie in"):
            function(small_vae(), Lazy(X + 17 - X))
        with pytest.raises(FastdiffError, match=r"x must be a torch\.uint8"):
            function(small_vae(), Lazy(X.float()))
        with pytest.raises(FastdiffError, match="at least one image"):
            function(small_vae(), Lazy(X[:0]))


# ------------------------------------------------------------------------------------------------ abandoning, the bar


class Stopped(BaseException):
    """What a signal's handler raises."""


def evaluate_short_ode(model, x, **options):
    return evaluate_ode(model, x, steps=1, **options)


@pytest.mark.parametrize("function", [evaluate, evaluate_latents, evaluate_short_ode])
def test_an_evaluation_can_be_abandoned(function, monkeypatch, capsys):
    """In the second batch: modes are restored, the bar is closed and leaves no line."""
    model = small_vae().train() if function is evaluate_latents else small().train()
    monkeypatch.setattr("fastdiff.evaluation.batches.BAR_DELAY", 0.0)
    method, calls = {evaluate: "vlb", evaluate_latents: "encode", evaluate_short_ode: "recon_nats"}[function], []
    original = getattr(model, method)

    def interrupted(*arguments, **options):
        calls.append(model.training)
        if len(calls) == 2:
            raise Stopped
        return original(*arguments, **options)

    monkeypatch.setattr(model, method, interrupted)
    with pytest.raises(Stopped):
        function(model, X, batch_size=3, progress=True)
    assert calls == [False, False]
    assert all(part.training for part in model.modules())
    err = capsys.readouterr().err
    assert "img" in err
    assert err.endswith("\r")


def test_the_bar_appears_after_two_seconds(capsys):
    evaluate(small(), X, draws=2, progress=True)
    evaluate_latents(small_vae(), X, progress=True)
    assert capsys.readouterr().err == ""
