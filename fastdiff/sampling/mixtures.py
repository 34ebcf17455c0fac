"""Mixtures of latents: a Gaussian mixture in place of a VAE's prior (Ghosh et al. 2020, arXiv:1903.12436).

The aggregate posterior, z_1 ~ q(z_1 | x) over all x, may differ from the prior. A mixture Σ_k w_k N(m_k, L_k L_kᵀ) that
is fitted to it after training is sampled in place of the prior, and the networks stay as they are; DiffuseVAE (Pandey
et al. 2022) samples so. It changes samples only: the bound is that of the prior.
"""

import math
import warnings
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from ..io import folders
from ..io.configuration import ConfigError, differences, from_dict, to_dict
from ..io.folders import CheckpointError, Json
from ..kernels import FastdiffError, InvalidTypeError, InvalidValueError, Noise, Stream, reparameterize
from ..models import Model, check_model, evaluating

KIND = "latent-mixture"
RECORD, TENSORS = "mixture.json", "mixture.safetensors"
EMBEDDED = "mixtures"  # folder of fastdiff.assets
FIT_STEP = 2**32 - 2  # a step of the noise that neither training, evaluation nor a sampler reaches
ITERATIONS = 1000  # of expectation maximisation, at most
WEIGHT_ERROR = 1e-6  # tolerance of the sum of the weights


class MixtureError(FastdiffError, RuntimeError):
    """A mixture that cannot be fitted: scikit-learn is missing, fails, or does not converge."""


@dataclass(frozen=True, eq=False, repr=False)
class LatentMixture:
    """A mixture of K Gaussians over latents of D dimensions, float64 on the CPU.

    Args:
        weights: [K], >= 0, with sum 1 within `WEIGHT_ERROR`.
        means: [K, D].
        factors: [K, D, D], lower Cholesky factors of the covariances, with positive diagonals.
        fitted_to: the model whose latents it was fitted to and the numbers of the fit, in plain JSON types.

    Raises:
        InvalidTypeError, InvalidValueError: tensors that are not such a mixture.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    fitted_to: Json | None = None

    def __post_init__(self) -> None:
        parts = {"weights": self.weights, "means": self.means, "factors": self.factors}
        for name, value in parts.items():
            if not isinstance(value, Tensor) or value.dtype != torch.float64 or value.device.type != "cpu":
                raise InvalidTypeError(f"LatentMixture: {name} must be a torch.float64 tensor on the CPU")
            if not torch.isfinite(value).all():
                raise InvalidValueError(f"LatentMixture: {name} must be finite")
        shapes = [tuple(value.shape) for value in parts.values()]
        size = (*shapes[0], *shapes[1][1:])
        if len(size) != 2 or min(size) < 1 or shapes[1:] != [size, (*size, size[1])]:
            found = ", ".join(map(str, shapes))
            raise InvalidValueError(f"weights, means, factors must have shapes [K], [K, D], [K, D, D], got {found}")
        if float(self.weights.min()) < 0 or abs(float(self.weights.sum()) - 1.0) > WEIGHT_ERROR:
            raise InvalidValueError(f"weights must be >= 0 with sum 1, got the sum {float(self.weights.sum())}")
        diagonal = self.factors.diagonal(dim1=1, dim2=2)
        if not torch.equal(self.factors.tril(), self.factors) or float(diagonal.min()) <= 0:
            raise InvalidValueError("factors must be lower triangular with positive diagonals")
        if self.fitted_to is not None and not isinstance(self.fitted_to, dict):
            raise InvalidTypeError(f"fitted_to must be a dictionary or None, got {self.fitted_to!r}")

    @property
    def components(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def latent(self) -> int:
        """D."""
        return self.means.shape[1]

    def __repr__(self) -> str:
        return f"LatentMixture(components={self.components}, latent={self.latent})"

    def draw(self, count: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Draw latents z = m_k + temperature L_k eps, float32 [count, D], on the device of ``noise``.

        k is the inverse cumulative weight of a uniform from `Stream.MIXTURE`; eps is normal from `Stream.VAE`, as the
        prior's z_1 at depth 1 is, so a mixture of one N(0, I) draws what the prior draws. Row i is a function of
        (seed, step, first_sample + i), bit for bit: it is computed in float64 on the CPU, one column of L_k at a time.
        """
        cumulative = self.weights.cumsum(0)
        u = noise.at(stream=Stream.MIXTURE).uniform((count, 1)).cpu().double().squeeze(1)  # in (0, 1]
        chosen = torch.searchsorted(cumulative / cumulative[-1], u)
        eps = temperature * noise.at(stream=Stream.VAE).normal((count, self.latent)).cpu().double()
        z = self.means[chosen]
        for j in range(self.latent):
            z[:, j:] += self.factors[:, j:, j][chosen] * eps[:, j : j + 1]
        return z.float().to(noise.key.device)

    def log_density(self, z: Tensor) -> Tensor:
        """Return the log density in nats of latents, floating point [N, D], as float64 [N] on the CPU.

        Raises:
            InvalidValueError: another shape.
        """
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise InvalidValueError(f"log_density: z must have shape [N, {self.latent}], got {tuple(z.shape)}")
        z, log_weights, terms = z.detach().cpu().double(), (self.weights / self.weights.sum()).log(), []
        for log_weight, mean, factor in zip(log_weights, self.means, self.factors, strict=True):
            u = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)
            volume = factor.diagonal().log().sum() + 0.5 * self.latent * math.log(2 * math.pi)
            terms.append(log_weight - volume - 0.5 * u.square().sum(0))
        return torch.logsumexp(torch.stack(terms), 0)

    def check_fits(self, autoencoder: nn.Module) -> None:
        """Check that the mixture is over the latents of a model.

        Raises:
            InvalidValueError: latents of another size, or a mixture that was fitted to another configuration.
        """
        model = check_model("mixture", autoencoder)
        if self.latent != model.latent_size:
            raise InvalidValueError(f"mixture must have latents of {model.latent_size} dimensions, got {self.latent}")
        try:
            found = (self.fitted_to or {}).get("config")
            fitted = None if found is None else from_dict(type(model.config), found, "mixture.json: fitted_to.config")
        except ConfigError as error:
            raise InvalidValueError(f"mixture was fitted to another model: {error}") from error
        if fitted not in (None, model.config):
            raise InvalidValueError(f"mixture was fitted to another model: {differences(fitted, model.config)}")

    def save(self, path: str | Path) -> Path:
        """Write a folder (mixture.json, mixture.safetensors, manifest.json) atomically; see `load_mixture`.

        Raises:
            CheckpointError: the path exists and is not the folder of a mixture, or the files cannot be written.
        """
        path = Path(path)
        folders.recover(path)
        if (path / folders.MANIFEST).is_file() and not is_mixture(path):
            raise CheckpointError(f"{path} must be a new path or the folder of a mixture, but it is a checkpoint")
        record = {"kind": KIND, "components": self.components, "latent": self.latent, "fitted_to": self.fitted_to}
        tensors = {"weights": self.weights, "means": self.means, "factors": self.factors}
        return folders.write_folder(path, {RECORD: record, TENSORS: tensors})


