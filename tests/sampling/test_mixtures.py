"""Mixtures of latents: moments and densities in closed form, fits of known mixtures, sampling, folders."""

import bisect
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny import images, small, small_diffusevae, small_vae

import fastdiff
from fastdiff import Latents
from fastdiff.io import folders
from fastdiff.io.folders import CheckpointError
from fastdiff.kernels import FastdiffError, Noise, Stream
from fastdiff.sampling import LatentMixture, MixtureError, fit_mixture, load_mixture, mixtures
from fastdiff.sampling.mixtures import FIT_STEP, embedded_mixtures, fit_latents

scikit_learn = pytest.importorskip("sklearn.mixture")
scipy = pytest.importorskip("scipy")  # a dependency of scikit-learn


def mixture(components: int = 3, latent: int = 5, seed: int = 0) -> LatentMixture:
    """A mixture with components far from each other, one of them of weight 0 where there are at least 3."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(components, dtype=torch.float64, generator=generator) + 0.2
    if components > 2:
        weights[1] = 0.0
    means = 3.0 * torch.randn(components, latent, dtype=torch.float64, generator=generator)
    factors = torch.randn(components, latent, latent, dtype=torch.float64, generator=generator).mul(0.4).tril(-1)
    scales = torch.rand(components, latent, dtype=torch.float64, generator=generator) + 0.3
    return LatentMixture(weights / weights.sum(), means, factors + torch.diag_embed(scales))


def moments(mix: LatentMixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] and covariance [D, D] of a mixture, by the laws of total expectation and covariance."""
    mean = mix.weights @ mix.means
    within = torch.einsum("k,kij,klj->il", mix.weights, mix.factors, mix.factors)
    deviations = mix.means - mean
    return mean, within + torch.einsum("k,ki,kj->ij", mix.weights, deviations, deviations)


def equal(a: LatentMixture, b: LatentMixture) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("weights", "means", "factors"))


# ------------------------------------------------------------------------------------------------ draws


def test_moments_of_draws():
    """Mean and covariance of 200 000 draws within 4 standard errors of the mixture's (measured: at most 1.9)."""
    mix, count = mixture(), 200_000
    z = mix.draw(count, Noise(1))
    assert z.dtype == torch.float32
    mean, covariance = moments(mix)
    deviations = z.double() - mean
    products = deviations[:, :, None] * deviations[:, None, :]
    for values, expected in ((deviations, torch.zeros(5).double()), (products, covariance)):
        errors = (values.mean(0) - expected) / (values.std(0) / count**0.5)
        assert float(errors.abs().max()) < 4


def test_draws_by_their_definition():
    """One row at a time from the noise's contract, with a matrix product in NumPy: to float32's rounding (3e-8)."""
    mix, noise = mixture(), Noise(7, step=2, first_sample=11)
    z = mix.draw(9, noise, temperature=0.7).double().numpy()
    u = noise.at(stream=Stream.MIXTURE).uniform((9, 1)).double()[:, 0].tolist()
    eps = noise.at(stream=Stream.VAE).normal((9, 5)).double().numpy()
    edges, seen = np.cumsum(mix.weights.numpy()).tolist(), set()
    for row in range(9):
        k = bisect.bisect_left(edges, u[row])
        seen.add(k)
        expected = mix.means[k].numpy() + 0.7 * mix.factors[k].numpy() @ eps[row]
        np.testing.assert_allclose(z[row], expected, rtol=1e-7, atol=0)
    assert seen == {0, 2}  # and never component 1, of weight 0


@pytest.mark.parametrize("latent", [1, 5, 33])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_draws_are_bit_identical_in_any_batch(latent, batch):
    mix = mixture(4, latent)
    whole = mix.draw(50, Noise(3))
    parts = [mix.draw(min(batch, 50 - i), Noise(3, first_sample=i)) for i in range(0, 50, batch)]
    assert torch.equal(torch.cat(parts), whole)
    assert mix.draw(0, Noise(3)).shape == (0, latent)


