"""Mixtures of latents: moments and densities in closed form, fits of known mixtures, sampling, what is refused."""

import bisect
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tiny import images, small, small_diffusevae, small_vae

import fastdiff
from fastdiff import latent_mixture, storage
from fastdiff.kernels import Noise, Stream
from fastdiff.latent_mixture import FIT_STEP, LatentMixture, MixtureError, fit_latents, fit_mixture, load_mixture
from fastdiff.storage import CheckpointError

scikit_learn = pytest.importorskip("sklearn.mixture")
scipy = pytest.importorskip("scipy")  # which scikit-learn brings


def mixture(components: int = 3, latent: int = 5, seed: int = 0) -> LatentMixture:
    """A mixture with components apart from each other, one of them of weight 0 where there are at least 3."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(components, dtype=torch.float64, generator=generator) + 0.2
    if components > 2:
        weights[1] = 0.0
    means = 3.0 * torch.randn(components, latent, dtype=torch.float64, generator=generator)
    factors = torch.randn(components, latent, latent, dtype=torch.float64, generator=generator).mul(0.4).tril(-1)
    scales = torch.rand(components, latent, dtype=torch.float64, generator=generator) + 0.3
    return LatentMixture(weights / weights.sum(), means, factors + torch.diag_embed(scales))


def moments(given: LatentMixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] and covariance [D, D] of a mixture, by the laws of total expectation and covariance."""
    mean = given.weights @ given.means
    within = torch.einsum("k,kij,klj->il", given.weights, given.factors, given.factors)
    apart = given.means - mean
    return mean, within + torch.einsum("k,ki,kj->ij", given.weights, apart, apart)


def same(a: LatentMixture, b: LatentMixture) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("weights", "means", "factors"))


# ------------------------------------------------------------------------------------------------ draws


def test_moments_of_draws():
    """Mean and covariance of 200 000 draws within 4 standard errors of the mixture's (measured: at most 1.9)."""
    given, count = mixture(), 200_000
    z = given.draw(count, Noise(1))
    assert z.dtype == torch.float32
    mean, covariance = moments(given)
    apart = z.double() - mean
    products = apart[:, :, None] * apart[:, None, :]
    for values, expected in ((apart, torch.zeros(5).double()), (products, covariance)):
        errors = (values.mean(0) - expected) / (values.std(0) / count**0.5)
        assert float(errors.abs().max()) < 4


def test_draws_by_their_definition():
    """One row at a time from the noise's contract, with a matrix product in NumPy: to float32's rounding (3e-8)."""
    given, noise = mixture(), Noise(7, step=2, first_sample=11)
    z = given.draw(9, noise, temperature=0.7).double().numpy()
    u = noise.at(stream=Stream.MIXTURE).uniform((9, 1)).double()[:, 0].tolist()
    eps = noise.at(stream=Stream.VAE).normal((9, 5)).double().numpy()
    edges, seen = np.cumsum(given.weights.numpy()).tolist(), set()
    for row in range(9):
        k = bisect.bisect_left(edges, u[row])
        seen.add(k)
        expected = given.means[k].numpy() + 0.7 * given.factors[k].numpy() @ eps[row]
        np.testing.assert_allclose(z[row], expected, rtol=1e-7, atol=0)
    assert seen == {0, 2}  # and never component 1, of weight 0


@pytest.mark.parametrize("latent", [1, 5, 33])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_draws_are_bit_identical_in_any_batch(latent, batch):
    given = mixture(4, latent)
    whole = given.draw(50, Noise(3))
    parts = [given.draw(min(batch, 50 - i), Noise(3, first_sample=i)) for i in range(0, 50, batch)]
    assert torch.equal(torch.cat(parts), whole)
    assert given.draw(0, Noise(3)).shape == (0, latent)


