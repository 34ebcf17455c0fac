"""The command ``sample``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import check_picture, sampler_of, write_picture


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
    """ancestral, ddim, dpm-solver or heun."""
    eta: float | None = None
    """Option of ddim: 0 is deterministic, 1 is ancestral sampling."""
    spacing: str | None = None
    """Where the steps lie: evenly in time (the default), evenly in gamma, or quadratic."""
    betas: tuple[float, float] | None = None
    """First and last of evenly spaced betas, such as 1e-6 0.8 with 10 steps, instead of a DDPM's own noise levels."""
    variance: str | None = None
    """Option of ancestral: fixed_small, fixed_large or learned, instead of the model's own."""
    temperature: float | None = None
    """Factor on the standard deviation of the initial latent."""
    clip_denoised: bool = False
    """Clip the estimate of x to [-1, 1] at every step."""
    latents_temperature: float | None = None
    """Factor on the standard deviation of the latent z of a VAE or a DiffuseVAE."""
    mixture: Path | None = None
    """Mixture (`fastdiff mixture`) that the latent z of a VAE or a DiffuseVAE is drawn from."""
    label: int | None = None
    """Class of all images, for a class-conditional model."""
    guidance: float | None = None
    """Weight of classifier-free guidance, with --label."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    batch_size: int = 64
    """Images per call of the network."""
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
        from ..sampling import sample_images

        options = {name: getattr(self, name) for name in ("eta", "spacing", "betas", "variance", "temperature")}
        sampler = sampler_of(self.sampler, **options, clip_denoised=self.clip_denoised)
        latents = None
        if self.mixture is not None or self.latents_temperature is not None:
            temperature = 1.0 if self.latents_temperature is None else self.latents_temperature
            latents = Latents(temperature, self.mixture)
        with joined(self.device) as device:
            images = sample_images(
                self.model, self.n, self.steps, sampler, self.seed, self.label, self.guidance, None, latents,
                self.batch_size, "uint8", device, progress=True, callback=None, sharded=True,
            )  # fmt: skip
            assert not isinstance(images, list)
            on_first(lambda: write_picture(image_grid(images), self.out))
            if is_first():
                print(f"wrote {self.out} ({self.n} images)")
        return 0
