"""The VDM's bound: against entropy, against independent float64 code, and its invariances; and the U-Net under it."""

import math

import numpy as np
import pytest
import torch
from tiny import SMALL, exact_model, images, small

from fastdiff.evaluation import evaluate, format_row
from fastdiff.kernels import Noise, Stream
from fastdiff.models import VDM, VDMConfig, build
from fastdiff.schedules import ScheduleError


def test_the_bound_of_the_exact_denoiser_is_the_entropy():
    """Continuous time: the mutual information of x and z_0, which is the entropy once z_0 tells the levels apart."""
    probabilities = torch.tensor([0.5, 0.1, 0.15, 0.25])
    entropy = -float((probabilities * probabilities.log()).sum())
    generator = torch.Generator().manual_seed(3)
    x = torch.multinomial(probabilities, 3000 * 16, replacement=True, generator=generator).view(-1, 1, 4, 4).byte()
    own = -float(probabilities[x.long()].log().mean())  # of this very sample of data
    result = evaluate(exact_model(probabilities, -9.0, 9.0), x, draws=8)
    error = float((result.bpd.total - result.bpd.total.mean()).std()) / len(x) ** 0.5
    assert abs(result.mean * math.log(2) - own) < 4 * error
    assert abs(own - entropy) < 0.02
    assert float(result.bpd.recon.mean()) < 1e-4


