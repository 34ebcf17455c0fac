"""Interpolation between latents: between two latents z, between two latents x_T, between the means of two classes.

A DiffuseVAE has two latents: z determines the content of an image, x_T and the step noise its details. Every function
here varies one of them and shares all other noise between the images of a row.
"""

import torch
from torch import Tensor

from ..data import Dataset, ImageSource
from ..diffusion import Sampler, as_sampler
from ..kernels import InvalidValueError, Noise, Stream
from ..models import Guidance, Latents, Model, Request, check_model, evaluating
from ..models.requests import labels_of_request
from .images import check_count, draw_images

DEFAULT_STEPS, DEFAULT_SAMPLER = 50, "ddim"
VARIED = {"latent": "z", "noise": "x_T", "class": "z"}  # what can vary, and the latent variable that it needs


@torch.no_grad()
def interpolate(
    model: Model,
    vary: str,
    rows: int = 6,
    count: int = 10,
    seed: int = 0,
    steps: int | None = None,
    sampler: "str | Sampler | None" = None,
    data: Dataset | None = None,
    progress: bool = False,
    labels: object = None,
    guidance: float | Guidance | None = None,
) -> Tensor:
    """Return rows of images that interpolate one latent, uint8 levels [rows · count, C, H, W] on the CPU.

    Args:
        model: a VAE, a DiffuseVAE or a diffusion model.
        vary: ``"latent"``: z from one draw to another, with x_T fixed. ``"noise"``: x_T along the arc between two
            draws, with z fixed. ``"class"``: z from the mean of one class to the mean of the next, with x_T fixed.
        rows, count: number of rows, >= 1, and of images per row, >= 2.
        seed: of everything that is drawn.
        steps, sampler: of the diffusion, 50 and ``"ddim"`` by default, which is deterministic given x_T.
        data: labelled data, for ``"class"``.
        progress: show a progress bar on stderr.
        labels: classes of the rows, of a model with classes: None, one class for all, or one for each row.
        guidance: of the diffusion, see `fastdiff.sample`.

    Raises:
        InvalidTypeError, InvalidValueError: a latent that the model does not have, numbers out of range, data without
            labels, options that do not fit.
    """
    model = check_model("interpolate", model)
    known = [name for name, needed in VARIED.items() if needed in model.latent_variables]
    if vary not in known:
        allowed = " or ".join(map(repr, known))
        raise InvalidValueError(f"interpolate: vary must be {allowed} for a {model.title} model, got {vary!r}")
    check_count("interpolate", "rows", rows, 1)
    check_count("interpolate", "count", count, 2)
    if vary == "class" and (data is None or data.train_labels is None):
        raise InvalidValueError("interpolate: data must be labelled to vary the class")
    images, classes = [], _labels_of_rows(model, labels, rows)
    for row in range(rows):
        z = _latents_of_row(model, vary, row, count, seed, data)
        initial = None
        if vary == "noise":
            a, b = noises(model, seed, (2 * row, 2 * row + 1))
            initial = between(a, b, count, arc=True)
        images.append(render(model, z, initial, seed, steps, sampler, progress, classes[row], guidance))
    return torch.cat(images)


def _labels_of_rows(model: Model, labels: object, rows: int) -> list[object]:
    """Return the label of each row; labels for a model without classes are rejected where the images are drawn."""
    if labels is None or not model.num_classes:
        return [labels] * rows
    numbers = labels_of_request(labels, rows, model.config)
    assert numbers is not None
    return numbers.tolist()


def _latents_of_row(model: Model, vary: str, row: int, count: int, seed: int, data: Dataset | None) -> Tensor | None:
    """Return z of a row of images, [count, latent]; None for a model without z."""
    if "z" not in model.latent_variables:
        return None
    if vary == "class" and data is not None and data.train_labels is not None:
        source, target = row % data.num_classes, (row + 1) % data.num_classes
        start, step = class_direction(model, data.train_images, data.train_labels, source, target)
        return between(start, start + step, count)
    ends = [model.prior_latents(1, Noise(seed, first_sample=2 * row + k))[0].cpu() for k in (0, 1)]
    return between(ends[0], ends[1] if vary == "latent" else ends[0], count)