def test_one_standard_normal_draws_what_the_prior_of_a_vae_draws():
    model, eye = small_vae(depth=1), torch.eye(5, dtype=torch.float64)[None]
    mix = LatentMixture(torch.ones(1).double(), torch.zeros(1, 5).double(), eye)
    noise = Noise(5, first_sample=3)
    assert torch.equal(mix.draw(7, noise), model.prior_latents(7, noise))
    ours = fastdiff.sample(model, 6, seed=2, latents=Latents(mixture=mix, temperature=0.5))
    assert torch.equal(ours, fastdiff.sample(model, 6, seed=2, latents=Latents(temperature=0.5)))


def test_temperature_0_draws_the_means():
    mix = mixture(2)
    z = mix.draw(20, Noise(1), temperature=0)
    distance = (z[:, None] - mix.means.float()).abs().amax(2).amin(1)
    assert float(distance.max()) == 0.0


@pytest.mark.parametrize("count", [1, 40])
def test_log_density(count):
    """Against SciPy's sum over the components, one of weight 0, and PyTorch's mixture, which allows no such weight."""
    mix, z = mixture(), 3.0 * torch.randn(count, 5, dtype=torch.float64)
    ours = mix.log_density(z)
    terms = [
        scipy.stats.multivariate_normal(mean, factor @ factor.T).logpdf(z.numpy()).reshape(count)
        for mean, factor in zip(mix.means.numpy(), mix.factors.numpy(), strict=True)
    ]
    total = scipy.special.logsumexp(terms, axis=0, b=mix.weights.numpy()[:, None])
    np.testing.assert_allclose(ours.numpy(), total, rtol=1e-13)  # measured 3e-15
    assert ours.dtype == torch.float64
    torch.testing.assert_close(mix.log_density(z.float()), ours, rtol=1e-5, atol=1e-5)
    mix = mixture(2)
    normals = torch.distributions.MultivariateNormal(mix.means, scale_tril=mix.factors)
    weights = torch.distributions.Categorical(mix.weights)
    theirs = torch.distributions.MixtureSameFamily(weights, normals).log_prob(z)
    torch.testing.assert_close(mix.log_density(z), theirs, rtol=1e-13, atol=0)  # measured 9e-16


def test_log_density_far_away_is_finite():
    """A density of e^-1e9, which is 0 in float64."""
    assert -1e12 < float(mixture().log_density(torch.full((1, 5), 1e5))) < -1e9


# ------------------------------------------------------------------------------------------------ fits


def test_a_fit_recovers_a_known_mixture():
    """20 000 latents of two components: weights, means, covariances within 4 standard errors, up to the order.

    Relative to the component's scales, sqrt(1 / n) for a mean, at most sqrt(2 / n) for a covariance; measured 2.1, and
    3.3 over 5 seeds.
    """
    truth = mixture(2)
    fit = fit_latents(truth.draw(20_000, Noise(4)), 2, seed=1)
    order = torch.cdist(truth.means, fit.means).argmin(1)
    assert sorted(order.tolist()) == [0, 1]
    weights, means = fit.weights[order], fit.means[order]
    counts = 20_000 * truth.weights
    spread = (truth.weights * (1 - truth.weights) / 20_000).sqrt()
    assert float(((weights - truth.weights) / spread).abs().max()) < 4
    for k, j in enumerate(order.tolist()):
        covariance, found = (mix.factors[i] @ mix.factors[i].T for mix, i in ((truth, k), (fit, j)))
        scale = covariance.diagonal().sqrt()
        assert float(((means[k] - truth.means[k]) / scale).abs().max() * counts[k].sqrt()) < 4
        error = (found - covariance) / (scale[:, None] * scale)
        assert float(error.abs().max() * (counts[k] / 2).sqrt()) < 4
    z = truth.draw(5000, Noise(9))
    loss = float((truth.log_density(z) - fit.log_density(z)).mean())
    assert 0 < loss < 0.005  # half a nat for each of 41 parameters, / 20 000, is 0.001


