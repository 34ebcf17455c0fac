"""The models that the page offers, and what can be chosen of each."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import RUNS, embedded_names, last_checkpoint, load, training_of
from ..cli.arguments import embedded_of
from ..data import Dataset, ImageOptions
from ..diffusion import SAMPLERS, SPACINGS
from ..io import folders
from ..io.configuration import from_dict
from ..io.processes import check_device
from ..kernels import FastdiffError, InvalidValueError, Noise
from ..models import Model, evaluating
from ..sampling.mixtures import embedded_mixtures, load_mixture
from ..training.runs import data_of

FINAL = "model"  # in the folder of a run that has ended
ENCODED = 512  # training images that the latent's coordinates are ordered by
SLIDERS = 6  # coordinates of a latent that can be moved
REACH = 3.0  # standard deviations that a slider goes to either side


@dataclass(frozen=True)
class Axis:
    """A coordinate of a latent z that a slider moves: its number, and the largest shift to either side."""

    coordinate: int
    limit: float


def model_names(extra: str | None = None) -> list[str]:
    """Return what the page offers: the embedded models, the runs in ``runs/``, and ``extra``, a path or a name."""
    names = [name for name in embedded_names() if name != extra]
    try:
        runs = sorted(os.listdir(RUNS))
    except OSError:
        runs = []
    paths = [RUNS / name for name in runs if _is_run(RUNS / name)]
    return [*([extra] if extra is not None else []), *names, *(str(path) for path in paths if str(path) != extra)]


def _is_run(path: Path) -> bool:
    return last_checkpoint(path) is not None or folders.is_complete(path)


class Subject:
    """A loaded model, with the choices that it leaves.

    ``needs_cond`` says whether it samples from conditioning images alone: a restoration model. ``axes`` are the
    coordinates of z_1 that carry most about the images, at most `SLIDERS`, the first one most. A coordinate with means
    mu(x) and variances s²(x) of q(z | x) carries ½ ln(1 + Var mu / E s²) nats about x, if it were Gaussian: the
    capacity of a Gaussian channel. Where the marginal is N(0, 1), as the prior of a VAE wants it, this is the KL of the
    coordinate. Without data that can be read they are the first coordinates.

    Args:
        name: what `fastdiff.load` takes.
        device: where to run; None: the GPU if there is one, else the CPU.

    Raises:
        FastdiffError: as `fastdiff.load`.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        self.name = name
        self.device = check_device(device)
        self.model: Model = load(name).to(self.device)
        self.needs_cond, self.axes = self._needs_cond(), self._axes()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that images can be drawn of; () for an unconditional model."""
        return self.model.config.names if "labels" in self.model.sampling_options else ()

    @property
    def samplers(self) -> list[str]:
        """The samplers; none for a VAE."""
        return list(SAMPLERS) if "sampler" in self.model.sampling_options else []

    @property
    def spacings(self) -> list[str]:
        """Where the steps of a sampler can lie; ``model`` where the model has times of its own for some samplers."""
        return [*SPACINGS, *(["model"] if getattr(self.model, "spacings", None) else [])]

    @property
    def has_latent(self) -> bool:
        """Whether the model has a latent z."""
        return "z" in self.model.latent_variables

    @cached_property
    def mixtures(self) -> list[str]:
        """The names of the embedded mixtures that were fitted to this model's latents."""
        if not self.has_latent:
            return []
        found = []
        for name in embedded_mixtures():
            with suppress(InvalidValueError):  # fitted to another model
                load_mixture(name).check_fits(self.model.autoencoder)
                found.append(name)
        return found

    @cached_property
    def data_name(self) -> str | None:
        """The data set of the training, or the embedded one of such images; None where neither is known."""
        found = training_of(self.name).get("data") or embedded_of(self.model.shape)
        return None if found is None else str(found)

    @cached_property
    def image_options(self) -> ImageOptions:
        """How the images of the training were read."""
        return from_dict(ImageOptions, training_of(self.name).get("images", {}), f"{self.name}: images")

    @cached_property
    def data(self) -> Dataset:
        """The data of the training.

        Raises:
            DataError: they cannot be read.
            InvalidValueError: they are not known.
        """
        if self.data_name is None:
            raise InvalidValueError(f"model must record its data set to be tried on images, got {self.name!r}")
        return data_of(self.name, self.data_name)

    def _needs_cond(self) -> bool:
        blank = torch.zeros(1, *self.model.shape, dtype=torch.uint8, device=self.device)
        return self.model.example_cond(blank, Noise(0).to(self.device)) is not None

    def _axes(self) -> list[Axis]:
        if not self.has_latent:
            return []
        autoencoder = self.model.autoencoder
        try:
            images = self.data.train_images[:ENCODED]
            with evaluating(autoencoder):
                parts = [autoencoder.encode(part.to(self.device))[0] for part in images.split(64)]
        except FastdiffError:
            return [Axis(k, REACH) for k in range(min(SLIDERS, self.model.latent_size))]
        mean, logvar = (torch.cat([part[k] for part in parts]).double().cpu() for k in (0, 1))
        return ordered_axes(mean, logvar)


def ordered_axes(mean: Tensor, logvar: Tensor) -> list[Axis]:
    """Return the coordinates of latents with the means and log-variances [N, latent] of q, see `Subject.axes`."""
    spread, own = mean.var(0, correction=0), logvar.exp().mean(0)
    order = torch.log1p(spread / own).argsort(descending=True, stable=True)[:SLIDERS]
    limits = REACH * (spread + own).sqrt()
    return [Axis(int(k), max(0.1, round(float(limits[k]), 1))) for k in order]


def kept(load_subject: Callable[[str], Subject], most: int = 3) -> Callable[[str], Subject]:
    """Return a function that loads a subject and keeps the ``most`` that were asked for last."""
    found: dict[str, Subject] = {}

    def subject(name: str) -> Subject:
        found[name] = found.pop(name, None) or load_subject(name)
        while len(found) > most:
            del found[next(iter(found))]
        return found[name]

    return subject