def render(
    model: Model,
    z: Tensor | None = None,
    initial: Tensor | None = None,
    seed: int = 0,
    steps: int | None = None,
    sampler: "str | Sampler | None" = None,
    progress: bool = False,
    labels: object = None,
    guidance: float | Guidance | None = None,
) -> Tensor:
    """Return the images of latents that share all other noise, uint8 levels [K, C, H, W] on the CPU.

    Args:
        model: a model with the latents.
        z: latents z_1 of an autoencoder, float [K, latent]; required by a VAE and a DiffuseVAE.
        initial: x_T of a diffusion, float [K, C, H, W]; x_T - cond in formulation 2. By default one draw for all.
        seed: of what is drawn: x_T and the step noise, the same for all images.
        steps, sampler: as in `interpolate`.
        progress: show a progress bar on stderr.
        labels, guidance: of a model with classes, see `fastdiff.sample`.

    Raises:
        InvalidTypeError, InvalidValueError: latents that the model does not have or that do not fit.
    """
    model = check_model("render", model)
    if (z is None) == ("z" in model.latent_variables):
        wanted = "the latents of the autoencoder" if z is None else f"None for a {model.kind} model"
        raise InvalidValueError(f"render: z must be {wanted}")
    varied = z if z is not None else initial
    if varied is None:
        raise InvalidValueError("render: initial must be the latents x_T")
    if initial is not None:
        _check_initial(model, initial, len(varied))
    if "x_T" in model.latent_variables:
        steps, sampler = DEFAULT_STEPS if steps is None else steps, DEFAULT_SAMPLER if sampler is None else sampler
    request = Request(
        len(varied), seed, steps, as_sampler("ancestral" if sampler is None else sampler), labels, guidance,
        latents=None if z is None else Latents(z=z), initial=initial, shared_noise=True,
    )  # fmt: skip
    return draw_images(model, request, batch_size=max(1, len(varied)), progress=progress)


def _check_initial(model: Model, initial: Tensor, count: int) -> None:
    if tuple(initial.shape) != (count, *model.shape):
        raise InvalidValueError(f"render: initial must have shape {(count, *model.shape)}, got {tuple(initial.shape)}")
    if not torch.isfinite(initial).all():
        raise InvalidValueError("render: initial must be finite")


def between(a: Tensor, b: Tensor, count: int, arc: bool = False) -> Tensor:
    """Return ``count`` points from a to b, [count, ...]: on the line, or on the arc, which keeps the norm of noise.

    Raises:
        InvalidValueError: different shapes, fewer than two points.
    """
    if a.shape != b.shape or count < 2:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}, count {count}"
        raise InvalidValueError(f"between: a and b must have one shape and count be >= 2, got {shapes}")
    tau = torch.linspace(0.0, 1.0, count, device=a.device).view(-1, *[1] * a.dim())
    if not arc:
        return torch.lerp(a, b, tau)
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    if float(angle.sin()) < 1e-4:
        return torch.lerp(a, b, tau)
    return (torch.sin((1 - tau) * angle) * a + torch.sin(tau * angle) * b) / torch.sin(angle)


def noises(model: Model, seed: int, indices: tuple[int, ...]) -> list[Tensor]:
    """Return x_T of samples of a request, as `fastdiff.sample` draws them for this seed, [C, H, W] each."""
    noise = Noise(seed, stream=Stream.INITIAL)
    return [noise.at(first_sample=index).normal((1, *model.shape))[0] for index in indices]


@torch.no_grad()
def class_direction(
    model: Model, images: Tensor | ImageSource, labels: Tensor, source: int, target: int
) -> tuple[Tensor, Tensor]:
    """Return the mean latent z_1 of a class, and the difference of another class's mean to it, [latent] each.

    Args:
        model: a VAE, or a DiffuseVAE, whose first stage encodes.
        images, labels: labelled data, uint8 [N, C, H, W] and int64 [N].
        source, target: classes in the data.

    Raises:
        InvalidTypeError: a model without latents z.
        InvalidValueError: a class with no images, or ``len(labels) != len(images)``.
    """
    if labels.shape != (len(images),):
        raise InvalidValueError(f"labels must have shape ({len(images)},), got {tuple(labels.shape)}")
    autoencoder, means = model.autoencoder, []
    for name, value in (("source", source), ("target", target)):
        chosen = images[labels == value]
        if not len(chosen):
            raise InvalidValueError(f"{name} must be a class of the data, {sorted(set(labels.tolist()))}, got {value}")
        with evaluating(autoencoder):
            parts = [autoencoder.encode(batch.to(autoencoder.device))[0][0].cpu() for batch in chosen.split(512)]
        means.append(torch.cat(parts).mean(0))
    return means[0], means[1] - means[0]
