"""Pictures for the page: one call of `fastdiff.sample`, and what the network saw and estimated on the way."""

import threading
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..diffusion import SAMPLERS
from ..io.pictures import to_uint8
from ..kernels import InvalidValueError, Noise
from ..models import Latents
from ..sampling import sample_images
from ..sampling.bulk import ALL, class_labels
from ..sampling.mixtures import load_mixture
from .models import Subject

MOST_IMAGES = 64  # one batch, so that the copied call gives the same bits
MOST_FRAMES = 10
DEFAULT_MODEL, DEFAULT_SAMPLER, DEFAULT_CALLS = "letters", "unipc", 10

_one_at_a_time = threading.Lock()  # several pages share the models


@dataclass(frozen=True)
class Choice:
    """What is chosen on the page.

    Args:
        model: what `fastdiff.load` takes.
        n: number of images, 1 .. 64.
        sampler, spacing: names, see `fastdiff.sample`; a VAE has none.
        calls: calls of the network for an image, >= 1, without those that guidance adds. Samplers with two calls a step
            take half as many steps, rounded down, and at least one.
        seed: integer in [0, 2**64).
        label: number of a class, ``"all"`` for the classes in turn, or None.
        guidance: weight of classifier-free guidance; 1 is the conditional model.
        shifts: what is added to coordinates of the latents z of all images: pairs (coordinate, value).
        mixture: name of the embedded mixture that z is drawn from, or None for the prior.
    """

    model: str
    n: int = 16
    sampler: str = DEFAULT_SAMPLER
    spacing: str = "time"
    calls: int = DEFAULT_CALLS
    seed: int = 0
    label: int | str | None = None
    guidance: float = 1.0
    shifts: tuple[tuple[int, float], ...] = ()
    mixture: str | None = None

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return max(1, self.calls // SAMPLERS[self.sampler].calls_per_step)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance changes anything."""
        return self.label is not None and self.guidance != 1.0

    @property
    def moved(self) -> tuple[tuple[int, float], ...]:
        """The shifts that are not 0."""
        return tuple((k, value) for k, value in self.shifts if value)


@dataclass(frozen=True)
class Frame:
    """The state of all images after a number of calls of the network: z_t and x_hat, uint8 [n, C, H, W] in 0 .. 255."""

    calls: int
    z_t: Tensor
    x_hat: Tensor


@dataclass(frozen=True)
class Drawn:
    """What the page shows.

    images: uint8 [n, C, H, W] in 0 .. 255. cond: the degraded images that a restoration model was given, of the same
    type and perhaps smaller, or None. frames: at most 10, in the order of sampling; none of a VAE. calls: of the
    network for an image, with those of guidance; 0 of a VAE. seconds: the time that it took.
    """

    images: Tensor
    cond: Tensor | None = None
    frames: list[Frame] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0


def draw(subject: Subject, choice: Choice) -> Drawn:
    """Draw what is chosen: the images that the calls of `fastdiff.demo.calls` give, bit for bit.

    Raises:
        FastdiffError: as `fastdiff.sample`, and where a restoration model's data cannot be read.
    """
    if not 1 <= choice.n <= MOST_IMAGES:
        raise InvalidValueError(f"n must be in 1 .. {MOST_IMAGES}, got {choice.n}")
    with _one_at_a_time, torch.no_grad():
        started = time.perf_counter()
        kept: dict[int, list[tuple[Tensor, Tensor]]] = {}

        def keep(step: int, nfe: int, z_t: Tensor, x_hat: Tensor) -> None:
            kept.setdefault(nfe, []).append((_shown(subject, z_t), _shown(subject, x_hat)))

        cond, samples = _cond(subject, choice), bool(subject.samplers)
        labels = class_labels(subject.model, choice.label, choice.n)
        images = sample_images(
            subject.model, choice.n, choice.steps if samples else None,
            SAMPLERS[choice.sampler](spacing=choice.spacing) if samples else "ancestral",
            choice.seed, labels, choice.guidance if choice.guided else None, cond,
            _latents(subject, choice), MOST_IMAGES, "uint8", None, False, keep,
        )  # fmt: skip
        assert isinstance(images, Tensor)
        frames = [Frame(calls, *map(torch.cat, zip(*kept[calls], strict=True))) for calls in _spread(list(kept))]
        shown = None if cond is None else _shown(subject, cond)
        return Drawn(images, shown, frames, max(kept, default=0), time.perf_counter() - started)


def _shown(subject: Subject, x: Tensor) -> Tensor:
    """Return floats in about [-1, 1] as uint8 in 0 .. 255 on the CPU, clipped and rounded to the model's levels."""
    return to_uint8(subject.model.nearest_level(x), subject.model.levels).cpu()


def _spread(calls: list[int]) -> list[int]:
    """Return at most `MOST_FRAMES` of the numbers, evenly spread, with the first and the last."""
    last, most = len(calls) - 1, MOST_FRAMES - 1
    return calls if last <= most else [calls[round(k * last / most)] for k in range(MOST_FRAMES)]


def _cond(subject: Subject, choice: Choice) -> Tensor | None:
    """Return degraded held-out images for a restoration model, else None."""
    if not subject.needs_cond:
        return None
    held_out = subject.data.test_images[: choice.n]
    if len(held_out) < choice.n:
        raise InvalidValueError(f"n must be in 1 .. {len(held_out)}, the held-out images, got {choice.n}")
    return subject.model.example_cond(held_out.to(subject.device), Noise(choice.seed).to(subject.device))


def _latents(subject: Subject, choice: Choice) -> Latents | None:
    """Return the mixture, or the latents z that a request of this seed draws, shifted; None for the prior's."""
    if not subject.has_latent or not (choice.moved or choice.mixture):
        return None
    if not choice.moved:
        return Latents(mixture=choice.mixture)
    noise = Noise(choice.seed).to(subject.device)
    if choice.mixture is None:
        z = subject.model.prior_latents(choice.n, noise)
    else:
        z = load_mixture(choice.mixture).draw(choice.n, noise)
    for k, value in choice.moved:
        z[:, k] += value
    return Latents(z=z)


__all__ = ["ALL", "Choice", "Drawn", "Frame", "draw"]
