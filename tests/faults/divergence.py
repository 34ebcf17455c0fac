"""Losses, gradients, weights and samples that are not finite, and trainings that run away."""

import io
import math
from contextlib import redirect_stderr
from dataclasses import replace

import attrs
import torch

import fastdiff
from fastdiff.checkpoints import last_checkpoint
from fastdiff.diffusion import SamplingError
from fastdiff.evaluation import evaluate
from fastdiff.training import TrainingError, runs, train

from .fault import Tries, fault
from .subjects import CONFIG, data, run, small_model, small_vae, state_at, trained, whole_lines


def with_losses(state, factor):
    """Multiply the loss of every step by ``factor(step)``."""
    forward = state.model.forward

    def changed(*args, **options):
        now = factor(state.step)
        objective = forward(*args, **options)
        return replace(objective, loss=objective.loss * now)

    state.model.forward = changed
    return state


@fault(
    "a loss or gradient that is not finite", "ecosystem 11", tries=36, quick=1,
    done="The loss of one to nine steps in a row is NaN or infinite",
    must_hold="these steps change no bit of the weights and are counted; training goes on",
)  # fmt: skip
def skipped_steps(tries: Tries):
    for attempt in tries:
        first, count = attempt.random.randint(1, 8), attempt.random.randint(1, 9)
        bad = attempt.random.choice([math.nan, math.inf, -math.inf])
        state = trained(config=attrs.evolve(CONFIG, max_steps=20))
        with_losses(
            state, lambda step, first=first, count=count, bad=bad: bad if first <= step < first + count else 1.0
        )
        before, wrong, skipped = [p.detach().clone() for p in state.model.parameters()], [], 0
        for report in train(state, data()):
            after = [p.detach().clone() for p in state.model.parameters()]
            same = all(map(torch.equal, before, after))
            skipped += bool(report.skipped)
            if same != bool(report.skipped):
                wrong.append(f"step {report.step}: skipped {bool(report.skipped)}, weights unchanged {same}")
            before = after
        good = not wrong and skipped == count and state.step == 20
        yield None if good else f"try {attempt.number}: {skipped} skipped of {count}; {wrong}"


@fault(
    "gradients that stay not finite", "faults 2.1; ecosystem 11", tries=10, quick=1,
    done="The loss of every step is NaN from a random step on",
    must_hold="the run stops; the last good checkpoint is left, is named, samples, and can be resumed to the end",
)  # fmt: skip
def kept_checkpoint(tries: Tries):
    config = attrs.evolve(CONFIG, max_steps=60)
    for attempt in tries:
        first, out = attempt.random.randint(5, 25), attempt.folder / "run"
        state = with_losses(
            runs.start(out, small_model, config, data()), lambda step, first=first: math.nan if step >= first else 1.0
        )
        try:
            run(out, state, save_every=4)
            yield f"try {attempt.number}: it went on"
            continue
        except TrainingError as error:
            message = str(error)
        found = last_checkpoint(out)
        resumed = runs.resume(out, {})
        fastdiff.sample(fastdiff.load(out), 1, steps=2)
        result = run(out, resumed, save_every=20)
        good = str(found) in message and resumed.step >= first - 4 and result.step == 60
        yield None if good else f"try {attempt.number}: {message}, resumed at {resumed.step}, ended at {result.step}"


