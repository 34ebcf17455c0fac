"""The VDM's bound: against entropy, against independent float64 code, and its invariances."""

import math

import numpy as np
import pytest
import torch
from tiny import SMALL, exact_model, images, small

from fastdiff.diffusion import ScheduleError
from fastdiff.evaluation import evaluate
from fastdiff.io.configuration import ConfigError
from fastdiff.kernels import FastdiffError, InvalidTypeError, InvalidValueError, Noise, Stream
from fastdiff.models import VDM, VDMConfig, build


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
    x = (torch.rand(1000, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3).byte()
    model = exact_model(probabilities, -8.0, 8.0)
    bounds = [evaluate(model, x, T=T, draws=8).mean for T in (2, 8, 32, 128)]
    assert bounds == sorted(bounds, reverse=True)
    assert abs(bounds[-1] - evaluate(model, x, draws=8).mean) < 0.06


def recompute(model: VDM, x: torch.Tensor, noise: Noise, T: int | None, total: int) -> np.ndarray:
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
    t = u if T is None else (1 + np.floor(u * T)) / T
    gamma = g0 + (g1 - g0) * t
    alpha2, sigma2 = 1 / (1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
    z = np.sqrt(alpha2)[:, None] * data + np.sqrt(sigma2)[:, None] * eps
    with torch.no_grad():
        eps_hat = model.eps_hat(torch.tensor(z, dtype=torch.float32).view(x.shape), torch.tensor(gamma).float())
    square = ((eps - eps_hat.double().numpy().reshape(len(x), -1)) ** 2).sum(1)
    if T is None:
        diffusion = 0.5 * (g1 - g0) * square
    else:
        snr_gap = np.expm1(gamma - (g0 + (g1 - g0) * (t - 1 / T)))
        diffusion = 0.5 * T * snr_gap * square
    s1 = 1 / (1 + np.exp(-g1))
    prior = 0.5 * ((1 - s1) * data**2 + s1 - np.log(s1) - 1).sum(1)
    centres = (2 * np.arange(levels) + 1) / levels - 1
    logits = -0.5 * np.exp(-g0) * ((data + np.exp(g0 / 2) * eps_0)[..., None] - centres) ** 2
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    recon = -np.take_along_axis(log_p, k.astype(int)[..., None], -1)[..., 0].sum(1)
    return np.stack([recon, prior, diffusion])


@pytest.mark.parametrize("T", [None, 1, 7, 1000, 1_000_000])
@pytest.mark.parametrize("prediction", ["epsilon", "categorical"])
def test_the_bound_recomputed_in_float64(prediction, T):
    """Largest relative difference measured over these cases: 3e-5 (the network sees z_t rounded to float32)."""
    model, x, noise = small(prediction, gamma_0=-6.0), images(9), Noise(5, step=3, first_sample=4)
    vlb = model.vlb(x, noise, T, total=40)
    terms = torch.stack([vlb.recon, vlb.prior, vlb.diffusion]).detach().double().numpy()
    np.testing.assert_allclose(terms, recompute(model, x, noise, T, 40), rtol=1e-4)


def test_stratified_times_cut_the_variance_of_the_estimate():
    """The mean bound over 60 seeds: batches of 16 with common offsets, against 16 samples with independent times."""
    model, x = small(fourier=None), images(1).expand(16, 1, 8, 8).contiguous()
    with torch.no_grad():
        means = [
            [float(model(x, Noise(seed), stratified=stratified).vlb.total.mean()) for seed in range(60)]
            for stratified in (True, False)
        ]
    assert np.var(means[0]) < 0.5 * np.var(means[1])


def test_gradients_reach_every_parameter():
    model = small("categorical", augmented=True, num_classes=3)
    labels = torch.tensor([0, 1, 2, 3, 4])
    model.vlb(images(5), Noise(0), labels=labels).total.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_endpoints_get_the_gradient_of_the_bound():
    """Autograd against finite differences of the mean bound in the endpoints, the same noise on both sides."""
    model, x = small("categorical", gamma_0=-5.0, gamma_1=3.0), images(32)

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
    model, x = small(num_classes=3), images(4)
    torch.testing.assert_close(
        model.vlb(x, Noise(0)).total, model.vlb(x, Noise(0), labels=torch.full((4,), 3)).total, rtol=0, atol=0
    )
    assert not torch.equal(model.vlb(x, Noise(0)).total, model.vlb(x, Noise(0), labels=torch.zeros(4).long()).total)


def test_the_most_likely_image_has_the_nearest_levels():
    model = small()
    x = images(6)
    scale = torch.sigmoid(torch.tensor(8.0)).sqrt()
    centres = (2 * x.float() + 1) / 17 - 1
    assert torch.equal(model.most_likely(scale * (centres + 0.4 / 17)), x)
    assert torch.equal(model.most_likely(scale * (centres - 0.4 / 17)), x)
    assert model.most_likely(torch.full((1, 1, 8, 8), 9.0)).unique().tolist() == [16]
    assert model.most_likely(torch.full((1, 1, 8, 8), -9.0)).unique().tolist() == [0]


def test_the_categorical_prediction_is_exact_where_noise_vanishes():
    """At small gamma the posterior mean is the level under z_t, whatever the network returns."""
    model, x = small("categorical"), images(3)
    centres = (2 * x.float() + 1) / 17 - 1
    gamma = torch.full((3,), -12.0)
    alpha, sigma = torch.sigmoid(-gamma[0]).sqrt(), torch.sigmoid(gamma[0]).sqrt()
    eps = Noise(0).normal(x.shape)
    with torch.no_grad():
        eps_hat = model.eps_hat(alpha * centres + sigma * eps, gamma)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=2e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "categorical"])
