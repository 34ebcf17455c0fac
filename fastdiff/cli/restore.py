"""The command ``restore``."""

from dataclasses import dataclass

from .common_flags import is_watched
from .editing_flags import VariantFlags
from .labels import parse_label


@dataclass(kw_only=True)
class Restore(VariantFlags):
    """Restore degraded images with a restoration model, a DiffuseVAE or a VAE (reconstruct degrades images itself).

    A picture (--out restored.png) shows the images in its first row and the restored ones below; a folder
    (--out restored/) gets a file for each.
    """

    out: str = "restored.png"
    """What to write: a picture, an .npz file with the array arr_0, or a folder (restored/)."""

    def run(self) -> int:
        """Restore, and write the results."""
        self.check_variants()
        output = self.output_for(self.out)

        from ..io.pictures import to_uint8
        from ..sampling import restore

        engine = self.engine()
        model = engine.model
        images = self.read(model.degraded_shape, output)
        x = self.repeated(images.at_levels(model.levels))
        label = parse_label(self.label, model.config)
        result = restore(
            engine, x, self.steps, self.sampler_object(), self.seed, self.batch_size, is_watched(), label, self.guidance
        )
        start = result.start if result.start is not None else model.to_unit(x)
        shown = to_uint8(model.to_levels(start[: len(images.names)]), model.levels)
        self.write_results(output, model, images.names, {"images": shown}, to_uint8(result.images, model.levels))
        return 0