def is_mixture(path: Path) -> bool:
    """Return whether a folder is one that `LatentMixture.save` wrote."""
    return (path / RECORD).is_file()


def embedded_mixtures() -> list[str]:
    """Return the names of the mixtures that are shipped with the package: those of the models they are fitted to."""
    assets = files("fastdiff.assets").joinpath(EMBEDDED)
    return sorted(entry.name for entry in assets.iterdir()) if assets.is_dir() else []


def load_mixture(path_or_name: str | Path) -> LatentMixture:
    """Load a mixture from the folder that `LatentMixture.save` wrote, or one that is shipped with the package.

    Args:
        path_or_name: the folder; or, as a string, the name of an embedded model with a mixture, which takes precedence
            over a folder of the same name: write ``./diffusevae-letters`` for the folder. A `Path` is always a folder.

    Raises:
        CheckpointError: there is no such folder or name, it is not that of a mixture, or a file is missing or damaged.
            The message names the file.
    """
    path, names = Path(path_or_name), embedded_mixtures()
    if isinstance(path_or_name, str) and path_or_name in names:
        path = Path(str(files("fastdiff.assets").joinpath(EMBEDDED, path_or_name)))
    elif not folders.exists(path):
        known = ", ".join(names) or "none"
        raise CheckpointError(
            f"mixture must be the folder of a mixture, or the name of an embedded one ({known}), got {str(path)!r}"
        )
    content = folders.read_folder(path)
    record, tensors = content.get(RECORD), content.get(TENSORS)
    if not isinstance(record, dict) or not isinstance(tensors, dict) or record.get("kind") != KIND:
        raise CheckpointError(f"{path} must be the folder of a mixture ({RECORD}, {TENSORS}), it holds {list(content)}")
    if set(tensors) != {"weights", "means", "factors"}:
        raise CheckpointError(f"{path / TENSORS} must hold weights, means, factors, got {', '.join(tensors)}")
    try:
        return LatentMixture(**tensors, fitted_to=record.get("fitted_to"))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / TENSORS}: {error}") from error


# ------------------------------------------------------------------------------------------------ fitting


