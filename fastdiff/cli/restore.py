"""The command ``restore``."""

from dataclasses import dataclass

from .common_flags import is_watched
from .editing_flags import EditingFlags


@dataclass(kw_only=True)
class Restore(EditingFlags):
    """Restore degraded images with a restoration model, a DiffuseVAE or a VAE (reconstruct degrades images itself).

    A picture (--out restored.png) shows the images in its first row and the restored ones below; a folder
    (--out restored/) gets a file for each.
    """

    variants: int = 1
    """Results for each image, with noise of their own."""
    out: str = "restored.png"
    """What to write: a picture, an .npz file with the array arr_0, or a folder (restored/)."""

    def run(self) -> int:
        """Restore, and write the results."""
        from fastdiff_kernels.errors import InvalidValueError

        if self.variants < 1:
            raise InvalidValueError(f"--variants must be an integer >= 1, got {self.variants}")
        output = self.output_for(self.out)

        from ..io.pictures import to_uint8
        from ..sampling import restore

        engine = self.engine()
        model = engine.model
        images = self.read(model.degraded_shape, output)
        x = images.at_levels(model.levels).repeat(self.variants, 1, 1, 1)
        result = restore(
            engine, x, self.steps, self.sampler_object(), self.seed, self.batch_size, progress=is_watched()
        )
        start = result.start if result.start is not None else model.to_unit(x)
        shown = to_uint8(model.to_levels(start[: len(images.names)]), model.levels)
        self.write_results(output, model, images.names, {"images": shown}, to_uint8(result.images, model.levels))
        return 0