def test_one_standard_normal_draws_what_the_prior_of_a_vae_draws():
    model, eye = small_vae(depth=1), torch.eye(5, dtype=torch.float64)[None]
    given = LatentMixture(torch.ones(1).double(), torch.zeros(1, 5).double(), eye)
    noise = Noise(5, first_sample=3)
    assert torch.equal(given.draw(7, noise), model.prior_latents(7, noise))
    left = fastdiff.sample(model, 6, seed=2, mixture=given, temperature=0.5)
    assert torch.equal(left, fastdiff.sample(model, 6, seed=2, temperature=0.5))


def test_temperature_0_draws_the_means():
    given = mixture(2)
    z = given.draw(20, Noise(1), temperature=0)
    distance = (z[:, None] - given.means.float()).abs().amax(2).amin(1)
    assert float(distance.max()) == 0.0


@pytest.mark.parametrize("count", [1, 40])
def test_log_density(count):
    """Against SciPy's sum over the components, one of weight 0, and PyTorch's mixture, which knows no such weight."""
    given, z = mixture(), 3.0 * torch.randn(count, 5, dtype=torch.float64)
    ours = given.log_density(z)
    terms = [
        scipy.stats.multivariate_normal(mean, factor @ factor.T).logpdf(z.numpy()).reshape(count)
        for mean, factor in zip(given.means.numpy(), given.factors.numpy(), strict=True)
    ]
    total = scipy.special.logsumexp(terms, axis=0, b=given.weights.numpy()[:, None])
    np.testing.assert_allclose(ours.numpy(), total, rtol=1e-13)  # measured 3e-15
    assert ours.dtype == torch.float64
    torch.testing.assert_close(given.log_density(z.float()), ours, rtol=1e-5, atol=1e-5)
    given = mixture(2)
    normals = torch.distributions.MultivariateNormal(given.means, scale_tril=given.factors)
    weights = torch.distributions.Categorical(given.weights)
    theirs = torch.distributions.MixtureSameFamily(weights, normals).log_prob(z)
    torch.testing.assert_close(given.log_density(z), theirs, rtol=1e-13, atol=0)  # measured 9e-16


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
        covariance, found = (given.factors[i] @ given.factors[i].T for given, i in ((truth, k), (fit, j)))
        scale = covariance.diagonal().sqrt()
        assert float(((means[k] - truth.means[k]) / scale).abs().max() * counts[k].sqrt()) < 4
        error = (found - covariance) / (scale[:, None] * scale)
        assert float(error.abs().max() * (counts[k] / 2).sqrt()) < 4
    z = truth.draw(5000, Noise(9))
    assert (
        0 < float((truth.log_density(z) - fit.log_density(z)).mean()) < 0.005
    )  # half a nat for each of 41 parameters, / 20 000, is 0.001


def test_a_fit_is_that_of_scikit_learn():
    """score_samples of one fitted to the same latents from the same state: relative error 1e-13 (measured 9e-16)."""
    z = torch.randn(300, 4) @ torch.randn(4, 4)
    fit = fit_latents(z, 5, seed=3)
    state = Noise(3, step=FIT_STEP, stream=Stream.MIXTURE).integer() % 2**32
    theirs = scikit_learn.GaussianMixture(5, random_state=state, max_iter=1000).fit(z.double().numpy())
    np.testing.assert_allclose(fit.log_density(z).numpy(), theirs.score_samples(z.double().numpy()), rtol=1e-13)
    assert fit.fitted_to is not None
    assert fit.fitted_to["nats"] == pytest.approx(theirs.score(z.double().numpy()))
    assert same(fit, fit_latents(z, 5, seed=3))
    assert not same(fit, fit_latents(z, 5, seed=4))