@fault(
    "weights that run away", "faults 2.1", tries=10, quick=1,
    done="All weights are multiplied by 1e6 to 1e25, finite, at a random step",
    must_hold="the run stops, and its last good checkpoint is left and can be resumed",
)  # fmt: skip
def runaway_weights(tries: Tries):
    config = attrs.evolve(CONFIG, max_steps=60)
    for attempt in tries:
        at, power, out = attempt.random.randint(12, 30), attempt.random.randint(6, 25), attempt.folder / "run"
        state = runs.start(out, small_model, config, data())

        def grow(step: int, state=state, at=at, power=power) -> float:
            if step == at:
                with torch.no_grad():
                    for parameter in state.model.parameters():
                        parameter *= 10.0**power
            return 1.0

        with_losses(state, grow)
        try:
            result = run(out, state, save_every=10)
            yield f"try {attempt.number}: it went on to step {result.step} after 1e{power} at step {at}"
        except TrainingError:
            resumed = runs.resume(out, {})
            biggest = max(float(p.detach().abs().max()) for p in resumed.model.parameters())
            good = resumed.step <= at and biggest < 1e3
            yield None if good else f"try {attempt.number}: resumed at {resumed.step} with weights of {biggest:g}"


@fault(
    "samples that are not finite", "faults 2.4; ecosystem 12", tries=40, quick=8,
    done="The network returns NaN or infinity at one step of a sampler, or a VAE or diffusion model has such weights",
    must_hold="an error, and no image; for the bound too",
)  # fmt: skip
def bad_samples(tries: Tries):
    kinds = ["step", "vdm", "vae", "bound"]
    for attempt in tries:
        kind, bad = kinds[attempt.number % 4], attempt.random.choice([math.nan, math.inf])
        model = small_vae() if kind == "vae" or attempt.number % 8 == 3 else small_model()
        if kind == "step":
            at, steps = attempt.random.randrange(6), 6
            predict, calls = model.predict, []

            def broken(*args, predict=predict, calls=calls, at=at, bad=bad, **options):
                calls.append(None)
                eps_hat, v = predict(*args, **options)
                return (eps_hat * bad if len(calls) == at + 1 else eps_hat), v

            model.predict = broken
            sampler = attempt.random.choice(["ancestral", "ddim", "dpm-solver"])
        else:
            steps, sampler = None if kind == "vae" else 3, "ancestral"
            with torch.no_grad():
                part = model.get_submodule("decoder" if hasattr(model, "decoder") else "network")
                parameter = attempt.random.choice([p for p in part.parameters() if p.dim() > 1])
                parameter.fill_(bad)
        try:
            if kind == "bound":
                bpd = evaluate(model, data().test_images, draws=1).mean
                yield f"try {attempt.number}: bound {bpd}" if math.isfinite(bpd) else _silent(attempt.number, bpd)
                continue
            fastdiff.sample(model, 2, steps=steps, **({} if kind == "vae" else {"sampler": sampler}))
            yield f"try {attempt.number}: {kind}: images were returned"
        except SamplingError:
            yield None
        except fastdiff.FastdiffError as error:
            yield None if kind in ("bound", "vae") else f"try {attempt.number}: {error}"


def _silent(number: int, bpd: float) -> str:
    return f"try {number}: the bound is {bpd}, without an error"


@fault(
    "learning rates that are too large", "faults 2.16", tries=6, quick=0,
    done="Trainings of 220 steps with learning rates of 10 to 1e6",
    must_hold="each stops as diverged, warns in metrics.jsonl and on stderr, or ends better than uniform pixels",
)  # fmt: skip
def large_rates(tries: Tries):
    for attempt in tries:
        rate, out = 10.0 ** (1 + attempt.number), attempt.folder / "run"
        printed = io.StringIO()
        try:
            with redirect_stderr(printed):
                result = run(out, config=attrs.evolve(CONFIG, max_steps=220, learning_rate=rate), save_every=100)
        except TrainingError:
            tries.count("diverged")
            yield None
            continue
        rows = whole_lines(out / "metrics.jsonl")
        warned = any(row["event"] == "warning" for row in rows) and "warning" in printed.getvalue()
        tries.count("warned", int(warned))
        assert result.evaluation is not None
        good = warned or result.evaluation.mean < math.log2(17)
        state_at(out, 220)
        yield None if good else f"try {attempt.number}: rate {rate:g} ended at {result.evaluation.mean:.2f} in silence"
