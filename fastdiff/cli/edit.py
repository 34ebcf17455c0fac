"""The commands ``edit`` and ``inpaint``."""

from dataclasses import dataclass
from pathlib import Path

from .common_flags import is_watched
from .editing_flags import VariantFlags
from .labels import parse_label

COVERED = 128  # grey of the pixels below a mask


@dataclass(kw_only=True)
class Edit(VariantFlags):
    """Vary images: add noise up to --strength, and denoise them from there.

    A picture (--out edited.png) shows the images in its first row and the results below; a folder (--out edited/) gets
    a file for each result.
    """

    strength: float = 0.5
    """How far, in (0, 1]: near 0 the images stay as they are, 1 leaves little of them."""
    out: str = "edited.png"
    """What to write: a picture, an .npz file with the array arr_0, or a folder (edited/)."""

    def run(self) -> int:
        """Edit, and write the results."""
        self.check_variants()
        output = self.output_for(self.out)

        from ..io.pictures import to_uint8
        from ..sampling import edit
        from ..sampling.editing import diffusion_engine

        engine = diffusion_engine("edit", self.engine())
        images = self.read(engine.model.shape, output)
        x = images.at_levels(engine.model.levels)
        results = edit(
            engine, self.repeated(x), self.strength, self.steps, self.sampler_object(), self.seed,
            parse_label(self.label, engine.model.config), self.guidance, None, self.batch_size, progress=is_watched(),
        )  # fmt: skip
        assert not isinstance(results, list)
        shown = {"images": to_uint8(x, engine.model.levels)}
        self.write_results(output, engine.model, images.names, shown, results, f"strength {self.strength:g}")
        return 0


@dataclass(kw_only=True)
class Inpaint(VariantFlags):
    """Fill in what a mask covers, and keep the other pixels, rounded to the model's levels.

    A picture (--out inpainted.png) shows the images, the images without what is covered, and the results; a folder
    (--out inpainted/) gets a file for each result.
    """

    mask: Path
    """A picture of the images' size, white where pixels are to be filled in; with --fit also of the size of the
    files."""
    resample: int = 1
    """Times that each step is made (RePaint); more bring the filled pixels into agreement with the others."""
    strength: float = 1.0
    """Below 1, vary the pixels below the mask instead of drawing them anew."""
    out: str = "inpainted.png"
    """What to write: a picture, an .npz file with the array arr_0, or a folder (inpainted/)."""

    def run(self) -> int:
        """Inpaint, and write the results."""
        self.check_variants()
        output = self.output_for(self.out)

        import torch

        from ..data.user_images import read_mask
        from ..io.pictures import to_uint8
        from ..sampling import inpaint
        from ..sampling.editing import diffusion_engine

        engine = diffusion_engine("inpaint", self.engine())
        images = self.read(engine.model.shape, output)
        mask = read_mask(self.mask, images, self.fit)
        x = images.at_levels(engine.model.levels)
        results = inpaint(
            engine, self.repeated(x), mask, self.steps, self.sampler_object(), self.resample, self.strength, self.seed,
            parse_label(self.label, engine.model.config), self.guidance, None, self.batch_size, progress=is_watched(),
        )  # fmt: skip
        assert not isinstance(results, list)
        whole = to_uint8(x, engine.model.levels)
        covered = torch.where(mask, torch.tensor(COVERED, dtype=torch.uint8), whole)
        shown = {"images": whole, "what is kept of them": covered}
        self.write_results(output, engine.model, images.names, shown, results)
        return 0
