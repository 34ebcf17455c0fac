"""The command ``sample``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import check_picture, sampler_of, write_picture

if TYPE_CHECKING:
    from ..models import Guidance


@dataclass
class Sample:
    """Draw images from a model and write them as one PNG grid."""

    model: tyro.conf.Positional[str] = "digits"
    """Checkpoint folder, run folder, or embedded model."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 64
    """Number of images. (Under torchrun write -n, since torchrun takes --n for an option of its own.)"""
    out: Path = Path("samples.png")
    """Picture to write."""
    steps: int | None = None
    """Sampler steps, 250 by default; a VAE has none."""
    sampler: str = "ancestral"
    """ancestral, ddim, dpm-solver, heun, euler (ddim by its other name), unipc, deis, dpm-solver-sde,
    dpm-solver-sde-2s or euler-a."""
    eta: float | None = None
    """Option of ddim, euler-a and dpm-solver-sde, the noise: 0 is deterministic, 1 that of ancestral sampling."""
    order: int | None = None
    """Option of unipc and deis: 1, 2 or 3 (the default)."""
    spacing: str | None = None
    """Where the steps lie: time (evenly, the default), gamma, quadratic, karras, or model (the model's own times)."""
    rho: float | None = None
    """Exponent of --spacing karras, 7 by default."""
    betas: tuple[float, float] | None = None
    """First and last of evenly spaced betas, such as 1e-6 0.8 with 10 steps, instead of a DDPM's own noise levels."""
    variance: str | None = None
    """Option of ancestral: fixed_small, fixed_large or learned, instead of the model's own."""
    temperature: float | None = None
    """Factor on the standard deviation of the initial latent."""
    clip_denoised: bool = False
    """Clip the estimate of x to [-1, 1] at every step."""
    brownian: bool = False
    """Draw the noise of the steps from a Brownian path: a seed gives the same composition with any number of steps."""
    latents_temperature: float | None = None
    """Factor on the standard deviation of the latent z of a VAE or a DiffuseVAE."""
    mixture: Path | None = None
    """Mixture (`fastdiff mixture`) that the latent z of a VAE or a DiffuseVAE is drawn from."""
    label: int | None = None
    """Class of all images, for a class-conditional model."""
    guidance: float | None = None
    """Weight of classifier-free guidance, with --label."""
    guidance_interval: tuple[float, float] | None = None
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
        """Sample, and write the picture."""
        if self.n < 1:
            raise InvalidValueError(f"--n must be an integer >= 1 for a picture, got {self.n}")
        check_picture(self.out)

        from ..io.pictures import image_grid
        from ..io.processes import is_first, joined, on_first
        from ..models import Latents
        from ..sampling import Engine, sample_images

        names = ("eta", "order", "spacing", "rho", "betas", "variance", "temperature")
        options = {name: getattr(self, name) for name in names}
        sampler = sampler_of(self.sampler, **options, clip_denoised=self.clip_denoised, brownian=self.brownian)
        latents = None
        if self.mixture is not None or self.latents_temperature is not None:
            temperature = 1.0 if self.latents_temperature is None else self.latents_temperature
            latents = Latents(temperature, self.mixture)
        invariant = False if self.batch_invariant is None else self.batch_invariant
        with joined(self.device) as device:
            graph = {"auto": None, "on": True, "off": False}[self.graph]
            engine = Engine(self.model, self.compile, graph, invariant, device)
            images = sample_images(
                engine, self.n, self.steps, sampler, self.seed, self.label, self._guidance(), None, latents,
                self.batch_size, "uint8", None, progress=True, callback=None, sharded=True,
            )  # fmt: skip
            assert not isinstance(images, list)
            on_first(lambda: write_picture(image_grid(images), self.out))
            if is_first():
                print(f"wrote {self.out} ({self.n} images)")
        return 0

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