@pytest.mark.parametrize("depth", [1, 2])
def test_one_component_has_the_moments_of_the_latents(depth):
    """z_1 = mean + deviation · eps of every image in eval mode, in any batch: moments to 1e-7 (measured 3e-8).

    Of a DiffuseVAE the first stage is taken, and the mode of the model stays.
    """
    model, x = small_diffusevae(1, depth=depth), images(40)
    vae = model.vae
    mean, logvar = vae.encode(x)[0]
    z = mean + (0.5 * logvar).exp() * Noise(6, step=FIT_STEP, stream=Stream.VAE).normal((40, 5))
    vae.train()
    for given in (vae, model):
        fit = fit_mixture(given, x, components=1, seed=6, batch_size=7)
        torch.testing.assert_close(fit.means[0], z.double().mean(0), rtol=0, atol=1e-7)
        covariance = torch.cov(z.double().T, correction=0) + 1e-6 * torch.eye(5).double()  # scikit-learn's
        torch.testing.assert_close(fit.factors[0] @ fit.factors[0].T, covariance, rtol=0, atol=1e-7)
        assert fit.fitted_to is not None
        assert (fit.fitted_to["model"], fit.fitted_to["latents"]) == ("hvae", 40)
        assert fit.fitted_to["config"]["depth"] == depth
    assert vae.training


def test_no_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MixtureError, match=r"needs scikit-learn: pip install scikit-learn \(the extra `mixture`\)"):
        fit_mixture(small_vae(), images(8), components=2)
    assert mixture().draw(2, Noise(0)).shape == (2, 5)  # which needs none


def test_a_fit_that_does_not_converge(monkeypatch):
    monkeypatch.setattr(latent_mixture, "ITERATIONS", 1)
    with pytest.raises(MixtureError, match="4 components of 100 latents have not converged in 1 iterations; allowed"):
        fit_latents(torch.randn(100, 3), 4)


def test_latents_that_repeat_can_be_fitted():
    """Fewer different latents than components: no warning, and a mixture that is one."""
    fit = fit_latents(torch.randn(3, 2).repeat(10, 1), 5)
    assert fit.draw(4, Noise(0)).isfinite().all()


def test_a_covariance_that_is_none():
    """Latents on a line, so far apart that 1e-6 is lost beside their variance."""
    line = 1e7 * torch.outer(torch.arange(5.0), torch.tensor([1.0, 3.0]))
    with pytest.raises(MixtureError, match="1 components of 5 latents: "):
        fit_latents(line, 1)


# ------------------------------------------------------------------------------------------------ folders


def test_round_trip(tmp_path):
    given = fit_latents(torch.randn(50, 3), 2)
    path = given.save(tmp_path / "m")
    again = load_mixture(path)
    assert same(again, given)
    assert again.fitted_to == given.fitted_to
    record = json.loads((path / "mixture.json").read_text())
    assert (record["kind"], record["components"], record["latent"]) == ("latent-mixture", 2, 3)
    assert torch.equal(again.draw(8, Noise(1)), given.draw(8, Noise(1)))
    other = mixture(4)
    assert same(load_mixture(other.save(path)), other)  # replaced


def rewrite(path, name, data: bytes) -> None:
    """Replace a file and bring the manifest up to date."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / storage.MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(data), "crc32": storage.zlib.crc32(data)}
    (path / storage.MANIFEST).write_text(json.dumps(manifest))


def change(path, **values) -> None:
    """Change entries of mixture.json, or tensors."""
    record = json.loads((path / "mixture.json").read_text())
    tensors = storage.read_folder(path)["mixture.safetensors"]
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
    "mixture.json: kind is 'other'; allowed: 'latent-mixture'": lambda p: change(p, kind="other"),
    "mixture.json: 4 components, latent 5; .* of mixture.safetensors, 3 and 5": lambda p: change(p, components=4),
    "mixture.json: keys .*, colour; allowed": lambda p: change(p, colour="red"),
    "mixture.json: kind is \\[\\]; allowed": lambda p: rewrite(p, "mixture.json", b"[]"),
    "mixture.safetensors: tensors .*; allowed: weights, means, factors": lambda p: change(p, more=torch.ones(1)),
    "mixture.safetensors: LatentMixture: weights is dtype torch.float32": lambda p: change(p, weights=torch.ones(3)),
    "mixture.safetensors: LatentMixture: weights are at least": lambda p: change(p, weights=torch.ones(3).double()),
    "mixture.safetensors: LatentMixture: fitted_to is 3": lambda p: change(p, fitted_to=3),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_on_disk(message, tmp_path):
    path = mixture().save(tmp_path / "m")
    FAULTS[message](path)
    with pytest.raises(CheckpointError, match=message):
        load_mixture(path)


def test_a_mixture_is_no_model_and_a_model_is_no_mixture(tmp_path):
    model, given = small_vae().save(tmp_path / "model"), mixture().save(tmp_path / "mixture")
    with pytest.raises(CheckpointError, match=r"mixture holds no config.json but mixture.*allowed: a model's"):
        fastdiff.load(given)
    with pytest.raises(
        CheckpointError, match=r"model holds no mixture.json but config.json.*a latent mixture's folder"
    ):
        load_mixture(model)
    with pytest.raises(CheckpointError, match=r"model is a checkpoint without mixture.json; allowed: a new path"):
        mixture().save(model)
    assert fastdiff.load(model).kind == "hvae"


# ------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("depth", [1, 2])
def test_images_of_a_vae_are_those_of_the_latents(depth):
    """z_1 is the mixture's, whatever the depth: its images are its decoded draws."""
    model, given = small_vae(depth=depth), mixture()
    ours = fastdiff.sample(model, 6, seed=4, mixture=given, temperature=0.8, output="levels")
    assert torch.equal(ours, model.decode(given.draw(6, Noise(4), 0.8)))
    assert not torch.equal(ours, fastdiff.sample(model, 6, seed=4, temperature=0.8, output="levels"))


