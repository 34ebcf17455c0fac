"""Walks through the latents: between two pictures, between two noises, along the direction of a class.

A DiffuseVAE has two latents. z says what the picture is, x_T and the noise of the steps say the details; to see the
one, hold the other: every function here shares the noise that it does not vary.
"""

import torch
from torch import Tensor

from .data import Dataset
from .kernels import Noise, Stream
from .models import HVAE, DiffuseVAE, DiffusionModel
from .models.base import evaluating
from .sampling_loop import sample_latents, sampling_plan


@torch.no_grad()
def render(
    model: HVAE | DiffuseVAE | DiffusionModel,
    z: Tensor | None = None,
    initial: Tensor | None = None,
    seed: int = 0,
    steps: int = 50,
    sampler: str = "ddim",
) -> Tensor:
    """Turn latents into images that share everything else, uint8 levels [K, C, H, W] on the CPU.

    Args:
        model: a VAE (z alone), a DiffuseVAE (z, and x_T if it is to vary), a diffusion model (x_T alone).
        z: latents z_1 of the VAE, [K, latent].
        initial: x_T, [K, C, H, W] (less the picture in formulation 2); by default one draw for all.
        seed: of what is drawn: x_T and the steps' noise, one for all images.
        steps, sampler: of the diffusion; the default is deterministic given x_T.

    Raises:
        TypeError, ValueError: latents that the model has not or that do not fit; steps or a sampler that is none.
    """
    _check_model("render", model)
    given = z if z is not None else initial
    if given is None or (z is None) != isinstance(model, DiffusionModel):
        wanted = "x_T alone" if isinstance(model, DiffusionModel) else "z"
        raise ValueError(f"render: z {_shape(z)}, initial {_shape(initial)} for a {model.kind}; allowed: {wanted}")
    if not all(torch.isfinite(latent).all() for latent in (z, initial) if latent is not None):
        raise ValueError("render: latents hold values that are not finite; allowed: finite ones")
    if isinstance(model, HVAE):
        if initial is not None:
            raise ValueError(f"render: initial {_shape(initial)} for a VAE, which has no x_T; allowed: None")
        with evaluating(model):
            return model.decode(given.to(model.device)).cpu()
    with evaluating(model):
        chain = model if isinstance(model, DiffusionModel) else model.refiner
        if isinstance(model, DiffuseVAE):
            latent = model.config.vae.latent
            if given.dim() != 2 or given.shape[1] != latent:
                raise ValueError(f"render: z {_shape(z)}; allowed: [K, {latent}]")
            chain = model.refiner.on(model.picture(given.to(model.device)))
        if initial is not None and tuple(initial.shape) != (len(given), *model.shape):
            raise ValueError(f"render: initial {_shape(initial)}; allowed: {(len(given), *model.shape)}")
        walk = sampling_plan(chain, steps, sampler)
        return chain.decode(sample_latents(chain, len(given), walk, Noise(seed), initial=initial, shared=True)).cpu()


VARIED = ("latent", "noise", "class")