def test_fewer_steps_loosen_the_bound_of_the_exact_denoiser():
    probabilities = torch.tensor([0.7, 0.3])
    x = (torch.rand(2000, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3).byte()
    model = exact_model(probabilities, -8.0, 8.0)
    bounds = [evaluate(model, x, steps=steps, draws=8).mean for steps in (2, 8, 32, 128)]
    assert bounds == sorted(bounds, reverse=True)
    assert abs(bounds[-1] - evaluate(model, x, draws=8).mean) < 0.06


def recompute(model: VDM, x: torch.Tensor, noise: Noise, steps: int | None, total: int) -> np.ndarray:
    """The three terms in float64 NumPy, from the paper's equations and the model's own eps_hat; [3, B]."""
    k = x.double().numpy().reshape(len(x), -1)
    levels = model.levels
    data = (2 * k + 1) / levels - 1
    g0, g1 = (float(g.detach()) for g in model.gamma.endpoints())
    eps = noise.at(stream=Stream.DIFFUSION).normal(x.shape).double().numpy().reshape(len(x), -1)
    eps_0 = noise.at(stream=Stream.RECON).normal(x.shape).double().numpy().reshape(len(x), -1)
    u_0 = float(noise.at(first_sample=0, stream=Stream.TIMES).uniform((1, 1)))
    first = int(noise.key[2])
    u = (u_0 + (first + np.arange(len(x))) / total) % 1.0
    t = u if steps is None else (1 + np.floor(u * steps)) / steps
    gamma = g0 + (g1 - g0) * t
    alpha2, sigma2 = 1 / (1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
    z = np.sqrt(alpha2)[:, None] * data + np.sqrt(sigma2)[:, None] * eps
    with torch.no_grad():
        eps_hat = model.eps_hat(torch.tensor(z, dtype=torch.float32).view(x.shape), torch.tensor(gamma).float())
    square = ((eps - eps_hat.double().numpy().reshape(len(x), -1)) ** 2).sum(1)
    if steps is None:
        diffusion = 0.5 * (g1 - g0) * square
    else:
        snr_gap = np.expm1(gamma - (g0 + (g1 - g0) * (t - 1 / steps)))
        diffusion = 0.5 * steps * snr_gap * square
    s1 = 1 / (1 + np.exp(-g1))
    prior = 0.5 * ((1 - s1) * data**2 + s1 - np.log(s1) - 1).sum(1)
    centres = (2 * np.arange(levels) + 1) / levels - 1
    logits = -0.5 * np.exp(-g0) * ((data + np.exp(g0 / 2) * eps_0)[..., None] - centres) ** 2
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    recon = -np.take_along_axis(log_p, k.astype(int)[..., None], -1)[..., 0].sum(1)
    return np.stack([recon, prior, diffusion])


@pytest.mark.parametrize("steps", [None, 1, 7, 1000, 1_000_000])
@pytest.mark.parametrize("head", ["eps", "levels"])
def test_the_bound_recomputed_in_float64(head, steps):
    """Largest relative difference measured over these cases: 3e-5 (the network sees z_t rounded to float32)."""
    model, x, noise = small(head, gamma_0=-6.0), images(9), Noise(5, step=3, first_sample=4)
    vlb = model.vlb(x, noise, steps=steps, total=40)
    terms = torch.stack([vlb.recon, vlb.prior, vlb.diffusion]).detach().double().numpy()
    np.testing.assert_allclose(terms, recompute(model, x, noise, steps, 40), rtol=1e-4)


def test_evaluation_does_not_depend_on_the_batch_size_nor_touch_the_model():
    model, x = small().train(), images(13)
    results = [evaluate(model, x, draws=3, batch_size=size, seed=2) for size in (1, 5, 39)]
    assert model.training
    for other in results[1:]:
        torch.testing.assert_close(other.bpd.total, results[0].bpd.total, rtol=1e-5, atol=1e-5)
    assert evaluate(model, x, draws=3, seed=3).mean != results[0].mean


def test_evaluation_in_a_table():
    result = evaluate(small(), images(4), steps=7, draws=2)
    row = result.row()
    assert row["steps"] == 7
    assert abs(row["bpd"] - (row["recon"] + row["prior"] + row["diffusion"])) < 1e-9
    per_image = result.bpd.total
    assert abs(row["se"] - float(per_image.std()) / 2.0) < 1e-9
    assert format_row(result).split()[0] == "7"
    with pytest.raises(ValueError, match="draws is 0; allowed: an integer >= 1"):
        evaluate(small(), images(4), draws=0)
    with pytest.raises(ValueError, match="no images; allowed: at least 1"):
        evaluate(small(), images(0))


def test_stratified_times_cut_the_variance_of_the_estimate():
    """The mean bound over 60 seeds: one batch of 16 against 16 batches of one, whose times are independent."""
    model, x = small(), images(1).expand(16, 1, 8, 8).contiguous()

    def mean(seed: int, stratified: bool) -> float:
        if stratified:
            return float(model.vlb(x, Noise(seed)).total.mean().detach())
        alone = [model.vlb(x[:1], Noise(seed, step=1 + k)).total for k in range(16)]
        return float(torch.cat(alone).mean().detach())

    variances = [np.var([mean(seed, stratified) for seed in range(60)]) for stratified in (True, False)]
    assert variances[0] < 0.5 * variances[1]


def test_gradients_reach_every_parameter():
    model = small("levels", augmented=True, classes=3)
    labels = torch.tensor([0, 1, 2, 3, 4])
    model.vlb(images(5), Noise(0), labels=labels).total.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_endpoints_get_the_gradient_of_the_bound():
    """Autograd against finite differences of the mean bound in the endpoints, the same noise on both sides."""
    model, x = small("levels", gamma_0=-5.0, gamma_1=3.0), images(32)

    def bound() -> torch.Tensor:
        return model.vlb(x, Noise(1)).total.mean()

    bound().backward()
    for parameter in (model.gamma.gamma_0, model.gamma.gamma_1):
        values = []
        for change in (1e-2, -2e-2):
            parameter.data += change
            values.append(float(bound().detach()))
        parameter.data += 1e-2
        slope = (values[0] - values[1]) / 2e-2
        assert abs(float(parameter.grad) - slope) < 0.02 * abs(slope) + 0.02


def test_unconditional_is_no_label():
    model, x = small(classes=3), images(4)
    torch.testing.assert_close(
        model.vlb(x, Noise(0)).total, model.vlb(x, Noise(0), labels=torch.full((4,), 3)).total, rtol=0, atol=0
    )
    assert not torch.equal(model.vlb(x, Noise(0)).total, model.vlb(x, Noise(0), labels=torch.zeros(4).long()).total)


def test_decode_is_the_nearest_level():
    model = small()
    x = images(6)
    scale = torch.sigmoid(torch.tensor(8.0)).sqrt()
    centres = (2 * x.float() + 1) / 17 - 1
    assert torch.equal(model.decode(scale * (centres + 0.4 / 17)), x)
    assert torch.equal(model.decode(scale * (centres - 0.4 / 17)), x)
    assert model.decode(torch.full((1, 1, 8, 8), 9.0)).unique().tolist() == [16]
    assert model.decode(torch.full((1, 1, 8, 8), -9.0)).unique().tolist() == [0]


def test_levels_head_is_bounded_by_the_data_and_exact_where_noise_vanishes():
    """At small gamma the posterior mean is the level under z_t, whatever the network says."""
    model, x = small("levels"), images(3)
    centres = (2 * x.float() + 1) / 17 - 1
    gamma = torch.full((3,), -12.0)
    alpha, sigma = torch.sigmoid(-gamma[0]).sqrt(), torch.sigmoid(gamma[0]).sqrt()
    eps = Noise(0).normal(x.shape)
    with torch.no_grad():
        eps_hat = model.eps_hat(alpha * centres + sigma * eps, gamma)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=2e-4)


@pytest.mark.parametrize("head", ["eps", "levels"])
def test_under_autocast_the_features_are_in_its_dtype(head, monkeypatch):
    """The latent stays float32, the network gets bfloat16, and eps_hat differs by bfloat16's rounding."""
    model, seen = small(head).eval(), []
    x = Noise(1).normal((3, *model.shape))
    gamma = torch.tensor([-2.0, 0.0, 3.0])
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda f, *rest: (seen.append(f.dtype), forward(f, *rest))[1])
    with torch.no_grad():
        exact = model.eps_hat(x, gamma)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.eps_hat(x, gamma)
    assert seen == [torch.float32, torch.bfloat16]
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_network_is_channels_last_and_starts_as_the_identity():
    model = VDM(VDMConfig((3, 8, 8), 256, network=SMALL))
    assert model.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    z = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eps_hat(z, torch.zeros(2)), z)