@pytest.mark.parametrize("depth", [1, 2])
def test_images_of_a_diffusevae_start_from_the_latents(depth, tmp_path):
    """The same draws where the VAE's prior is made to give them; a folder stands for the mixture."""
    model, given = small_diffusevae(2, depth=depth), mixture()
    ours = fastdiff.sample(model, 5, steps=4, seed=3, mixture=given.save(tmp_path / "m"), latent_temperature=0.5)
    plain = fastdiff.sample(model, 5, steps=4, seed=3, latent_temperature=0.5)
    assert not torch.equal(ours, plain)
    model.vae.prior_latents = lambda count, noise, temperature: given.draw(count, noise, temperature)
    told = fastdiff.sample(model, 5, steps=4, seed=3, latent_temperature=0.5)
    assert torch.equal(ours, told)
    parts = fastdiff.sample(model, 5, steps=4, seed=3, latent_temperature=0.5, batch_size=2, output="levels")
    whole = fastdiff.sample(model, 5, steps=4, seed=3, latent_temperature=0.5, output="levels")
    assert (parts != whole).float().mean() < 0.02  # rounding may move a pixel by a level


def test_what_sampling_refuses(tmp_path):
    message = r"mixture is LatentMixture\(components=3, latent=5\) for a model without a VAE; allowed: None"
    with pytest.raises(ValueError, match=message):
        fastdiff.sample(small(), 1, mixture=mixture())
    for model in (small_vae(), small_diffusevae(1)):
        with pytest.raises(ValueError, match=r"mixture has latents of 4 dimensions; allowed: 5, the model's"):
            fastdiff.sample(model, 1, mixture=mixture(2, 4))
        with pytest.raises(TypeError, match=r"mixture is 3; allowed: a LatentMixture, its folder, or None"):
            fastdiff.sample(model, 1, mixture=3)  # pyright: ignore[reportArgumentType]
        with pytest.raises(CheckpointError, match="nowhere is no folder"):
            fastdiff.sample(model, 1, mixture=tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ refusals

PARTS = {"weights": [0.25, 0.75], "means": [[0.0], [1.0]], "factors": [[[1.0]], [[2.0]]]}
NO_MIXTURE = {
    r"weights are at least -0.5, of sum 1.0; allowed: >= 0, of sum 1": {"weights": [-0.5, 1.5]},
    r"of sum 1.25; allowed: >= 0, of sum 1": {"weights": [0.5, 0.75]},
    r"shapes \(2,\), \(1, 1\), \(2, 1, 1\); allowed: \[K\], \[K, D\]": {"means": [[0.0]]},
    r"shapes \(2,\), \(2, 1\), \(2, 1\); allowed": {"factors": [[1.0], [1.0]]},
    r"shapes \(0,\), \(0,\), \(0,\); allowed": {"weights": [], "means": [], "factors": []},
    r"shapes \(\), \(2, 1\), \(2, 1, 1\); allowed": {"weights": 1.0},
    r"means holds values that are not finite": {"means": [[0.0], [float("nan")]]},
    r"factors hold 0.0 on the diagonal; allowed: numbers > 0": {"factors": [[[1.0]], [[0.0]]]},
    r"factors hold values above the diagonal; allowed: lower": {
        "means": [[0.0, 0.0]] * 2, "factors": [[[1.0, 0.5], [0.0, 1.0]]] * 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("message", NO_MIXTURE)
def test_values_that_are_no_mixture(message):
    parts = {name: torch.tensor(value, dtype=torch.float64) for name, value in (PARTS | NO_MIXTURE[message]).items()}
    with pytest.raises(ValueError, match=message):
        LatentMixture(**parts)


def test_types_that_are_no_mixture():
    parts = {name: torch.tensor(value, dtype=torch.float64) for name, value in PARTS.items()}
    assert repr(LatentMixture(**parts)) == "LatentMixture(components=2, latent=1)"
    for value, given in ((torch.zeros(2, 1), "dtype torch.float32"), ([[0.0]], "a list")):
        with pytest.raises(TypeError, match=f"means is {given}; allowed: a torch.float64 tensor"):
            LatentMixture(**(parts | {"means": value}))


CALLS = {
    "draw: count is -1; allowed: an integer >= 0": lambda: mixture().draw(-1, Noise(0)),
    "draw: count is True; allowed": lambda: mixture().draw(True, Noise(0)),
    "draw: noise is a int; allowed: a Noise": lambda: mixture().draw(1, 3),
    "draw: temperature is -1; allowed: a finite number >= 0": lambda: mixture().draw(1, Noise(0), -1),
    "draw: temperature is nan; allowed": lambda: mixture().draw(1, Noise(0), float("nan")),
    r"log_density: z has shape \(2, 4\); allowed: \[N, 5\]": lambda: mixture().log_density(torch.zeros(2, 4)),
    "log_density: z is dtype torch.int64; allowed": lambda: mixture().log_density(torch.zeros(2, 5).long()),
    "fit_mixture: model is a VDM; allowed: a HVAE or a DiffuseVAE": lambda: fit_mixture(small(), images(2)),
    "fit_mixture: x is dtype torch.float32": lambda: fit_mixture(small_vae(), images(2).float()),
    r"fit_mixture: x has shape \(2, 1, 4, 4\)": lambda: fit_mixture(small_vae(), images(2, shape=(1, 4, 4))),
    "fit_mixture: 2 images for 3 components; allowed: at least 3": lambda: fit_mixture(small_vae(), images(2), 3),
    "fit_mixture: 1 images for 1 components; allowed: at least 2": lambda: fit_mixture(small_vae(), images(1), 1),
    "fit_mixture: components is 0; allowed": lambda: fit_mixture(small_vae(), images(2), 0),
    "fit_mixture: components is 2.0; allowed": lambda: fit_mixture(small_vae(), images(2), 2.0),
    "fit_mixture: batch_size is 0; allowed": lambda: fit_mixture(small_vae(), images(2), 1, batch_size=0),
    "seed is -1; allowed: 0 <= seed": lambda: fit_mixture(small_vae(), images(2), 1, seed=-1),
    "fit_latents: 2 latents for 3 components; allowed": lambda: fit_latents(torch.zeros(2, 1), 3),
    "fit_latents: latents are dtype torch.int64; allowed": lambda: fit_latents(torch.zeros(2, 1).long(), 1),
    r"fit_latents: latents have shape \(2,\); allowed: \[N, D\]": lambda: fit_latents(torch.zeros(2), 1),
    "fit_latents: latents hold values that are not finite": lambda: fit_latents(torch.full((2, 1), torch.nan), 1),
}


@pytest.mark.parametrize("message", CALLS)
def test_arguments_out_of_range(message):
    with pytest.raises((TypeError, ValueError), match=message):
        CALLS[message]()