@torch.no_grad()
def strips(
    model: HVAE | DiffuseVAE | DiffusionModel,
    vary: str,
    rows: int = 6,
    count: int = 10,
    seed: int = 0,
    steps: int = 50,
    sampler: str = "ddim",
    data: Dataset | None = None,
) -> Tensor:
    """Return rows of images from one end of a walk to the other, uint8 levels [rows · count, C, H, W] on the CPU.

    Args:
        model: a VAE, a DiffuseVAE or a diffusion model.
        vary: ``"latent"``: z from one draw to another, x_T held; ``"noise"``: x_T along the arc between two draws, z
            held; ``"class"``: z from the mean of a class to that of the next, x_T held.
        rows, count: walks, and images of each.
        seed, steps, sampler: see `render`.
        data: labelled data, for ``"class"``.

    Raises:
        TypeError, ValueError: a walk that the model has not, fewer than one row or two images, data without labels.
    """
    _check_model("strips", model)
    has = [name for name in VARIED if not isinstance(model, HVAE if name == "noise" else DiffusionModel)]
    if vary not in has:  # a VAE has no x_T, a diffusion model no z
        raise ValueError(f"strips: vary is {vary!r} for a {type(model).__name__}; allowed: {', '.join(has)}")
    for name, value, least in (("rows", rows, 1), ("count", count, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"strips: {name} is {value!r}; allowed: an integer >= {least}")
    vae = model if isinstance(model, HVAE) else model.vae if isinstance(model, DiffuseVAE) else None
    pictures = []
    for row in range(rows):
        z, initial = None, None
        if vae is not None:
            ends = [vae.prior_latents(1, Noise(seed, first_sample=2 * row + k))[0].cpu() for k in (0, 1)]
            z = between(ends[0], ends[1] if vary == "latent" else ends[0], count)
        if vary == "class":
            z = _between_classes(vae, data, row, count)
        if vary == "noise" and not isinstance(model, HVAE):
            a, b = noises(model, seed, (2 * row, 2 * row + 1))
            initial = between(a, b, count, spherical=True)
        pictures.append(render(model, z, initial, seed, steps, sampler))
    return torch.cat(pictures)


def _between_classes(vae: HVAE | None, data: Dataset | None, row: int, count: int) -> Tensor:
    if vae is None or data is None or data.train_labels is None:
        raise ValueError("strips: vary is 'class' without labelled data; allowed: data with labels")
    source, target = row % data.classes, (row + 1) % data.classes
    start, step = class_direction(vae, data.train_images, data.train_labels, source, target)
    return between(start, start + step, count)


def between(a: Tensor, b: Tensor, count: int, spherical: bool = False) -> Tensor:
    """Return ``count`` points from a to b, [count, ...]: on the line, or on the arc, which keeps a noise's norm.

    Raises:
        ValueError: different shapes, fewer than two points.
    """
    if a.shape != b.shape or count < 2:
        raise ValueError(f"between: {tuple(a.shape)} to {tuple(b.shape)} in {count}; allowed: equal shapes, at least 2")
    tau = torch.linspace(0.0, 1.0, count, device=a.device).view(-1, *[1] * a.dim())
    if not spherical:
        return torch.lerp(a, b, tau)
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    if float(angle.sin()) < 1e-4:
        return torch.lerp(a, b, tau)
    return (torch.sin((1 - tau) * angle) * a + torch.sin(tau * angle) * b) / torch.sin(angle)


def noises(model: DiffuseVAE | DiffusionModel, seed: int, indices: tuple[int, ...]) -> Tensor:
    """x_T of images of a request, as `fastdiff.sample` draws them for this seed, [K, C, H, W]."""
    draws = [Noise(seed, first_sample=i, stream=Stream.INITIAL).normal((1, *model.shape)) for i in indices]
    return torch.cat(draws)


@torch.no_grad()
def class_direction(
    model: HVAE | DiffuseVAE, images: Tensor, labels: Tensor, source: int, target: int
) -> tuple[Tensor, Tensor]:
    """Return the mean latent of a class and the step from it to another class's, [latent] each.

    Args:
        model: the VAE, or a DiffuseVAE, of which the first stage counts.
        images, labels: labelled data, uint8 [N, C, H, W] and int64 [N].
        source, target: classes that the data hold.

    Raises:
        ValueError: a class without images, as many labels as there are no images.
    """
    if labels.shape != (len(images),):
        raise ValueError(f"class_direction: labels have shape {tuple(labels.shape)}; allowed: ({len(images)},)")
    vae = model.vae if isinstance(model, DiffuseVAE) else model
    means = []
    for name, value in (("source", source), ("target", target)):
        chosen = images[labels == value]
        if not len(chosen):
            raise ValueError(
                f"class_direction: no image of {name} class {value}; allowed: {sorted(set(labels.tolist()))}"
            )
        with evaluating(vae):
            parts = [vae.encode(batch.to(vae.device))[0][0].cpu() for batch in chosen.split(512)]
        means.append(torch.cat(parts).mean(0))
    return means[0], means[1] - means[0]


def _check_model(where: str, model: object) -> None:
    if not isinstance(model, (HVAE, DiffuseVAE, DiffusionModel)):
        raise TypeError(
            f"{where}: model is a {type(model).__name__}; allowed: a VAE, a DiffuseVAE or a diffusion model"
        )


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