def test_under_autocast_the_features_are_in_its_dtype(prediction, monkeypatch):
    """The latent stays float32, the network gets bfloat16, and eps_hat differs by bfloat16's rounding."""
    model, seen = small(prediction), []
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
    model = VDM(VDMConfig(shape=(3, 8, 8), levels=256, network=SMALL))
    assert model.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    z = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eps_hat(z, torch.zeros(2)), z)


# ------------------------------------------------------------------------------------------------ errors


WRONG_CALLS = {
    "uint8": lambda m: m.vlb(images(2).float(), Noise(0)),
    "x must have shape": lambda m: m(images(2)[..., :7], Noise(0)),
    r"0 \.\. 16, got 17": lambda m: m.vlb(images(2) + 17 - images(2), Noise(0)),
    "T must be an integer >= 1": lambda m: m.vlb(images(2), Noise(0), T=0),
    "int64": lambda m: m.vlb(images(2), Noise(0), labels=torch.zeros(2)),
    "labels must have shape": lambda m: m(images(2), Noise(0), torch.zeros(3).long()),
    "labels must be among": lambda m: m.vlb(images(2), Noise(0), labels=torch.full((2,), 4)),
    "loss": lambda m: m(images(2), Noise(0), loss="l1"),
}


@pytest.mark.parametrize("words", WRONG_CALLS)
def test_wrong_calls(words):
    with pytest.raises(InvalidTypeError if words in ("uint8", "int64") else InvalidValueError, match=words):
        WRONG_CALLS[words](small(num_classes=3))


def test_labels_for_an_unconditional_model():
    with pytest.raises(InvalidValueError, match="labels must be None"):
        small().vlb(images(2), Noise(0), labels=torch.zeros(2).long())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levels": 1}, "levels"),
        ({"levels": 17.5}, "levels must be an integer"),
        ({"prediction": "w"}, "prediction must be one of .*'velocity', 'score', 'edm', 'categorical'"),
        ({"sigma_data": 0.0}, "sigma_data must be finite and > 0"),
        ({"schedule": ["linear"]}, "schedule"),
        ({"fourier": (5, 2)}, "fourier"),
        ({"fourier": (1, 2, 3)}, "fourier must have 2 entries"),
        ({"gamma_0": 6.0}, "gamma_0 must be < gamma_1"),
        ({"gamma_0": -1000.0}, "gamma_0"),
        ({"network": "unet"}, "network"),
        ({"shape": (1, 8, 9)}, "multiples of 2"),
    ],
)
def test_wrong_configurations(change, words):
    with pytest.raises(FastdiffError, match=words) as caught:
        small(**change)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("gan", {}, "model must be one of vdm"),
        (["vdm"], {}, "model must be one of vdm"),
        ("vdm", {"shape": [1, 8, 8]}, "lacks the keys levels"),
        ("vdm", {"shape": [1, 8, 8], "levels": 17, "colour": 1}, "unknown keys colour"),
        ("vdm", {"shape": [1, 8, 8], "levels": 17, "network": {"heads": 5}}, "config.network.*heads"),
        ("vdm", [], "must be an object"),
    ],
)
def test_building_from_a_wrong_description(kind, config, words):
    with pytest.raises(ConfigError, match=f"config.json.*{words}"):
        build(kind, config, "config.json")


def test_a_schedule_whose_learned_endpoints_have_crossed_has_no_bound():
    model = small()
    with torch.no_grad():
        model.gamma.gamma_0.fill_(5.5)
    with pytest.raises(ScheduleError, match="gamma must increase"):
        evaluate(model, images(2))
