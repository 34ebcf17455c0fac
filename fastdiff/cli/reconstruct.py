"""The command ``reconstruct``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import check_picture, load_data, parse_degradation
from .choices import SAMPLERS, choice, hint
from .common_flags import Computing, Drawing, drawn_by, is_watched

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 12  # images, unless --n says how many


@dataclass
class Reconstruct(Drawing, Computing):
    """Write held-out images, the images that reconstruction starts from, and the reconstructions; print PSNR."""

    model: tyro.conf.Positional[str]
    """Checkpoint folder, run folder, or embedded model: a VAE, a DiffuseVAE or a restoration model."""
    n: Annotated[int | None, tyro.conf.arg(aliases=("-n",)), hint("12, or all where fewer are held out")] = None
    """Number of held-out images, evenly spaced among all: they may be sorted by class."""
    degradation: str | None = None
    """What to restore from: down-2, down-4 or noise-0.5, for instance; a restoration model has its own."""
    data: str | None = None
    """Data set whose held-out images are taken, instead of that of the training."""
    steps: int | None = None
    """Sampler steps of the diffusion, 250 by default; a VAE has none."""
    sampler: Annotated[str, choice(*SAMPLERS)] = "ancestral"
    """How the steps are made."""
    seed: int = 0
    """Of the degradation's noise and of the samples."""
    out: Path = Path("reconstructions.png")
    """Picture to write."""

    def run(self) -> int:
        """Reconstruct, print and draw."""
        check_picture(self.out)
        self.check_free(self.out)
        self.check_threads()
        degradation = None if self.degradation is None else parse_degradation(self.degradation)

        import torch

        from ..checkpoints import load
        from ..evaluation import psnr
        from ..io.pictures import image_grid, to_uint8
        from ..sampling import reconstruct
        from ..training.batches import check_fit

        model = load(self.model).to(self.chosen_device())
        data = load_data(self.model, self.data, model.shape)
        check_fit(model, data)
        held_out = len(data.test_images)
        n = min(SHOWN, held_out) if self.n is None else self.n
        if not 1 <= n <= held_out:
            raise InvalidValueError(f"--n must be in 1 .. {held_out}, the held-out images, got {n}")
        images = data.test_images[torch.arange(n) * held_out // n]
        result = reconstruct(model, images, degradation, self.steps, self.sampler, self.seed, progress=is_watched())
        rows, names = [to_uint8(images, data.levels)], ["images"]
        if result.start is not None:
            degraded = degradation is not None or "z" not in model.latent_variables
            names.append("degraded images" if degraded else "reconstructions of the first stage")
            print(_psnr(names[-1], psnr(images, result.start, data.levels)))
            rows.append(to_uint8(model.to_levels(result.start), data.levels))
        names.append("reconstructions")
        print(_psnr(names[-1], psnr(images, result.images, data.levels)))
        rows.append(to_uint8(result.images, data.levels))
        drawn = drawn_by(self.model, model, self.sampler, self.steps, self.seed)
        caption = [*drawn, f"rows: {', '.join(names)}"]
        path = self.write(image_grid(torch.cat(rows), columns=len(images)), self.out, caption)
        print(f"wrote {path} ({len(images)} columns; rows: {', '.join(names)})")
        return 0


def _psnr(name: str, values: "Tensor") -> str:
    error = f" ± {float(values.std()) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"PSNR of the {name}: {float(values.mean()):.2f}{error} dB"
