"""What the commands that work on a user's images share: flags, reading, and writing of results."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import sampler_of
from .choices import SAMPLERS, SPACINGS, choice
from .common_flags import Computing, Drawing, drawn_by
from .outputs import Output, output_of, wrote

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.user_images import UserImages
    from ..diffusion import Sampler
    from ..models import Model
    from ..sampling import Engine

SHOWN = 12  # images of a picture


@dataclass(kw_only=True)
class EditingFlags(Drawing, Computing):
    """Flags of the commands on a user's images."""

    model: tyro.conf.Positional[str]
    """Checkpoint folder, run folder, or embedded model."""
    images: tyro.conf.Positional[str]
    """A picture, a folder of pictures, an .npz file, or a data set, whose held-out images are taken."""
    fit: bool = False
    """Resize, crop and convert the images to the model's size and colours."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",))] = None
    """Number of images, the first ones; 12 for a picture by default, and all for a folder or an .npz file."""
    steps: int | None = None
    """Sampler steps, 250 by default; a VAE has none."""
    sampler: Annotated[str, choice(*SAMPLERS)] = "ancestral"
    """As of `fastdiff sample`."""
    eta: float | None = None
    """Option of ddim, euler-a and dpm-solver-sde, the noise."""
    spacing: Annotated[str | None, choice(*SPACINGS)] = None
    """Where the steps lie, as of `fastdiff sample`."""
    seed: int = 0
    """Of all that is drawn."""
    batch_size: int = 64
    """Images per call of the network."""

    def engine(self) -> "Engine":
        """Load the model."""
        from ..sampling import Engine

        return Engine(self.model, device=self.chosen_device())

    def sampler_object(self) -> "Sampler":
        """Return the sampler with its options."""
        return sampler_of(self.sampler, eta=self.eta, spacing=self.spacing)

    def check_n(self) -> None:
        """Check --n and --threads."""
        self.check_threads()
        if self.n is not None and self.n < 1:
            raise InvalidValueError(f"--n must be an integer >= 1, got {self.n}")

    def read(self, shape: tuple[int, int, int], output: Output) -> "UserImages":
        """Read the images, of the shape that the model takes."""
        from ..data.user_images import read_user_images

        self.check_n()
        shown = SHOWN if self.n is None and output.kind == "picture" else self.n
        return read_user_images(self.images, shape, self.fit, shown)

    def output_for(self, out: str) -> Output:
        """Return what ``--out`` names: a picture, an .npz file or a folder, new, empty, or to be replaced.

        Raises:
            InvalidValueError: none of these, or it cannot be written.
        """
        output = output_of(out, None, None, None)
        if output.kind != "folder":
            self.check_free(output.path)
        elif output.path.is_dir() and any(output.path.iterdir()) and not self.overwrite:
            raise InvalidValueError(
                f"--out must be a new or an empty folder, or --overwrite must replace its files of the same names, "
                f"got {out}"
            )
        return output

    def write_results(
        self, output: Output, model: "Model", names: list[str], shown: "dict[str, Tensor]", results: "Tensor",
        caption: str = "",
    ) -> None:  # fmt: skip
        """Write images uint8 in 0 .. 255, and say so.

        Args:
            output: a picture has the rows of ``shown`` and then the results; an .npz file and a folder the results.
            model: that drew them.
            names: of the N images that they are results of.
            shown: rows of N images, by the words of the caption for them.
            results: [variants · N, C, H, W], variant by variant.
            caption: more to say.
        """
        import torch

        from ..io.files import write_atomically
        from ..io.image_files import npz_bytes, png_bytes
        from ..io.pictures import image_grid

        if output.kind == "picture":
            rows = f"rows: {', '.join([*shown, 'results'])}" if shown else ""
            parts = [*drawn_by(self.model, model, self.sampler, self.steps, self.seed), caption, rows]
            path = self.write(image_grid(torch.cat([*shown.values(), results]), columns=len(names)), output.path, parts)
        elif output.kind == "npz":
            path = write_atomically(self.free_path(output.path), npz_bytes(results))
        else:
            path = output.path
            path.mkdir(parents=True, exist_ok=True)
            variants = len(results) // len(names)
            for k, image in enumerate(results):
                variant = f"-{k // len(names)}" if variants > 1 else ""
                write_atomically(path / f"{names[k % len(names)]}{variant}.png", png_bytes(image))
        print(wrote(path, len(results)))


@dataclass(kw_only=True)
class VariantFlags(EditingFlags):
    """Flags of the commands that draw images."""

    variants: int = 1
    """Results for each image, with noise of their own."""
    label: str | None = None
    """Class of all images, for a class-conditional model: its name or its number."""
    guidance: float | None = None
    """Weight of classifier-free guidance, with --label."""

    def repeated(self, images: "Tensor") -> "Tensor":
        """Return the images once for each variant, variant by variant."""
        return images.repeat(self.variants, 1, 1, 1)

    def check_variants(self) -> None:
        """Check --variants."""
        if self.variants < 1:
            raise InvalidValueError(f"--variants must be an integer >= 1, got {self.variants}")