def fit_mixture(
    model: Model, images: Tensor, components: int = 10, seed: int = 0, batch_size: int = 512
) -> LatentMixture:
    """Fit a mixture to one z_1 ~ q(z_1 | x) of every image; needs scikit-learn (the extra ``mixture``).

    Args:
        model: a VAE, or a DiffuseVAE, whose first stage counts.
        images: uint8 [N, C, H, W], N >= max(components, 2).
        components: K, >= 1. Each has D (D + 3) / 2 parameters; choose K by the `log_density` of held-out latents.
        seed: of the draws and of the fit.
        batch_size: images per call of the network, >= 1.

    Raises:
        InvalidTypeError, InvalidValueError: another model, images that do not fit it or are too few, numbers below 1.
        MixtureError: scikit-learn is missing, or the fit fails.
    """
    if batch_size < 1:
        raise InvalidValueError(f"fit_mixture: batch_size must be >= 1, got {batch_size}")
    autoencoder = check_model("fit_mixture", model).autoencoder
    return fit_latents(draw_latents(autoencoder, images, seed, batch_size), components, seed, fitted_to(autoencoder))


def fitted_to(autoencoder: Model) -> Json:
    """Return what a mixture records of the model to whose latents it is fitted; `LatentMixture.check_fits` reads it."""
    return {"model": autoencoder.kind, "config": to_dict(autoencoder.config)}


@torch.no_grad()
def draw_latents(autoencoder: Model, images: Tensor, seed: int = 0, batch_size: int = 512) -> Tensor:
    """Draw one z_1 ~ q(z_1 | x) of every image uint8 [N, C, H, W], float32 [N, D] on the CPU."""
    autoencoder.check_images("draw_latents", images)
    noise, latents = Noise(seed, step=FIT_STEP, stream=Stream.VAE), [torch.empty(0, autoencoder.latent_size)]
    with evaluating(autoencoder):
        for first in range(0, len(images), batch_size):
            mean, logvar = autoencoder.encode(images[first : first + batch_size].to(autoencoder.device))[0]
            z_1, _ = reparameterize(mean, logvar, noise.at(first_sample=first).to(autoencoder.device))
            latents.append(z_1.cpu())
    return torch.cat(latents)


def fit_latents(latents: Tensor, components: int = 10, seed: int = 0, about: Json | None = None) -> LatentMixture:
    """Fit a mixture with full covariances to latents, floating point [N, D], by scikit-learn's `GaussianMixture`.

    The fit starts from k-means and takes at most `ITERATIONS` steps of expectation maximisation, until one gains less
    than 1e-3 nats per latent. scikit-learn adds 1e-6 to the variances; nothing else bounds the covariance of a
    component with D latents or fewer. ``about`` goes into ``fitted_to`` beside the numbers of the fit; ``nats`` is the
    mean log density of the latents.

    Raises:
        InvalidValueError: fewer latents than components or than 2, or latents that are not finite.
        MixtureError: scikit-learn is missing or fails, or the fit has not converged.
    """
    if components < 1 or len(latents) < max(components, 2):
        raise InvalidValueError(f"components must be in 1 .. {len(latents)}, the number of latents, got {components}")
    if not torch.isfinite(latents).all():
        raise InvalidValueError("latents must be finite")
    GaussianMixture, ConvergenceWarning = scikit_learn()
    data = latents.detach().cpu().double()
    state = Noise(seed, step=FIT_STEP, stream=Stream.MIXTURE).integer() % 2**32
    fit = GaussianMixture(components, covariance_type="full", max_iter=ITERATIONS, random_state=state)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an error below
            fit.fit(data.numpy())
        factors = torch.linalg.cholesky(torch.from_numpy(fit.covariances_))
    except (ValueError, RuntimeError) as error:
        raise MixtureError(f"the fit of {components} components to {len(data)} latents failed: {error}") from error
    if not fit.converged_:
        raise MixtureError(
            f"the fit of {components} components to {len(data)} latents has not converged in {ITERATIONS} iterations; "
            "take fewer components or more latents"
        )
    mixture = LatentMixture(torch.from_numpy(fit.weights_), torch.from_numpy(fit.means_), factors)
    nats = float(mixture.log_density(data).mean())
    numbers = {"latents": len(data), "seed": int(seed), "iterations": int(fit.n_iter_), "nats": nats}
    return replace(mixture, fitted_to={**(about or {}), **numbers})


def scikit_learn() -> tuple:
    """Return scikit-learn's GaussianMixture and ConvergenceWarning.

    Raises:
        MixtureError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise MixtureError("fitting a mixture needs scikit-learn: pip install 'fastdiff-triton[mixture]'") from error
    return GaussianMixture, ConvergenceWarning
