"""The command ``interpolate``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .arguments import check_picture, load_data
from .choices import SAMPLERS, VARIED, choice
from .common_flags import Computing, Drawing, drawn_by, is_watched
from .labels import parse_labels

VARIES = {"latent": "z varies", "noise": "x_T varies", "class": "z varies from class to class"}


@dataclass
class Interpolate(Drawing, Computing):
    """Write strips of images that interpolate one latent of a model, with everything else fixed."""

    model: tyro.conf.Positional[str]
    """Checkpoint folder, run folder, or embedded model: a VAE, a DiffuseVAE or a diffusion model."""
    vary: Annotated[str | None, choice(*VARIED)] = None
    """What varies: latent, z of a VAE or a DiffuseVAE, the default of both; noise, x_T of a diffusion, the default of
    the others; class, z from the mean of one class to that of the next."""
    rows: int = 6
    """Number of strips."""
    count: int = 10
    """Images per strip."""
    out: Path = Path("strips.png")
    """Picture to write."""
    steps: int | None = None
    """Sampler steps, 50 by default; a VAE has none."""
    sampler: Annotated[str | None, choice(*SAMPLERS)] = None
    """How the steps are made, ddim by default; a VAE has none."""
    label: str | None = None
    """Class of the images, for a class-conditional model, as of `fastdiff sample`; of several each row has the next."""
    guidance: float | None = None
    """Weight of classifier-free guidance, with --label."""
    seed: int = 0
    """Of the ends of the strips, and of the noise that their images share."""
    data: str | None = None
    """Labelled data set, for --vary class, instead of that of the training."""

    def run(self) -> int:
        """Interpolate, and write the picture."""
        check_picture(self.out)
        self.check_free(self.out)
        self.check_threads()

        from ..checkpoints import load
        from ..io.pictures import image_grid, to_uint8
        from ..sampling import interpolate
        from ..sampling.bulk import class_labels
        from ..sampling.interpolation import DEFAULT_SAMPLER, DEFAULT_STEPS
        from ..training.batches import check_fit

        model = load(self.model).to(self.chosen_device())
        vary = self.vary or ("latent" if "z" in model.latent_variables else "noise")
        data = load_data(self.model, self.data, model.shape) if vary == "class" else None
        if data is not None:
            check_fit(model, data)
        label = parse_labels(self.label, model.config)
        labels = None if label is None else class_labels(model, label, max(1, self.rows))
        images = interpolate(
            model, vary, self.rows, self.count, self.seed, self.steps, self.sampler, data, is_watched(), labels,
            self.guidance,
        )  # fmt: skip
        sheet = image_grid(to_uint8(images, model.levels), columns=self.count)
        drawn = drawn_by(self.model, model, self.sampler or DEFAULT_SAMPLER, self.steps, self.seed, DEFAULT_STEPS)
        of_class = "" if self.label is None else f"label {self.label}"
        path = self.write(sheet, self.out, [*drawn, of_class, f"{VARIES[vary]} in each row"])
        print(f"wrote {path} ({self.rows} strips of {self.count} images)")
        return 0
