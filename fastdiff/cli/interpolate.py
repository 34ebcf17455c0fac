"""The command ``interpolate``."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from .arguments import check_picture, default_device, load_data, write_picture


@dataclass
class Interpolate:
    """Write strips of images that interpolate one latent of a model, with everything else fixed."""

    model: tyro.conf.Positional[str]
    """Checkpoint folder, run folder, or embedded model: a VAE, a DiffuseVAE or a diffusion model."""
    vary: str = "latent"
    """latent (z of a VAE), noise (x_T), or class (z from the mean of one class to that of the next)."""
    rows: int = 6
    """Number of strips."""
    count: int = 10
    """Images per strip."""
    out: Path = Path("strips.png")
    """Picture to write."""
    steps: int | None = None
    """Sampler steps, 50 by default; a VAE has none."""
    sampler: str | None = None
    """ancestral, ddim (the default), dpm-solver, heun, unipc or deis; a VAE has none."""
    seed: int = 0
    """Of the ends of the strips, and of the noise that their images share."""
    data: str | None = None
    """Labelled data set, for --vary class, instead of that of the training."""

    def run(self) -> int:
        """Interpolate, and write the picture."""
        check_picture(self.out)

        from ..checkpoints import load
        from ..io.pictures import image_grid, to_uint8
        from ..sampling import interpolate
        from ..training.batches import check_fit

        model = load(self.model).to(default_device())
        data = load_data(self.model, self.data, model.shape) if self.vary == "class" else None
        if data is not None:
            check_fit(model, data)
        images = interpolate(
            model, self.vary, self.rows, self.count, self.seed, self.steps, self.sampler, data, progress=True
        )
        write_picture(image_grid(to_uint8(images, model.levels), columns=self.count), self.out)
        print(f"wrote {self.out} ({self.rows} strips of {self.count} images)")
        return 0