def test_a_fit_is_that_of_scikit_learn():
    """`score_samples` of one fitted to the same latents from the same state: relative error 1e-13 (measured 9e-16)."""
    z = torch.randn(300, 4) @ torch.randn(4, 4)
    fit = fit_latents(z, 5, seed=3)
    state = Noise(3, step=FIT_STEP, stream=Stream.MIXTURE).integer() % 2**32
    theirs = scikit_learn.GaussianMixture(5, random_state=state, max_iter=1000).fit(z.double().numpy())
    np.testing.assert_allclose(fit.log_density(z).numpy(), theirs.score_samples(z.double().numpy()), rtol=1e-13)
    assert fit.fitted_to is not None
    assert fit.fitted_to["nats"] == pytest.approx(theirs.score(z.double().numpy()))
    assert equal(fit, fit_latents(z, 5, seed=3))
    assert not equal(fit, fit_latents(z, 5, seed=4))


@pytest.mark.parametrize("depth", [1, 2])
def test_one_component_has_the_moments_of_the_latents(depth):
    """z_1 = mean + deviation · eps of every image in eval mode, in any batch: moments to 1e-7 (measured 3e-8).

    A DiffuseVAE stands for its first stage, and the mode of the model is restored.
    """
    model, x = small_diffusevae(1, depth=depth), images(40)
    vae = model.vae
    mean, logvar = vae.encode(x)[0]
    z = mean + (0.5 * logvar).exp() * Noise(6, step=FIT_STEP, stream=Stream.VAE).normal((40, 5))
    vae.train()
    for mix in (vae, model):
        fit = fit_mixture(mix, x, components=1, seed=6, batch_size=7)
        torch.testing.assert_close(fit.means[0], z.double().mean(0), rtol=0, atol=1e-7)
        covariance = torch.cov(z.double().T, correction=0) + 1e-6 * torch.eye(5).double()  # scikit-learn's
        torch.testing.assert_close(fit.factors[0] @ fit.factors[0].T, covariance, rtol=0, atol=1e-7)
        assert fit.fitted_to is not None
        assert (fit.fitted_to["model"], fit.fitted_to["latents"]) == ("hvae", 40)
        assert fit.fitted_to["config"]["depth"] == depth
    assert vae.training


def test_no_scikit_learn(monkeypatch):
    for name in ("sklearn", "sklearn.exceptions", "sklearn.mixture"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MixtureError, match="needs scikit-learn"):
        fit_mixture(small_vae(), images(8), components=2)
    assert mixture().draw(2, Noise(0)).shape == (2, 5)  # drawing needs none


def test_a_fit_that_does_not_converge(monkeypatch):
    monkeypatch.setattr(mixtures, "ITERATIONS", 1)
    with pytest.raises(MixtureError, match="not converged in 1 iterations"):
        fit_latents(torch.randn(100, 3), 4)


def test_latents_that_repeat_can_be_fitted():
    """Fewer different latents than components: no warning, and finite draws."""
    fit = fit_latents(torch.randn(3, 2).repeat(10, 1), 5)
    assert fit.draw(4, Noise(0)).isfinite().all()


def test_a_covariance_that_is_singular():
    """Latents on a line, so far apart that rounding removes the 1e-6 beside their variance."""
    line = 1e7 * torch.outer(torch.arange(5.0), torch.tensor([1.0, 3.0]))
    with pytest.raises(MixtureError, match="the fit of 1 components to 5 latents failed"):
        fit_latents(line, 1)


# ------------------------------------------------------------------------------------------------ folders


def test_round_trip(tmp_path):
    mix = fit_latents(torch.randn(50, 3), 2)
    path = mix.save(tmp_path / "m")
    again = load_mixture(path)
    assert equal(again, mix)
    assert again.fitted_to == mix.fitted_to
    assert torch.equal(again.draw(8, Noise(1)), mix.draw(8, Noise(1)))
    record = json.loads((path / "mixture.json").read_text())
    assert (record["kind"], record["components"], record["latent"]) == ("latent-mixture", 2, 3)
    other = mixture(4)
    assert equal(load_mixture(other.save(path)), other)  # replaced


