"""Many images on disk, in pieces: sampling that goes on where it stopped, and that processes and machines divide."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..diffusion import Plan, Sampler, as_sampler
from ..io.folders import Json
from ..io.image_files import check_channels
from ..io.pictures import to_uint8
from ..io.processes import count, is_first, on_first, rank, share
from ..io.shares import divide_work
from ..kernels import InvalidTypeError, InvalidValueError, Noise
from ..models import Guidance, Latents, Model, Request, evaluating
from ..models.requests import guidance_of_request
from .engine import Engine
from .images import Batches, check_count, prepare_batches
from .mixtures import LatentMixture
from .sample_folder import Piece, SampleFolder, tensors_crc32

ALL = "all"  # labels: the classes in turn
IDENTITY = ("model", "config", "custom", "spacings")  # what tells a model from others, of its description
NAMES = "class_names"  # of its configuration, of which nothing is computed


@dataclass(frozen=True)
class Samples:
    """What `sample_to_folder` has done: ``drawn`` images in this call; ``missing`` ones of the request, of all shards.

    ``images`` is the number of images in the shard. The pieces of other shards are missing unless they are listed and
    their files have their sizes; a call without a shard compares the checksums of all.
    """

    path: Path
    images: int
    drawn: int
    missing: int


def sample_to_folder(
    model: Engine | Model | nn.Module | str | Path,
    path: str | Path,
    n: int,
    steps: int | None = None,
    sampler: str | Sampler | Callable[[Tensor], Plan] = "ancestral",
    seed: int = 0,
    labels: int | str | Sequence[int | str] | None = None,
    guidance: float | Guidance | None = None,
    latents: Latents | None = None,
    batch_size: int = 64,
    piece: int = 1000,
    format: str = "png",
    first: int = 0,
    shard: tuple[int, int] = (1, 1),
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Samples:
    """Draw the images ``first`` .. ``first + n - 1`` of a seed into a folder, piece by piece, as 0 .. 255.

    The same call goes on where an earlier one was interrupted: a process that is killed loses the piece in work.
    ``samples.json`` holds the request and the pieces (`fastdiff.sampling.sample_folder`); another request is an error.

    Image i is a function of (seed, i). Pieces consist of whole batches, so with ``first = 0`` the images are bit for
    bit those of ``fastdiff.sample(model, n, ..., batch_size=batch_size)`` on the same device. With another
    ``batch_size``, ``first`` or device the network rounds differently; an ``Engine(batch_invariant=True)`` gives the
    same bits for all of them on one device.

    The processes of torchrun (`fastdiff.io.processes.joined`) divide the pieces; all make the same call, with the same
    folder. Independent machines take a ``shard`` each.

    Args:
        model, n, steps, sampler, seed, guidance, latents, batch_size, device, progress:
            those of `fastdiff.sample`, n >= 1.
        path: the folder: new, empty, or one with samples of the same request.
        labels: None, the number or the name of one class, a list of K classes, or ``"all"``: of several classes image i
            has the one at i modulo their number.
        piece: images of a piece, >= 1, rounded up to whole batches.
        format: ``"png"``, a file of each image, named by its index; or ``"npz"``, a file of each piece with the arrays
            ``arr_0`` uint8 [N, H, W, C] and, where there are labels, ``arr_1`` int64 [N].
        first: index of the first image, >= 0.
        shard: (k, K), 1 <= k <= K: draw the pieces k - 1, k - 1 + K, ... alone.

    Raises:
        SampleFolderError: the folder holds something else, or samples of another request; it names what differs.
        FastdiffError: as `fastdiff.sample`; images of neither one nor three channels; files that cannot be written.
    """
    _check(path, seed, {"n": (n, 1), "first": (first, 0), "piece": (piece, 1), "batch_size": (batch_size, 1)})
    engine = (model if isinstance(model, Engine) else Engine(model)).to(device)
    check_channels("a folder of samples", engine.model.shape[0])
    classes = _numbers(engine.model, labels)
    request = Request(
        first + n, seed, steps, as_sampler(sampler), class_labels(engine.model, classes, first + n), guidance,
        latents=latents, execution=engine.execution,
    )  # fmt: skip
    batches = prepare_batches(engine.model, request, batch_size)
    batch_size = engine.execution.micro_batch or batch_size
    where = {"first": first, "n": n, "piece": -(-piece // batch_size) * batch_size, "format": format}
    folder = SampleFolder(path, where | describe(engine.model, batches, classes, batch_size), shard)
    return _draw_pieces(engine.model, batches, folder, progress)


def _check(path: object, seed: int, counts: dict[str, tuple[object, int]]) -> None:
    """Check arguments; ``counts`` holds integers by name, each with the least that is allowed."""
    for name, (value, least) in counts.items():
        check_count("sample_to_folder", name, value, least)
    Noise(seed)  # checks it
    if not isinstance(path, (str, Path)):
        raise InvalidTypeError(f"sample_to_folder: path must be a str or a Path, got {path!r}")


def _draw_pieces(model: Model, batches: Batches, folder: SampleFolder, progress: bool) -> Samples:
    """Draw the pieces of a folder that are missing, each in one process, and list them as they are done."""
    missing: list[int] = share(on_first(folder.begin)) or []
    request, size = batches.request, batches.size
    own = sum(folder.last(first) - first + 1 for first in missing[rank() :: count()])
    title = f"sampling to {folder.path.name}"
    with evaluating(model), tqdm(total=own, unit="img", desc=title, disable=not (progress and is_first())) as bar:

        def draw(index: int) -> Tensor:
            first, parts = missing[index], []
            end = folder.last(first) + 1
            for start in range(first, end, size):
                parts.append(batches.images(start))
                bar.update(len(parts[-1]))
            labels = request.labels[first:end].clone() if isinstance(request.labels, Tensor) else None
            piece = folder.write_piece(first, to_uint8(torch.cat(parts), model.levels), labels)
            return torch.tensor([piece.first, piece.last, piece.bytes, piece.crc32])

        for numbers in divide_work(len(missing), draw, sharded=True):
            piece = Piece(*numbers.tolist())
            on_first(lambda piece=piece: folder.add(piece))
    images, drawn = (sum(folder.last(first) - first + 1 for first in pieces) for pieces in (folder.own, missing))
    return Samples(folder.path, images, drawn, share(on_first(folder.missing)) or 0)


def class_labels(model: Model, labels: int | str | Sequence[int] | None, n: int) -> Tensor | None:
    """Return the labels int64 [n] of images of one class, of a list of classes in turn, or of all; None for None.

    Raises:
        InvalidValueError: anything else, or all classes of a model that has none.
    """
    if labels is None:
        return None
    if labels == ALL and model.num_classes:
        return torch.arange(n) % model.num_classes
    classes = list(labels) if isinstance(labels, (list, tuple)) else [labels]
    if not classes or not all(type(label) is int and 0 <= label < model.num_classes for label in classes):
        allowed = f"classes in 0 .. {model.num_classes - 1} or {ALL!r}" if model.num_classes else "no classes"
        wanted = f"None or {allowed}" if model.num_classes else f"None for a {model.kind} model with {allowed}"
        raise InvalidValueError(f"labels must be {wanted}, got {labels!r}")
    return torch.tensor(classes)[torch.arange(n) % len(classes)]


def _numbers(model: Model, labels: int | str | Sequence[int | str] | None) -> Any:
    """Return the numbers of classes in place of their names, in a list where there are several; the rest as it is."""
    if isinstance(labels, (list, tuple)):
        return [_numbers(model, label) if label != ALL else label for label in labels]
    if isinstance(labels, str) and labels != ALL and model.num_classes:
        return model.config.class_number(labels)
    return labels


# ------------------------------------------------------------------------------------------------ the request as JSON


def describe(model: Model, batches: Batches, labels: object, batch_size: int) -> Json:
    """Return what the images of a request are a function of, in plain JSON types."""
    request, device = batches.request, model.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    guidance = guidance_of_request(request.guidance, request.labels)
    return {
        "model": {"kind": model.kind, "shape": list(model.shape), "crc32": model_crc32(model)},
        "seed": request.seed,
        "steps": request.steps,
        "calls": batches.draw.rows,
        "sampler": {"kind": type(request.sampler).__name__, **_options(request.sampler)},
        "labels": labels,
        "guidance": None if guidance is None else [float(guidance.weight), *guidance.interval],
        "latents": None if request.latents is None else _latents(request.latents),
        "batch_size": batch_size,
        "autocast": str(torch.get_autocast_dtype(device)) if autocast else None,
        "batch_invariant": bool(request.execution.micro_batch),
    }


def model_crc32(model: Model) -> int:
    """Return the CRC-32 of a model's configuration and weights."""
    description = {key: value for key, value in model.description().items() if key in IDENTITY}
    description = _without_names(description)
    return tensors_crc32(model.state_dict(), zlib.crc32(json.dumps(description, sort_keys=True).encode()))


def _without_names(content: Json) -> Json:
    """Return a description without the names of classes, in nested configurations too."""
    kept = {key: value for key, value in content.items() if key != NAMES}
    return {key: _without_names(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _options(sampler: Sampler) -> Json:
    return {field.name: _plain(getattr(sampler, field.name)) for field in attrs.fields(type(sampler))}


def _plain(value: object) -> object:
    """Return an option of a sampler in plain JSON types; a function by its name."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return list(map(_plain, value))
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value


def _latents(latents: Latents) -> Json:
    mixture, crc = latents.mixture, None
    if isinstance(mixture, LatentMixture):
        crc = tensors_crc32({"weights": mixture.weights, "means": mixture.means, "factors": mixture.factors})
    elif mixture is not None:
        crc = type(mixture).__qualname__
    z = None if latents.z is None else tensors_crc32({"z": latents.z})
    return {"temperature": latents.temperature, "mixture": crc, "z": z}
