"""An engine: a model, and how it is called; and the implementation of `fastdiff.sample`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoints import load
from ..diffusion import Callback, Execution, Plan, Sampler, as_sampler
from ..io.pictures import to_pil, to_uint8
from ..io.processes import check_device
from ..kernels import InvalidTypeError, InvalidValueError, Noise
from ..models import Guidance, Latents, Model, Request, check_model, uncompiled
from .images import check_count, draw_images

if TYPE_CHECKING:
    from PIL import Image

OUTPUTS = ("uint8", "levels", "float", "pil")


class Engine:
    """A model with options of how it is run, for repeated sampling and for `fastdiff.sample`.

    Example::

        engine = fastdiff.Engine("digits", compile=True)
        images = engine.sample(64, steps=50, seed=3)  # compiles at the first call
        with torch.autocast("cuda", torch.bfloat16):  # the network in 16 bits
            images = engine.sample(64, steps=50, seed=3)

    Args:
        model: a model, a module that ``torch.compile`` made of one, a checkpoint folder, a run's folder, or the name of
            an embedded model.
        compile: call the network through ``torch.compile``. It is compiled for one batch size: all batches of a call of
            `sample` have the size of the first, the last one is padded.
        graph: run the sampling loop as a captured CUDA graph, which the host only starts: network, guidance, sampler
            step and noise are recorded once for a batch size and replayed for every step. None: on a GPU. Where
            recording fails, the loop runs without, and one line of the log ``fastdiff`` says why.
        batch_invariant: call the network on micro-batches of this many samples, whatever ``batch_size``, with padding:
            images are then bit-identical for every batch size on one device. True stands for 16.
        device: where to run. The model is moved there and stays there. None runs where the model is.

    Raises:
        FastdiffError: an argument of the wrong type or out of range, a graph on a CPU, compilation without a compiler,
            a model that cannot be loaded.
    """

    def __init__(
        self,
        model: Model | torch.nn.Module | str | Path,
        compile: bool = False,
        graph: bool | None = None,
        batch_invariant: bool | int = False,
        device: torch.device | str | None = None,
    ) -> None:
        module, was_compiled = uncompiled(load(model) if isinstance(model, (str, Path)) else model)
        self.execution = Execution(True if was_compiled else compile, graph, batch_invariant)
        self.model = check_model("Engine", module)
        self.place = self.model.device
        self.to(device)

    def to(self, device: torch.device | str | None) -> "Engine":
        """Move the model to a device, and return the engine. None leaves it where it is."""
        place = self.model.device if device is None else torch.device(check_device(device))
        self.execution.check_device(place)
        if device is not None:
            self.model.to(place)
        if place.type != self.place.type:  # what was captured, failed or too large there is another thing here
            self.execution.clear()
            self.execution.largest_batch = None
        self.place = place
        return self

    def sample(
        self,
        n: int,
        steps: int | None = None,
        sampler: str | Sampler | Callable[[Tensor], Plan] = "ancestral",
        seed: int = 0,
        labels: object = None,
        guidance: float | Guidance | None = None,
        cond: Tensor | None = None,
        latents: Latents | None = None,
        batch_size: int = 64,
        output: str = "uint8",
        progress: bool = False,
        callback: Callback | None = None,
    ) -> "Tensor | list[Image.Image]":
        """Draw ``n`` images; arguments, result and errors as in `fastdiff.sample`."""
        return sample_images(
            self, n, steps, sampler, seed, labels, guidance, cond, latents, batch_size, output, None, progress, callback
        )


def sample_images(
    model: Engine | Model | torch.nn.Module | str | Path,
    n: int,
    steps: int | None,
    sampler: str | Sampler | Callable[[Tensor], Plan],
    seed: int,
    labels: object,
    guidance: float | Guidance | None,
    cond: Tensor | None,
    latents: Latents | None,
    batch_size: int,
    output: str,
    device: torch.device | str | None,
    progress: bool,
    callback: Callback | None,
    sharded: bool = False,
) -> "Tensor | list[Image.Image]":
    """Draw images from a model; see `fastdiff.sample`, and `draw_images` for ``sharded``."""
    n, batch_size = check_count("sample", "n", n, 0), check_count("sample", "batch_size", batch_size, 1)
    check_output("sample", output)
    if callback is not None and not callable(callback):
        raise InvalidTypeError(f"sample: callback must be a callable (step, nfe, z_t, x_hat) or None, got {callback!r}")
    Noise(seed)  # checks it
    engine = (model if isinstance(model, Engine) else Engine(model)).to(device)
    request = Request(n, seed, steps, as_sampler(sampler), labels, guidance, cond, latents, execution=engine.execution)
    return as_output(draw_images(engine.model, request, batch_size, progress, callback, sharded), engine.model, output)


def check_output(where: str, output: object) -> None:
    """Raise an InvalidValueError for an output that is not one of `OUTPUTS`."""
    if output not in OUTPUTS:
        raise InvalidValueError(f"{where}: output must be one of {', '.join(OUTPUTS)}, got {output!r}")


def as_output(images: Tensor, model: Model, output: str) -> "Tensor | list[Image.Image]":
    """Return a model's images uint8 levels [n, C, H, W] as one of `OUTPUTS`, see `fastdiff.sample`."""
    levels = model.levels
    if output == "levels":
        return images
    if output == "float":
        return images.float() * (2.0 / (levels - 1)) - 1.0
    images = to_uint8(images, levels)
    return images if output == "uint8" else [to_pil(image) for image in images]