def test_embedded_mixtures_by_name(tmp_path, monkeypatch):
    """The name takes precedence over a folder of the same name, ./NAME is the folder; another name lists these."""
    monkeypatch.setattr("fastdiff.sampling.mixtures.files", lambda _: tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    assert embedded_mixtures() == []
    shipped, own = fit_latents(torch.randn(50, 3), 2), fit_latents(torch.randn(50, 3), 1)
    shipped.save(tmp_path / "assets/mixtures/a-model")
    own.save(tmp_path / "a-model")
    assert embedded_mixtures() == ["a-model"]
    assert equal(load_mixture("a-model"), shipped)
    assert equal(load_mixture("./a-model"), own)
    assert equal(load_mixture(Path("a-model")), own)
    with pytest.raises(CheckpointError, match=r"the name of an embedded one \(a-model\), got 'another'"):
        load_mixture("another")


def rewrite(path, name, data: bytes) -> None:
    """Replace a file and bring the manifest up to date."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / folders.MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    (path / folders.MANIFEST).write_text(json.dumps(manifest))


def change(path, **values) -> None:
    """Change entries of mixture.json, or tensors."""
    record = json.loads((path / "mixture.json").read_text())
    tensors = folders.read_folder(path)["mixture.safetensors"]
    for name, value in values.items():
        (tensors if isinstance(value, torch.Tensor) else record)[name] = value
    rewrite(path, "mixture.json", json.dumps(record).encode())
    rewrite(path, "mixture.safetensors", save(tensors))


def flip(path) -> None:
    data = bytearray((path / "mixture.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "mixture.safetensors").write_bytes(data)


FAULTS = {
    "mixture.safetensors is damaged": flip,
    "mixture.safetensors is missing": lambda p: (p / "mixture.safetensors").unlink(),
    "must be the folder of a mixture": lambda p: change(p, kind="other"),
    "must be the folder of a mixture, or": lambda p: rewrite(p, "mixture.json", b"[]"),
    "mixture.safetensors must hold weights, means, factors": lambda p: change(p, more=torch.ones(1)),
    "mixture.safetensors: .*weights must be a torch.float64": lambda p: change(p, weights=torch.ones(3)),
    "mixture.safetensors: .*weights must be >= 0 with sum 1": lambda p: change(p, weights=torch.ones(3).double()),
    "mixture.safetensors: .*fitted_to must": lambda p: change(p, fitted_to=3),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_on_disk(message, tmp_path):
    path = mixture().save(tmp_path / "m")
    FAULTS[message](path)
    with pytest.raises(CheckpointError, match=message.removesuffix(", or")):
        load_mixture(path)


def test_a_mixture_is_no_model_and_a_model_is_no_mixture(tmp_path):
    model, mix = small_vae().save(tmp_path / "model"), mixture().save(tmp_path / "mixture")
    with pytest.raises(CheckpointError, match="must be the checkpoint of a model"):
        fastdiff.load(mix)
    with pytest.raises(CheckpointError, match="must be the folder of a mixture"):
        load_mixture(model)
    with pytest.raises(CheckpointError, match="it is a checkpoint"):
        mixture().save(model)
    assert fastdiff.load(model).kind == "hvae"


# ------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("depth", [1, 2])
def test_images_of_a_vae_are_those_of_the_latents(depth):
    """z_1 is the mixture's, whatever the depth: its images are its decoded draws."""
    model, mix = small_vae(depth=depth), mixture()
    ours = fastdiff.sample(model, 6, seed=4, latents=Latents(mixture=mix, temperature=0.8), output="levels")
    assert torch.equal(ours, model.decode(mix.draw(6, Noise(4), 0.8)))
    plain = fastdiff.sample(model, 6, seed=4, latents=Latents(temperature=0.8), output="levels")
    assert not torch.equal(ours, plain)


@pytest.mark.parametrize("depth", [1, 2])
def test_images_of_a_diffusevae_start_from_the_latents(depth, tmp_path):
    """Those of E[x | z] for the mixture's draws; a folder stands for the mixture."""
    model, mix = small_diffusevae(2, depth=depth), mixture()
    request = {"steps": 4, "seed": 3, "output": "levels"}
    latents = Latents(mixture=mix.save(tmp_path / "m"), temperature=0.5)
    ours = fastdiff.sample(model, 5, latents=latents, **request)
    cond = model.cond_from_latents(mix.draw(5, Noise(3), 0.5))
    assert torch.equal(ours, fastdiff.sample(model, 5, cond=cond, **request))
    assert not torch.equal(ours, fastdiff.sample(model, 5, latents=Latents(temperature=0.5), **request))
    parts = fastdiff.sample(model, 5, latents=latents, batch_size=2, **request)
    assert (parts != ours).float().mean() < 0.02  # rounding may move a pixel by a level


def test_mixtures_that_do_not_fit_the_model(tmp_path):
    with pytest.raises(FastdiffError, match="no latents"):
        fastdiff.sample(small(), 1, latents=Latents(mixture=mixture()))
    for model in (small_vae(), small_diffusevae(1, depth=2)):
        with pytest.raises(FastdiffError, match="mixture must have latents of 5 dimensions"):
            fastdiff.sample(model, 1, latents=Latents(mixture=mixture(2, 4)))
        with pytest.raises(CheckpointError, match="nowhere"):
            fastdiff.sample(model, 1, latents=Latents(mixture=tmp_path / "nowhere"))
        fitted = fit_mixture(model, images(8), components=1)
        fitted.check_fits(model.autoencoder)
        with pytest.raises(FastdiffError, match="depth is 2, expected 1"):
            fastdiff.sample(small_vae(depth=1), 1, latents=Latents(mixture=fitted))


# ------------------------------------------------------------------------------------------------ rejections

PARTS = {"weights": [0.25, 0.75], "means": [[0.0], [1.0]], "factors": [[[1.0]], [[2.0]]]}
NO_MIXTURE = [
    ("weights must", {"weights": [-0.5, 1.5]}), ("weights must", {"weights": [0.5, 0.75]}),
    ("must have shapes", {"means": [[0.0]]}), ("must have shapes", {"factors": [[1.0], [1.0]]}),
    ("must have shapes", {"weights": [], "means": [], "factors": []}), ("must have shapes", {"weights": 1.0}),
    ("means must be finite", {"means": [[0.0], [float("nan")]]}),
    ("factors must be lower", {"factors": [[[1.0]], [[0.0]]]}),
    ("factors must be lower", {"means": [[0.0, 0.0]] * 2, "factors": [[[1.0, 0.5], [0.0, 1.0]]] * 2}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "changes"), NO_MIXTURE)
def test_tensors_that_are_no_mixture(message, changes):
    parts = {name: torch.tensor(value, dtype=torch.float64) for name, value in (PARTS | changes).items()}
    with pytest.raises(FastdiffError, match=message):
        LatentMixture(**parts)


def test_types_that_are_no_mixture():
    parts = {name: torch.tensor(value, dtype=torch.float64) for name, value in PARTS.items()}
    assert (LatentMixture(**parts).components, LatentMixture(**parts).latent) == (2, 1)
    for value in (torch.zeros(2, 1), [[0.0]]):
        with pytest.raises(TypeError, match="means must be a torch"):
            LatentMixture(**(parts | {"means": value}))


CALLS = [
    ("z must have shape", lambda: mixture().log_density(torch.zeros(2, 4))),
    ("no latents z", lambda: fit_mixture(small(), images(2))),
    ("model must", lambda: fit_mixture(torch.nn.Identity(), images(2))),
    ("x must", lambda: fit_mixture(small_vae(), images(2).float())),
    ("x must", lambda: fit_mixture(small_vae(), images(2, shape=(1, 4, 4)))),
    ("components must", lambda: fit_mixture(small_vae(), images(2), 3)),
    ("components must", lambda: fit_mixture(small_vae(), images(1), 1)),
    ("components must", lambda: fit_mixture(small_vae(), images(2), 0)),
    ("components must", lambda: fit_mixture(small_vae(), images(0), 1)),
    ("batch_size", lambda: fit_mixture(small_vae(), images(2), 1, batch_size=0)),
    ("seed", lambda: fit_mixture(small_vae(), images(2), 1, seed=-1)),
    ("latents must be finite", lambda: fit_latents(torch.full((2, 1), torch.nan), 1)),
]


@pytest.mark.parametrize(("message", "call"), CALLS, ids=[f"{k} {message}" for k, (message, _) in enumerate(CALLS)])
def test_arguments_that_are_rejected(message, call):
    with pytest.raises(FastdiffError, match=message):
        call()
