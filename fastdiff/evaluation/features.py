"""Features of images, for distances between sets of them: by name, from a file, or by a function of the user's own."""

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..io.pictures import to_uint8
from ..kernels import FastdiffError, InvalidTypeError, InvalidValueError
from ..models import evaluating
from .batches import BAR_DELAY, Images
from .classifiers import CLASSIFIERS, load_classifier
from .inception import FeaturesError, load_inception

TORCHSCRIPT = (".pt", ".ts", ".torchscript")
NAMES = f"{', '.join(CLASSIFIERS)}, inception, module:function, or a TorchScript file (.pt)"


@torch.no_grad()
def image_features(
    images: Tensor | Images,
    features: Callable[[Tensor], Tensor],
    batch_size: int = 64,
    levels: int = 256,
    progress: bool = False,
) -> Tensor:
    """Return the features [N, F] of images on the CPU, in the network's dtype; the images are read batch by batch.

    Args:
        images: uint8 [N, C, H, W], N >= 2; or what reads such batches when it is indexed, such as the images of a
            `fastdiff.data.Dataset`.
        features: maps a batch of uint8 images to floats [n, F], and moves and scales the images itself. A module is
            called in eval mode, and its mode restored.
        batch_size: images per call of ``features``, >= 1; it changes the features by rounding only.
        levels: number of values of a pixel. Fewer than 256 are scaled to 0 .. 255 before the call.
        progress: show a progress bar on stderr.

    Raises:
        InvalidTypeError, InvalidValueError: images of another dtype or rank, or fewer than 2; features of another
            dtype or shape.
    """
    check_set("images", images, batch_size)
    parts: list[Tensor] = []
    with (
        evaluating(features) if isinstance(features, nn.Module) else nullcontext(),
        tqdm(total=len(images), unit="img", desc="features", disable=not progress, leave=False, delay=BAR_DELAY) as bar,
    ):
        for first in range(0, len(images), batch_size):
            batch = images[torch.arange(first, min(first + batch_size, len(images)))]
            part = features(batch if levels == 256 else to_uint8(batch, levels))
            if not isinstance(part, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]: of the user's own
                raise InvalidTypeError(f"fd: features must return a tensor [n, F], got a {type(part).__name__}")
            if part.dim() != 2 or len(part) != len(batch):
                raise InvalidValueError(
                    f"fd: features must return shape [{len(batch)}, F] for {len(batch)} images, got {tuple(part.shape)}"
                )
            if not part.is_floating_point():
                raise InvalidTypeError(f"fd: features must have a floating-point dtype, got {part.dtype}")
            parts.append(part.detach().cpu())
            bar.update(len(batch))
    return torch.cat(parts)


def check_set(name: str, images: Tensor | Images, batch_size: int) -> None:
    """Check a set of images whose features are wanted.

    Raises:
        InvalidTypeError, InvalidValueError: as `image_features`.
    """
    if batch_size < 1:
        raise InvalidValueError(f"fd: batch_size must be >= 1, got {batch_size}")
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8:
            raise InvalidTypeError(f"fd: {name} must have dtype torch.uint8, got {images.dtype}")
        if images.dim() != 4 or len(images) < 2:
            raise InvalidValueError(f"fd: {name} must have shape [N, C, H, W] with N >= 2, got {tuple(images.shape)}")
    elif len(images) < 2:
        raise InvalidValueError(f"fd: {name} must be at least 2 in number, got {len(images)}")


def load_features(
    name: str, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Callable[[Tensor], Tensor]:
    """Return what maps images uint8 [n, C, H, W] in 0 .. 255 to features, floats [n, F].

    Args:
        name: ``"digits"`` or ``"letters"``, the classifier of the embedded data set, for grey images of 8×8 or 28×28;
            ``"inception"``, the pool features [n, 2048] of the Inception-v3 of FID, for grey or RGB images of any size
            (`load_inception`); ``"module:function"``, a callable of your own, which moves and scales the images itself;
            or the path of a TorchScript file.
        weights: path of the weights of ``"inception"``.
        device: where the network runs; a callable of your own decides itself.

    Raises:
        InvalidValueError: another name, or weights for another network than Inception.
        FeaturesError: weights, a module, a function or a file that is missing or cannot be loaded. A callable of your
            own and a TorchScript file raise it also when they are called, for any exception.
    """
    if weights is not None and name != "inception":
        raise InvalidValueError(f"weights must be None for the features {name}, got {str(weights)!r}")
    if name in CLASSIFIERS:
        return ClassifierFeatures(name).to(device).eval()
    if name == "inception":
        return load_inception(weights, device)
    if name.endswith(TORCHSCRIPT):
        return _load_torchscript(name, device)
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise InvalidValueError(f"features must be {NAMES}, got {name!r}")
    return _load_function(module, function)


class ClassifierFeatures(nn.Module):
    """The features of an embedded data set's classifier for images uint8 [N, 1, H, W] in 0 .. 255.

    The values are rounded to the levels of the data set.
    """

    def __init__(self, data: str) -> None:
        super().__init__()
        self.data, self.classifier = data, load_classifier(data)

    def forward(self, images: Tensor) -> Tensor:
        config = self.classifier.config
        if images.shape[1:] != config.shape:
            raise InvalidValueError(
                f"features {self.data} are for grey images of {config.shape[1]}×{config.shape[2]}, got "
                f"{tuple(images.shape[1:])}; other images need other features: {NAMES}"
            )
        levels = torch.round(images.to(self.classifier.head.weight.device).float() * ((config.levels - 1) / 255.0))
        return self.classifier(levels)


class NamedFeatures(nn.Module):
    """Features of the user's own, floats [n, F] of images uint8 [n, C, H, W], whose exceptions name them and the batch.

    It is a module so that a network in it is put into eval mode with it (`image_features`).
    """

    def __init__(self, name: str, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.network = name, network

    def forward(self, images: Tensor) -> Tensor:
        try:
            return self.network(images)
        except FastdiffError:
            raise
        except Exception as error:  # a user's function can raise anything
            batch = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            reason = str(error).strip() or type(error).__name__
            if len(reason.splitlines()) > 1:  # a message of TorchScript ends with the cause
                reason = reason.splitlines()[-1].strip()
            raise FeaturesError(f"features {self.name} failed on a batch {batch}: {reason}") from error


def _load_torchscript(path: str, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates TorchScript; such files are in use
            network = torch.jit.load(path, map_location=device)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FeaturesError(f"{path} cannot be read as a TorchScript file: {reason}") from error
    network.eval()
    arguments = {argument.name for argument in network.forward.schema.arguments}
    options = {"return_features": True} if "return_features" in arguments else {}  # StyleGAN's file of Inception
    return NamedFeatures(path, lambda images: network(images.to(device), **options))


def _load_function(module: str, function: str) -> Callable[[Tensor], Tensor]:
    folder = os.getcwd()
    sys.path.insert(0, folder)  # of an installed command it is not on the path
    try:
        found: Callable[[Tensor], Tensor] = getattr(importlib.import_module(module), function)
    except FastdiffError:
        raise
    except Exception as error:  # a module of the user's own can raise anything
        raise FeaturesError(f"features {module}:{function} cannot be imported: {error}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    if not callable(found):
        raise FeaturesError(f"features {module}:{function} must be a callable, got a {type(found).__name__}")
    return NamedFeatures(f"{module}:{function}", found)
