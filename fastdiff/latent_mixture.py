"""Ex-post density estimation (Ghosh et al. 2020, arXiv:1903.12436): a Gaussian mixture in the place of a VAE's prior.

The latents of the data, z_1 ~ q(z_1 | x) over all x, need not be distributed as the prior says. A mixture fitted to
them after training, Σ_k w_k N(m_k, L_k L_kᵀ), is drawn from in its stead, and the network stays as it is; DiffuseVAE
(Pandey et al. 2022) samples so. It changes samples alone: the bound and its bits per dimension are those of the prior.
"""

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import storage
from .config import to_dict
from .kernels import Noise, Stream, reparameterize
from .models import HVAE, DiffuseVAE
from .models.base import evaluating
from .storage import CheckpointError

KIND = "latent-mixture"
RECORD, TENSORS = "mixture.json", "mixture.safetensors"
FIT_STEP = 2**32 - 2  # a step that neither training, nor the evaluation, nor a sampler reaches: they share no draw
ITERATIONS = 1000  # of expectation maximisation, at most
WEIGHT_ERROR = 1e-6  # by which the sum of the weights may miss 1


class MixtureError(RuntimeError):
    """A mixture that cannot be fitted: scikit-learn is missing or fails, or the iterations do not converge."""


@dataclass(frozen=True, eq=False, repr=False)
class LatentMixture:
    """A mixture of K Gaussians over latents of D dimensions, float64 on the CPU.

    Args:
        weights: [K], >= 0, of sum 1 within `WEIGHT_ERROR` (what is missing is divided out).
        means: [K, D].
        factors: [K, D, D], lower Cholesky factors of the covariances, with positive diagonals.
        fitted_to: where it comes from, in plain JSON types.

    Raises:
        TypeError: no float64 tensors, a record that is no dictionary.
        ValueError: shapes that do not fit together, values that are not finite or no such mixture, another device.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    fitted_to: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        parts = {"weights": self.weights, "means": self.means, "factors": self.factors}
        for name, value in parts.items():
            if not isinstance(value, Tensor) or value.dtype != torch.float64:
                given = f"dtype {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise TypeError(f"LatentMixture: {name} is {given}; allowed: a torch.float64 tensor")
        shapes = [tuple(value.shape) for value in parts.values()]
        size = (*shapes[0], *shapes[1][1:])
        if len(size) != 2 or min(size) < 1 or shapes[1:] != [size, (*size, size[1])]:
            raise ValueError(
                f"LatentMixture: weights, means, factors have shapes {', '.join(map(str, shapes))}; "
                "allowed: [K], [K, D], [K, D, D], K and D at least 1"
            )
        for name, value in parts.items():
            if value.device.type != "cpu":
                raise ValueError(f"LatentMixture: {name} is on {value.device}; allowed: cpu")
            if not torch.isfinite(value).all():
                raise ValueError(f"LatentMixture: {name} holds values that are not finite; allowed: finite ones")
        least, total = float(self.weights.min()), float(self.weights.sum())
        if least < 0 or abs(total - 1.0) > WEIGHT_ERROR:
            raise ValueError(f"LatentMixture: weights are at least {least}, of sum {total}; allowed: >= 0, of sum 1")
        if not torch.equal(self.factors.tril(), self.factors):
            raise ValueError("LatentMixture: factors hold values above the diagonal; allowed: lower triangular ones")
        diagonal = float(self.factors.diagonal(dim1=1, dim2=2).min())
        if diagonal <= 0:
            raise ValueError(f"LatentMixture: factors hold {diagonal} on the diagonal; allowed: numbers > 0")
        if self.fitted_to is not None and not isinstance(self.fitted_to, dict):
            raise TypeError(f"LatentMixture: fitted_to is {self.fitted_to!r}; allowed: a dictionary, or None")

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

        k is the inverse cumulative weight of a uniform from `Stream.MIXTURE`, eps is normal from `Stream.VAE`, as the
        prior's z_1 at depth 1 is: the mixture of one N(0, I) draws what such a prior draws. Row i depends on (seed,
        step, first_sample + i) alone, bit for bit: it is computed in float64 on the CPU, a column of L_k at a time,
        each operation rounded by itself. A GPU waits for that; the normals drawn there differ by their rounding.

        Raises:
            TypeError: a count that is no integer, noise that is no `Noise`.
            ValueError: a negative count, a temperature that is not finite or negative.
        """
        _check_whole("draw", "count", count, 0)
        if not isinstance(noise, Noise):
            raise TypeError(f"draw: noise is a {type(noise).__name__}; allowed: a Noise")
        number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not number or not 0 <= temperature < math.inf:
            raise ValueError(f"draw: temperature is {temperature!r}; allowed: a finite number >= 0")
        cumulative = self.weights.cumsum(0)
        u = noise.at(stream=Stream.MIXTURE).uniform((count, 1)).cpu().double().squeeze(1)  # in (0, 1]: never a weight 0
        chosen = torch.searchsorted(cumulative / cumulative[-1], u)
        eps = temperature * noise.at(stream=Stream.VAE).normal((count, self.latent)).cpu().double()
        z = self.means[chosen]
        for j in range(self.latent):
            z[:, j:] += self.factors[:, j:, j][chosen] * eps[:, j : j + 1]
        return z.float().to(noise.key.device)

    def log_density(self, z: Tensor) -> Tensor:
        """Log density in nats of latents, floating point [N, D], float64 [N] on the CPU.

        Raises:
            TypeError: no floating-point tensor.
            ValueError: another shape.
        """
        if not isinstance(z, Tensor) or not z.is_floating_point():
            given = f"dtype {z.dtype}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise TypeError(f"log_density: z is {given}; allowed: a floating-point tensor [N, {self.latent}]")
        if z.dim() != 2 or z.shape[1] != self.latent:
            raise ValueError(f"log_density: z has shape {tuple(z.shape)}; allowed: [N, {self.latent}]")
        z, log_weights, terms = z.detach().cpu().double(), (self.weights / self.weights.sum()).log(), []
        for log_weight, mean, factor in zip(log_weights, self.means, self.factors, strict=True):
            u = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)
            volume = factor.diagonal().log().sum() + 0.5 * self.latent * math.log(2 * math.pi)
            terms.append(log_weight - volume - 0.5 * u.square().sum(0))
        return torch.logsumexp(torch.stack(terms), 0)

    def save(self, path: str | Path) -> Path:
        """Write a folder (mixture.json, mixture.safetensors, manifest.json) atomically; see `load_mixture`.

        Raises:
            CheckpointError: the path exists and is no mixture's folder, or the disk refuses the files.
        """
        path = Path(path)
        storage.recover(path)
        if (path / storage.MANIFEST).is_file() and not is_mixture(path):
            raise CheckpointError(f"{path} is a checkpoint without {RECORD}; allowed: a new path, or another mixture's")
        about = {"components": self.components, "latent": self.latent, "fitted_to": self.fitted_to}
        tensors = {"weights": self.weights, "means": self.means, "factors": self.factors}
        return storage.write_folder(path, {RECORD: {"kind": KIND, **about}, TENSORS: tensors})


