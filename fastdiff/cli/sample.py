"""The command ``sample``: a picture, an ``.npz`` file, or a folder of any number of images."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import sampler_of
from .choices import PAIR, SAMPLERS, SPACINGS, VARIANCES, choice, hint
from .common_flags import Computing, Drawing, drawn_by, is_watched
from .labels import ALL, parse_labels
from .outputs import Output, output_of, wrote

MOST_COLUMNS = 32  # classes that have a column each in the picture of all classes

if TYPE_CHECKING:
    from ..diffusion import Sampler
    from ..models import Guidance, Latents, Model
    from ..sampling import Engine

    Label = int | str | list[int] | None


@dataclass
class Sample(Drawing, Computing):
    """Draw images from a model: one picture of all, an .npz file, or a folder with a file each.

    A folder takes any number of images: `fastdiff sample digits -n 50000 --out samples/`. They are drawn in pieces; the
    same command goes on where it was stopped, --shard divides the work among machines, and torchrun among processes.
    """

    model: tyro.conf.Positional[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """Number of images. (Under torchrun write -n, since torchrun takes --n for an option of its own.)"""
    out: Annotated[str | None, hint("samples.png by default, or samples/ with --format, --piece or --shard")] = None
    """What to write: a picture of all images (samples.png), an .npz file with the array arr_0 [n, H, W, C]
    (samples.npz), or a folder (samples/)."""
    format: Annotated[Literal["png", "npz"] | None, hint("png by default")] = None
    """Files of a folder: a PNG of each image, or an .npz of each piece, which holds the labels too."""
    piece: Annotated[int | None, hint("1000 by default")] = None
    """Images of a piece of a folder, rounded up to whole batches; a process that is killed loses one piece."""
    shard: str | None = None
    """Draw a part of a folder, such as 2/8 for the second of eight machines."""
    steps: int | None = None
    """Sampler steps, 250 by default; a VAE has none."""
    sampler: Annotated[str, choice(*SAMPLERS)] = "ancestral"
    """How the steps are made; euler is ddim by its other name."""
    eta: float | None = None
    """Option of ddim, euler-a and dpm-solver-sde, the noise: 0 is deterministic, 1 that of ancestral sampling."""
    order: int | None = None
    """Option of unipc and deis: 1, 2 or 3 (the default)."""
    spacing: Annotated[str | None, choice(*SPACINGS)] = None
    """Where the steps lie: evenly in time (the default), or as another spacing; model: at the model's own times;
    leading, trailing and linspace, as in diffusers: for a DDPM."""
    rho: float | None = None
    """Exponent of --spacing karras, 7 by default."""
    betas: Annotated[tuple[float, float] | None, PAIR] = None
    """First and last of evenly spaced betas, such as 1e-6 0.8 with 10 steps, instead of a DDPM's own noise levels."""
    variance: Annotated[str | None, choice(*VARIANCES)] = None
    """Option of ancestral, instead of the model's own."""
    temperature: float | None = None
    """Factor on the standard deviation of the initial latent."""
    clip_denoised: bool = False
    """Clip the estimate of x to [-1, 1] at every step."""
    brownian: bool = False
    """Draw the noise of the steps from a Brownian path: a seed gives the same composition with any number of steps."""
    latents_temperature: float | None = None
    """Factor on the standard deviation of the latent z of a VAE or a DiffuseVAE."""
    mixture: str | None = None
    """Mixture that the latent z of a VAE or a DiffuseVAE is drawn from: the folder of `fastdiff mixture`, or the
    name of an embedded model that has one (diffusevae-letters)."""
    label: str | None = None
    """Class of the images, for a class-conditional model: its name or its number (name:2 and number:2 where a text is
    the name of one class and the number of another). Several, separated by commas, and all: the classes in turn, in a
    picture a column for each."""
    guidance: float | None = None
    """Weight of classifier-free guidance, with --label."""
    guidance_interval: Annotated[tuple[float, float] | None, PAIR] = None
    """First and last time t in [0, 1] at which guidance applies, such as 0.2 0.8; everywhere by default."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    batch_size: int = 64
    """Images per call of the network."""
    compile: bool = False
    """Compile the network (torch.compile), for many images."""
    graph: Literal["auto", "on", "off"] = "auto"
    """Run the sampling loop as a captured CUDA graph; auto does on a GPU."""
    batch_invariant: int | None = None
    """Call the network on this many images at a time, so that images are bit-identical for every --batch-size."""
    device: str = "auto"
    """Where to run: auto (the GPU if there is one), cpu, cuda, or cuda:1; under torchrun each process takes a GPU."""

    def run(self) -> int:
        """Sample, and write the files."""
        if self.n < 1:
            raise InvalidValueError(f"--n must be an integer >= 1, got {self.n}")
        self.check_threads()
        output = output_of(self.out, self.format, self.piece, self.shard)
        if output.kind != "folder":
            self.check_free(output.path)
        elif self.overwrite:
            raise InvalidValueError(f"--overwrite is for a picture or an .npz file, got the folder {output.path}")

        from ..io.processes import joined
        from ..models import Latents
        from ..sampling import Engine

        names = ("eta", "order", "spacing", "rho", "betas", "variance", "temperature")
        options = {name: getattr(self, name) for name in names}
        sampler = sampler_of(self.sampler, **options, clip_denoised=self.clip_denoised, brownian=self.brownian)
        latents = None
        if self.mixture is not None or self.latents_temperature is not None:
            temperature = 1.0 if self.latents_temperature is None else self.latents_temperature
            latents = Latents(temperature, self.mixture)
        invariant = False if self.batch_invariant is None else self.batch_invariant
        with joined(self.device) as device:
            self.set_threads()
            graph = {"auto": None, "on": True, "off": False}[self.graph]
            engine = Engine(self.model, self.compile, graph, invariant, device)
            label = parse_labels(self.label, engine.model.config)
            write = self._write_folder if output.kind == "folder" else self._write_file
            write(engine, output, sampler, latents, label)
        return 0

    def _write_file(
        self, engine: "Engine", output: Output, sampler: "Sampler", latents: "Latents | None", label: "Label"
    ) -> None:
        """Draw all images, and write the picture or the .npz file."""
        from ..io.files import write_atomically
        from ..io.image_files import npz_bytes
        from ..io.pictures import image_grid
        from ..io.processes import on_first
        from ..sampling import sample_images
        from ..sampling.bulk import class_labels

        labels = class_labels(engine.model, label, self.n)
        images = sample_images(
            engine, self.n, self.steps, sampler, self.seed, labels, self._guidance(), None, latents,
            self.batch_size, "uint8", None, progress=is_watched(), callback=None, sharded=True,
        )  # fmt: skip
        assert not isinstance(images, list)
        if output.kind == "npz":
            path = on_first(lambda: write_atomically(self.free_path(output.path), npz_bytes(images, labels)))
        else:
            names = _columns(engine.model, label)
            names = names if len(names) <= min(self.n, MOST_COLUMNS) else ()
            sheet = image_grid(images, len(names) or None)
            path = on_first(lambda: self.write(sheet, output.path, self._parts(engine.model), names))
        if path is not None:  # in the first process
            print(wrote(path, self.n))

    def _write_folder(
        self, engine: "Engine", output: Output, sampler: "Sampler", latents: "Latents | None", label: "Label"
    ) -> None:
        """Draw the pieces of a folder that are missing."""
        from ..io.processes import is_first
        from ..sampling import sample_to_folder

        done = sample_to_folder(
            engine, output.path, self.n, self.steps, sampler, self.seed, label, self._guidance(), latents,
            self.batch_size, output.piece, output.format, shard=output.shard, progress=is_watched(),
        )  # fmt: skip
        if is_first():
            part = "" if output.shard == (1, 1) else f" of shard {self.shard}"
            there = f"; {done.images - done.drawn} were there" if done.drawn < done.images else ""
            missing = f"; {done.missing} of {self.n} are missing" if done.missing else ""
            print(f"wrote {done.path}{os.sep} ({done.drawn} images{part}{there}{missing})")

    def _parts(self, model: "Model") -> list[str]:
        """Return the parts of the caption."""
        several = "classes" if "," in (self.label or "") else "class"
        label = "" if self.label is None else "all classes" if self.label == ALL else f"{several} {self.label}"
        guidance = "" if self.guidance is None else f"guidance {self.guidance:g}"
        mixture = "" if self.mixture is None else f"z from the mixture {Path(self.mixture).name}"
        return [*drawn_by(self.model, model, self.sampler, self.steps, self.seed), label, guidance, mixture]

    def _guidance(self) -> "Guidance | float | None":
        """Return the guidance of the flags.

        Raises:
            InvalidValueError: an interval without a weight, or one that is not allowed.
        """
        if self.guidance_interval is None:
            return self.guidance
        if self.guidance is None:
            raise InvalidValueError("--guidance-interval needs --guidance")

        from ..models import Guidance

        return Guidance(self.guidance, self.guidance_interval)


def _columns(model: "Model", label: "Label") -> tuple[str, ...]:
    """Return the names above the columns of a picture of several classes; () without."""
    names = model.config.names
    return names if label == ALL else tuple(names[k] for k in label) if isinstance(label, list) else ()