WRONG_CALLS = {
    "x is dtype torch.float32; allowed: a torch.uint8": lambda m: m.vlb(images(2).float(), Noise(0)),
    r"x has shape \(2, 1, 8, 7\); allowed: \[B, 1, 8, 8\]": lambda m: m.vlb(images(2)[..., :7], Noise(0)),
    r"x has shape \(1, 8, 8\)": lambda m: m.vlb(images(1)[0], Noise(0)),
    "x holds the value 17; allowed: 0 .. 16": lambda m: m.vlb(images(2) + 17 - images(2), Noise(0)),
    "steps is 0; allowed: an integer >= 1": lambda m: m.vlb(images(2), Noise(0), steps=0),
    "labels have dtype|labels are dtype torch.float32": lambda m: m.vlb(images(2), Noise(0), labels=torch.zeros(2)),
    r"labels have shape \(3,\); allowed: \(2,\)": lambda m: m.vlb(images(2), Noise(0), labels=torch.zeros(3).long()),
    "labels lie in 4 .. 4; allowed: 0 .. 2": lambda m: m.vlb(images(2), Noise(0), labels=torch.full((2,), 4)),
}


@pytest.mark.parametrize("message", WRONG_CALLS)
def test_wrong_calls(message):
    with pytest.raises((TypeError, ValueError), match=message):
        WRONG_CALLS[message](small(classes=3))


