"""The engine: captured graphs, recorded by a stand-in on the CPU; micro-batches; compilation."""

import logging

import pytest
import torch
from recorded_graph import HostWorkError, RecordedGraphs
from tiny import images, plan_of, small, small_ddpm, small_diffusevae, small_restoration, small_vae

import fastdiff
from fastdiff import Engine, Guidance, Noise
from fastdiff.diffusion import DDIM, Ancestral, DPMSolver, DPMSolverSDE2S, Execution, Heun, SamplingError
from fastdiff.diffusion.graph import KEPT
from fastdiff.kernels import FastdiffError, InvalidTypeError, InvalidValueError, Stream
from fastdiff.sampling.images import OutOfMemoryError


def recorded(model, **options) -> tuple[Engine, RecordedGraphs]:
    """An engine that records with the stand-in."""
    graphs = RecordedGraphs()
    engine = Engine(model, **options)
    engine.execution = Execution(engine.execution.compile, None, engine.execution.micro_batch or False, graphs)
    return engine, graphs


def path(model, n, **request) -> list[torch.Tensor]:
    """The latents and estimates of all steps."""
    seen = []
    fastdiff.sample(model, n, callback=lambda *values: seen.extend(values[2:]), **request)
    return seen


LABELLED = {"labels": 1, "guidance": 2.5}
CASES = {
    "ancestral": (small, {}),
    "ddim": (small, {"sampler": DDIM(eta=0.5)}),
    "dpm-solver": (small, {"sampler": DPMSolver(clip_denoised=True)}),
    "heun": (small, {"sampler": Heun()}),
    "brownian": (small, {"sampler": Ancestral(brownian=True)}),
    "dpm-solver-sde-2s": (small, {"sampler": DPMSolverSDE2S()}),
    "guided": (lambda: small(num_classes=3), LABELLED),
    "keep eps_hat": (lambda: small(num_classes=3), LABELLED | {"sampler": DDIM(clip_denoised=True, keep_eps_hat=True)}),
    "guided on an interval": (lambda: small(num_classes=3), LABELLED | {"guidance": Guidance(3.0, (0.3, 0.7))}),
    "ddpm": (small_ddpm, {}),
    "learned": (lambda: small_ddpm(num_classes=3, variance="learned"), LABELLED),
    "diffusevae": (lambda: small_diffusevae(2), {}),
    "vae": (small_vae, None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_replayed_loop_gives_the_images_of_the_plain_one(name):
    """Bit for bit, in a second batch, with another seed, and with new tables of the same length."""
    build, options = CASES[name]
    model = build()
    engine, graphs = recorded(model)
    steps = {} if options is None else {"steps": 5} | options
    for seed, changes in ((1, {}), (2, {}), (2, {} if options is None else {"steps": 5})):
        request = steps | changes | {"seed": seed, "output": "levels", "batch_size": 4}
        assert torch.equal(engine.sample(8, **request), fastdiff.sample(model, 8, **request))
    kinds = 2 if "interval" in name else 1
    assert graphs.recordings == (0 if options is None else kinds)
    rows = 0 if options is None else 3 * 2 * len(plan_of(model, 5, options.get("sampler", "ancestral")).gamma)
    assert graphs.replayed == rows


def test_the_callback_sees_what_it_sees_in_the_plain_loop():
    """All latents and estimates, in order, contiguous; they stay what they were."""
    model = small(num_classes=3)
    request = {"steps": 6, "sampler": DPMSolver(), "labels": [0, 1, 2], "guidance": Guidance(2.0, (0.0, 0.5))}
    engine, _ = recorded(model)
    ours, plain = path(engine, 3, **request), path(model, 3, **request)
    assert len(ours) == len(plain) == 12
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(a, b)
        assert a.is_contiguous()
    nfe = []
    engine.sample(3, callback=lambda step, count, *rest: nfe.append(count), **request)
    assert nfe == [1, 2, 3, 5, 7, 9]  # t = 1, 5/6, 4/6 without the unconditional call, then 3/6, 2/6 and 1/6


def test_noise_is_fresh_at_each_replay():
    """The noise of a row, (z_s - A z_t - B x_hat) / S, is that of the counter: step k, sample, stream."""
    model = small()
    plan = plan_of(model, 5)
    engine, _ = recorded(model)
    values = path(engine, 3, steps=5, seed=7)
    z = Noise(7).at(stream=Stream.INITIAL).normal((3, 1, 8, 8))
    for k in range(5):
        z_s, x_hat = values[2 * k : 2 * k + 2]
        a, b, s = plan.table[k, 2:5].float()
        drawn = Noise(7).at(step=k, stream=Stream.SAMPLER).normal((3, 1, 8, 8))
        torch.testing.assert_close((z_s - a * z - b * x_hat) / s, drawn, rtol=0, atol=2e-4)
        z = z_s


def test_the_last_batch_is_padded():
    """Every batch has one shape, and the images do not depend on how n divides."""
    model = small(num_classes=3)
    engine, graphs = recorded(model)
    sizes = []
    model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    labels = [0, 1, 2, 0, 1, 2, 0]
    seven = engine.sample(7, steps=3, labels=labels, batch_size=4, output="levels")
    assert set(sizes) == {4}
    assert graphs.recordings == 1
    eight = engine.sample(8, steps=3, labels=[*labels, 2], batch_size=4, output="levels")
    assert torch.equal(seven, eight[:7])
    seen = []
    engine.sample(
        7, steps=1, labels=labels, batch_size=4, callback=lambda step, nfe, z, x: seen.append((len(z), len(x)))
    )
    assert seen == [(4, 4), (3, 3)]


@pytest.mark.parametrize("build", [lambda: small_diffusevae(2), small_restoration])
def test_padding_of_conditioning_images(build):
    model = build()
    cond = model.example_cond(images(5), Noise(3))
    options = {"cond": cond, "steps": 3, "output": "levels", "batch_size": 2} if cond is not None else {"steps": 3}
    engine, _ = recorded(model)
    expected = fastdiff.sample(model, 5, **options)
    assert (engine.sample(5, **options) != expected).float().mean() < 0.02  # a batch of one image rounds otherwise


def test_autocast_is_recorded_and_its_cast_weights_are_not_kept():
    """In bfloat16 the recorded loop is the plain one, also after the caller's autocast, with its cache, has ended."""
    model = small()
    engine, graphs = recorded(model)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            ours = engine.sample(3, steps=4, output="float")
            assert torch.equal(ours, fastdiff.sample(model, 3, steps=4, output="float"))
    assert graphs.recordings == 1
    assert not torch.equal(engine.sample(3, steps=4, output="float"), ours)
    assert graphs.recordings == 2


def test_a_callback_may_sample_with_the_same_engine():
    """While a recording runs, another request of its shape takes the plain loop; both are right."""
    model = small()
    engine, _ = recorded(model)
    inner = []
    ours = engine.sample(
        2, steps=3, seed=1, output="levels",
        callback=lambda *_: inner.append(engine.sample(2, steps=3, seed=2, output="levels", callback=lambda *_: None)),
    )  # fmt: skip
    assert torch.equal(ours, fastdiff.sample(model, 2, steps=3, seed=1, output="levels"))
    assert all(torch.equal(each, fastdiff.sample(model, 2, steps=3, seed=2, output="levels")) for each in inner)


@pytest.mark.parametrize("graph", [False, True])
def test_a_callback_cannot_change_the_sample(graph):
    model = small()
    engine = recorded(model)[0] if graph else Engine(model)
    changed = engine.sample(
        2, steps=3, output="levels", callback=lambda step, nfe, z, x_hat: (z.zero_(), x_hat.zero_())
    )
    assert torch.equal(changed, fastdiff.sample(model, 2, steps=3, output="levels"))


def test_an_engine_is_used_inside_and_outside_of_inference_mode():
    """Tensors that were made under inference mode may not be written outside of it: they are recorded anew."""
    model = small()
    engine, graphs = recorded(model)
    plain = fastdiff.sample(model, 2, steps=2)
    with torch.inference_mode():
        assert torch.equal(engine.sample(2, steps=2), plain)
    assert torch.equal(engine.sample(2, steps=2), plain)
    assert graphs.recordings == 2


def test_recordings_are_kept_and_the_oldest_go():
    model = small()
    engine, graphs = recorded(model)
    for n in (1, 2, 1, 2):
        engine.sample(n, steps=2)
    assert graphs.recordings == 2
    for n in range(3, 3 + KEPT):
        engine.sample(n, steps=2)
    engine.sample(1, steps=2)
    assert graphs.recordings == 2 + KEPT + 1


def test_new_weights_are_used():
    """In place the recording sees them; moved to other addresses they are recorded anew."""
    model = small()
    engine, graphs = recorded(model)
    before = engine.sample(2, steps=2, output="levels")
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(-1.0)
    after = engine.sample(2, steps=2, output="levels")
    assert not torch.equal(before, after)
    assert torch.equal(after, fastdiff.sample(model, 2, steps=2, output="levels"))
    assert graphs.recordings == 1
    model.network.load_state_dict(
        {name: value.clone() for name, value in small().network.state_dict().items()}, assign=True
    )
    assert torch.equal(engine.sample(2, steps=2, output="levels"), before)
    assert graphs.recordings == 2


class Reading(torch.nn.Module):
    """A network that reads a value on the host."""

    def __init__(self, read) -> None:
        super().__init__()
        self.read = read

    def forward(self, z_t, noise_level, labels=None):
        self.read(z_t)
        return 0.1 * z_t


@pytest.mark.parametrize(
    "read",
    [lambda z: z.sum().item(), lambda z: bool(z.sum() > 0), lambda z: z.tolist(), lambda z: torch.tensor(1.0),
     lambda z: z.nonzero()],
)  # fmt: skip
def test_a_network_that_cannot_be_recorded_runs_without(read, caplog):
    """One line of the log says why, however many batches; the images are those of the plain loop."""
    network = Reading(read)
    model = small(fourier=None)
    model.network = network
    engine, graphs = recorded(model)
    with caplog.at_level(logging.WARNING, logger="fastdiff"):
        ours = engine.sample(4, steps=2, batch_size=2, output="levels")
        engine.sample(4, steps=2, batch_size=2)
    assert torch.equal(ours, fastdiff.sample(model, 4, steps=2, batch_size=2, output="levels"))
    assert graphs.recordings == 0
    [record] = caplog.records
    assert "without a captured graph" in record.getMessage()


def test_the_stand_in_finds_host_work():
    """A branch on the host and a result at a new address give other numbers than the function."""

    def count(body):
        replay = RecordedGraphs().capture(body, lambda: None)
        for _ in range(3):
            replay()

    x, holder = torch.zeros(2), {"y": torch.zeros(2)}
    count(lambda: x.add_(1.0))
    assert x.tolist() == [4.0, 4.0]
    count(lambda: holder.update(y=holder["y"] + 1.0))
    assert holder["y"].tolist() == [1.0, 1.0]  # a plain loop would have counted to 4
    with pytest.raises(HostWorkError):
        count(lambda: x.sum().item())


def test_a_result_that_is_not_finite():
    model = small()
    engine, _ = recorded(model)
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(SamplingError, match="after 3 calls"):
        engine.sample(2, steps=3)


# ------------------------------------------------------------------------------------------------ memory


class Small:
    """A stand-in for graphs on a device whose memory holds ``most`` images."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, []

    def hook(self, module, inputs):
        self.sizes.append(len(inputs[0]))
        if len(inputs[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("graph", [False, True])
def test_too_little_memory_halves_the_batch(graph):
    """Down to what fits, and no larger batch is tried again; the images are the same."""
    model = small()
    expected = fastdiff.sample(model, 11, steps=2, output="levels")
    memory = Small(3)
    model.network.register_forward_pre_hook(memory.hook)
    engine = recorded(model)[0] if graph else Engine(model)
    ours = engine.sample(11, steps=2, batch_size=8, output="levels")
    assert (ours != expected).float().mean() < 0.02  # rounding
    assert memory.sizes[:3] == [8, 4, 2]
    assert max(memory.sizes[2:]) == 2
    memory.sizes.clear()
    engine.sample(4, steps=1)
    assert max(memory.sizes) == 2


def test_too_little_memory_for_one_image_or_a_micro_batch():
    model = small()
    model.network.register_forward_pre_hook(Small(0).hook)
    with pytest.raises(OutOfMemoryError, match="one image"):
        fastdiff.sample(model, 3, steps=1)
    with pytest.raises(OutOfMemoryError, match="batch_invariant = 16"):
        Engine(model, batch_invariant=True).sample(3, steps=1)


# ------------------------------------------------------------------------------------------------ batch invariance


def test_micro_batches_give_the_same_bits_in_every_batch_size():
    model = small(num_classes=3)
    engine = Engine(model, batch_invariant=4)
    sizes = set()
    model.network.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    labels = [k % 3 for k in range(11)]
    first = path(engine, 11, steps=4, labels=labels, guidance=2.0, batch_size=1)
    for size in (3, 8, 64):
        again = path(engine, 11, steps=4, labels=labels, guidance=2.0, batch_size=size)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sizes == {8}  # a micro-batch of 4, twice for guidance
    # more images change nothing
    twelve = engine.sample(12, steps=4, labels=[*labels, 2], guidance=2.0, output="float")
    assert torch.equal(engine.sample(11, steps=4, labels=labels, guidance=2.0, output="float"), twelve[:11])


# ------------------------------------------------------------------------------------------------ compilation


@pytest.mark.parametrize("build", [small, small_ddpm, lambda: small_diffusevae(2), small_restoration, small_vae])
def test_the_network_call_compiles_without_a_graph_break(build, monkeypatch):
    """All models; torch._dynamo counts breaks and recompilations."""
    model = build()
    engine = Engine(model)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    engine.execution.compile = True
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    monkeypatch.setattr(Execution, "compile_options", {"backend": backend})
    cond = model.example_cond(images(5), Noise(3))
    options = {} if "steps" not in model.sampling_options else {"steps": 3}
    options |= {} if cond is None else {"cond": cond}
    ours = engine.sample(5, batch_size=2, output="levels", **options)
    assert not counters["graph_break"]
    assert len(compiled) == 1
    plain = fastdiff.sample(model, 5, batch_size=2, output="levels", **options)
    assert (ours != plain).float().mean() < 0.02


# ------------------------------------------------------------------------------------------------ arguments


def test_a_compiled_module_is_a_model():
    model = small()
    engine = Engine(torch.compile(model, backend="eager"))
    assert engine.model is model
    assert engine.execution.compile


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"graph": True}, InvalidValueError, "graph must be False or None on cpu"),
        ({"graph": "yes"}, InvalidTypeError, "graph must be True, False or None, got 'yes'"),
        ({"compile": 1}, InvalidTypeError, "compile must be True or False, got 1"),
        ({"batch_invariant": -1}, InvalidValueError, "batch_invariant must be True, False or an integer >= 1, got -1"),
        ({"batch_invariant": 0}, InvalidValueError, "batch_invariant must be True, False or an integer >= 1, got 0"),
        ({"batch_invariant": 2.5}, InvalidTypeError, "batch_invariant must be True, False or an integer >= 1"),
    ],
)
def test_options_that_are_not_allowed(options, error, message):
    with pytest.raises(error, match=message):
        Engine(small(), **options)


def test_no_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InvalidValueError, match="compile must be False where there is no C\\+\\+ compiler"):
        Engine(small(), compile=True)


@pytest.mark.parametrize("interval", [(-0.1, 0.5), (0.2, 1.1), (0.6, 0.4), (0.5,), "ab", (float("nan"), 1.0), 0.5])
def test_intervals_of_guidance_that_are_not_allowed(interval):
    with pytest.raises(InvalidValueError, match="0 <= low <= high <= 1"):
        Guidance(2.0, interval)


def test_guidance_on_an_interval_is_guided_there():
    """Rows outside of (0.3, 0.7) have w = 1; the images are those of a hand-written loop over two models."""
    model = small(num_classes=3)
    labels = torch.tensor([1, 2])
    seen = path(model, 2, steps=10, sampler=DDIM(), labels=labels, guidance=Guidance(3.0, (0.3, 0.7)))
    plan = plan_of(model, 10, DDIM())
    z = Noise(0).at(stream=Stream.INITIAL).normal((2, 1, 8, 8))
    null = torch.full((2,), model.null_label)
    for k in range(10):
        gamma = plan.gamma[k].float().expand(2)
        with torch.no_grad():
            eps = model.eps_hat(z, gamma, labels)
            if 0.3 - 1e-9 <= 1.0 - k / 10 <= 0.7 + 1e-9:
                free = model.eps_hat(z, gamma, null)
                eps = free + 3.0 * (eps - free)
        row = plan.table[k].float()
        expected = row[2] * z + row[3] * (row[0] * z - row[1] * eps)
        z = seen[2 * k]
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-4)


def test_an_interval_without_rows_is_the_conditional_model():
    model = small(num_classes=3)
    narrow = fastdiff.sample(model, 3, steps=4, labels=1, guidance=Guidance(5.0, (0.6, 0.7)), output="float")
    assert torch.equal(narrow, fastdiff.sample(model, 3, steps=4, labels=1, output="float"))


def test_engines_are_taken_where_models_are():
    engine = Engine("digits")
    assert torch.equal(fastdiff.sample(engine, 2, steps=2), fastdiff.sample("digits", 2, steps=2))
    with pytest.raises(FastdiffError, match="model must be a fastdiff model"):
        Engine(torch.nn.Linear(2, 2))