def is_mixture(path: Path) -> bool:
    """Whether a folder looks like one that `LatentMixture.save` wrote."""
    return (path / RECORD).is_file()


def load_mixture(path: str | Path) -> LatentMixture:
    """Load a mixture from the folder that `LatentMixture.save` wrote.

    Raises:
        CheckpointError: no such folder, a checkpoint of something else, a file that is missing, damaged or unreadable,
            tensors that are no mixture or not that of mixture.json. The message names the file.
    """
    path = Path(path)
    content = storage.read_folder(path)
    for name in (RECORD, TENSORS):
        if name not in content:
            raise CheckpointError(
                f"{path} holds no {name} but {', '.join(content) or 'nothing'}; allowed: a latent mixture's folder"
            )
    record, tensors = content[RECORD], content[TENSORS]
    if not isinstance(record, dict) or record.get("kind") != KIND:
        given = record.get("kind") if isinstance(record, dict) else record
        raise CheckpointError(f"{path / RECORD}: kind is {given!r}; allowed: {KIND!r}")
    if set(record) != {"kind", "components", "latent", "fitted_to"}:
        raise CheckpointError(
            f"{path / RECORD}: keys {', '.join(record)}; allowed: kind, components, latent, fitted_to"
        )
    if set(tensors) != {"weights", "means", "factors"}:
        raise CheckpointError(f"{path / TENSORS}: tensors {', '.join(tensors)}; allowed: weights, means, factors")
    try:
        mixture = LatentMixture(**tensors, fitted_to=record["fitted_to"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / TENSORS}: {error}") from error
    if (record["components"], record["latent"]) != (mixture.components, mixture.latent):
        raise CheckpointError(
            f"{path / RECORD}: {record['components']} components, latent {record['latent']}; "
            f"allowed: those of {TENSORS}, {mixture.components} and {mixture.latent}"
        )
    return mixture


@torch.no_grad()
def fit_mixture(
    model: HVAE | DiffuseVAE, images: Tensor, components: int = 10, seed: int = 0, batch_size: int = 512
) -> LatentMixture:
    """Fit a mixture to one z_1 ~ q(z_1 | x) of every image, by `fit_latents`; needs scikit-learn.

    Args:
        model: a VAE of any depth, or a DiffuseVAE, of which the first stage counts; it is run in eval mode and left as
            it was.
        images: uint8 [N, C, H, W], at least as many as components, and at least 2.
        components: K, >= 1. Each has D (D + 3) / 2 parameters: with few images take few, by the `log_density` of the
            latents of other images.
        seed: of the draws and of the fit: z_1 of image i is a function of (seed, i), up to the network's rounding.
        batch_size: images per call of the network, >= 1; it changes the latents by rounding only.

    Raises:
        TypeError, ValueError: another model, images that do not fit it or are too few, numbers out of range.
        MixtureError: no scikit-learn, or a fit that fails.
    """
    vae = model.vae if isinstance(model, DiffuseVAE) else model
    if not isinstance(vae, HVAE):
        raise TypeError(f"fit_mixture: model is a {type(model).__name__}; allowed: a HVAE or a DiffuseVAE")
    vae.check_images("fit_mixture", images)
    _check_whole("fit_mixture", "batch_size", batch_size, 1)
    _check_fit("fit_mixture", "images", len(images), components, seed)
    return fit_latents(draw_latents(vae, images, seed, batch_size), components, seed, fitted_to(vae))


def fitted_to(vae: HVAE) -> dict[str, Any]:
    """What a mixture says of the model whose latents it was fitted to; `fastdiff.sample` compares it."""
    return {"model": vae.kind, "config": to_dict(vae.config)}


def draw_latents(vae: HVAE, images: Tensor, seed: int = 0, batch_size: int = 512) -> Tensor:
    """Draw one z_1 ~ q(z_1 | x) of every image uint8 [N, C, H, W], float32 [N, D] on the CPU, as `fit_mixture` does."""
    noise, latents = Noise(seed, step=FIT_STEP, stream=Stream.VAE), []
    with evaluating(vae):
        for first in range(0, len(images), batch_size):
            mean, logvar = vae.encode(images[first : first + batch_size].to(vae.device))[0]
            latents.append(reparameterize(mean, logvar, noise.at(first_sample=first).to(vae.device))[0].cpu())
    return torch.cat(latents)


def fit_latents(
    latents: Tensor, components: int = 10, seed: int = 0, about: dict[str, Any] | None = None
) -> LatentMixture:
    """Fit a mixture with full covariances to latents, floating point [N, D], by scikit-learn's `GaussianMixture`.

    It starts from k-means and takes at most `ITERATIONS` steps of expectation maximisation, until one gains less than
    1e-3 nats per latent. scikit-learn adds 1e-6 to the variances: nothing else bounds the covariance of a component
    that has D latents or fewer. ``about`` goes into ``fitted_to``, beside the numbers of the fit; ``nats`` there is the
    mean log density of the latents.

    Raises:
        TypeError, ValueError: latents of another dtype or shape, not finite or fewer than components or 2; numbers out
            of range.
        MixtureError: no scikit-learn, a fit that it refuses, or one that has not converged.
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        given = f"dtype {latents.dtype}" if isinstance(latents, Tensor) else f"a {type(latents).__name__}"
        raise TypeError(f"fit_latents: latents are {given}; allowed: a floating-point tensor [N, D]")
    if latents.dim() != 2 or not latents.shape[1]:
        raise ValueError(f"fit_latents: latents have shape {tuple(latents.shape)}; allowed: [N, D], D >= 1")
    _check_fit("fit_latents", "latents", len(latents), components, seed)
    if not torch.isfinite(latents).all():
        raise ValueError("fit_latents: latents hold values that are not finite; allowed: finite ones")
    mixtures, warning = scikit_learn()
    data = latents.detach().cpu().double()
    state = Noise(seed, step=FIT_STEP, stream=Stream.MIXTURE).integer() % 2**32
    fit = mixtures.GaussianMixture(components, covariance_type="full", max_iter=ITERATIONS, random_state=state)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", warning)  # said below; k-means on latents that repeat says it too
            fit.fit(data.numpy())
        factors = torch.linalg.cholesky(torch.from_numpy(fit.covariances_))
    except (ValueError, RuntimeError) as error:
        raise MixtureError(f"fit_latents: {components} components of {len(data)} latents: {error}") from error
    if not fit.converged_:
        raise MixtureError(
            f"fit_latents: {components} components of {len(data)} latents have not converged in {ITERATIONS} "
            "iterations; allowed: a fit that does, of fewer components or more latents"
        )
    mixture = LatentMixture(torch.from_numpy(fit.weights_), torch.from_numpy(fit.means_), factors)
    nats = float(mixture.log_density(data).mean())
    numbers = {"latents": len(data), "seed": int(seed), "iterations": int(fit.n_iter_), "nats": nats}
    return replace(mixture, fitted_to={**(about or {}), **numbers})


def scikit_learn() -> tuple[Any, type[Warning]]:
    """Return scikit-learn's mixtures, and its warning that something has not converged.

    Raises:
        MixtureError: it is not installed.
    """
    try:
        from sklearn import mixture
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise MixtureError(
            "fit_latents: a fit needs scikit-learn: pip install scikit-learn (the extra `mixture`)"
        ) from error
    return mixture, ConvergenceWarning


def _check_whole(where: str, name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where}: {name} is {value!r}; allowed: an integer >= {least}")
    if value < least:
        raise ValueError(f"{where}: {name} is {value}; allowed: an integer >= {least}")


def _check_fit(where: str, name: str, count: int, components: int, seed: int) -> None:
    """Check the numbers of a fit before any work."""
    _check_whole(where, "components", components, 1)
    Noise(seed)  # checks it
    if count < max(components, 2):
        raise ValueError(f"{where}: {count} {name} for {components} components; allowed: at least {max(components, 2)}")