def test_labels_for_an_unconditional_model():
    with pytest.raises(ValueError, match="unconditional model; allowed: None"):
        small().vlb(images(2), Noise(0), labels=torch.zeros(2).long())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"levels": 1}, ValueError, "allowed: three positive sizes .*, 2 to 256 levels"),
        ({"head": "w"}, ValueError, "head is 'w'; allowed: eps, x, v, score, levels"),
        ({"schedule": "sine"}, ValueError, "schedule is 'sine'; allowed: linear, cosine, beta-linear, learned"),
        ({"fourier": (5, 2)}, ValueError, r"fourier is \(5, 2\); allowed: 0 <= n_min <= n_max"),
        ({"gamma_0": 6.0}, ScheduleError, "allowed: values that increase"),
        ({"shape": (1, 8, 9)}, ValueError, r"size \(8, 9\) with 2 widths; allowed: multiples of 2"),
    ],
)
def test_wrong_configurations(change, error, message):
    with pytest.raises(error, match=message):
        small(**change)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("gan", {}, "unknown model 'gan'; allowed: vdm"),
        ("vdm", {"shape": [1, 8, 8]}, "missing keys levels"),
        ("vdm", {"shape": [1, 8, 8], "levels": 17, "colour": 1}, "unknown keys colour; allowed: shape, levels"),
        ("vdm", {"shape": [1, 8], "levels": 17}, r"shape: \[1, 8\] has 2 entries; allowed: 3"),
        ("vdm", {"shape": [1, 8, 8], "levels": "17"}, "levels: '17' is a str; allowed: int"),
        ("vdm", {"shape": [1, 8, 8], "levels": 17, "network": {"width": 3}}, "network: unknown keys width"),
        ("vdm", {"shape": [1, 8, 8], "levels": 17, "head": "w"}, "head is 'w'"),
        (["vdm"], {}, r"unknown model \['vdm'\]"),
        ("vdm", {"shape": [1, 8, 8], "levels": 17, "network": {"heads": 0}}, "heads 0 over 48 channels; allowed"),
        ("vdm", [], r"\[\] is no object"),
    ],
)
def test_building_from_a_wrong_description(kind, config, message):
    with pytest.raises(ValueError, match=message):
        build(kind, config, "config.json")


def test_evaluation_refuses_what_does_not_fit():
    model, x = small(classes=3), images(4)
    wrong = {
        "labels have shape \\(8,\\); allowed: \\(4,\\)": {"labels": torch.zeros(8, dtype=torch.int64)},
        "labels are a list; allowed: a torch.int64 tensor": {"labels": [0, 1, 2, 0]},
        "labels lie in 0 .. 9; allowed: 0 .. 2, 3 for no label": {"labels": torch.tensor([0, 9, 0, 0])},
        "draws is 1.5; allowed: an integer >= 1": {"draws": 1.5},
        "draws is True; allowed: an integer >= 1": {"draws": True},
        "steps is 'all'; allowed": {"steps": "all"},
        "4 images 2000000000 times; allowed: 2\\*\\*32 draws": {"draws": 2_000_000_000},
    }
    for message, change in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            evaluate(model, x, **change)
    with pytest.raises(TypeError, match=r"x is dtype torch.float32; allowed: a torch.uint8"):
        evaluate(model, x.float())


def test_a_schedule_whose_learned_ends_have_crossed_has_no_bound():
    model = small()
    with torch.no_grad():
        model.gamma.gamma_0.fill_(5.5)
    with pytest.raises(
        ScheduleError, match=r"LinearSchedule at 256 steps: gamma goes from 5.5 to .*allowed: values that"
    ):
        evaluate(model, images(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 17.5}, "VDMConfig.levels: 17.5 is a float; allowed: int"),
        ({"fourier": (1, 2, 3)}, r"VDMConfig.fourier: \(1, 2, 3\) has 3 entries; allowed: 2"),
        ({"network": "unet"}, "VDMConfig.network: 'unet' is a str; allowed: UNetConfig, ConcatUNetConfig"),
        ({"gamma_0": "a"}, "VDMConfig.gamma_0: 'a' is a str; allowed: float"),
        ({"schedule": ["linear"]}, "VDMConfig.schedule: .*is a list; allowed: str"),
        ({"gamma_0": -1000.0}, "gamma_0 is -1000.0, gamma_1 is 5.0; allowed: -30 to 30"),
    ],
)
def test_values_of_a_wrong_type_or_size_are_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        VDMConfig(**({"shape": (1, 8, 8), "levels": 17, "network": SMALL} | change))
