"""The command ``mixture``."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import check_parent, load_data, parse_counts
from .choices import COUNTS
from .common_flags import Computing, Writing, is_watched

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from ..models import Model
    from ..sampling import LatentMixture


@dataclass
class Mixture(Writing, Computing):
    """Fit Gaussian mixtures to a VAE's latents of the training images; keep the best on the held-out images."""

    model: tyro.conf.Positional[str]
    """Checkpoint folder, run folder, or embedded model: a VAE or a DiffuseVAE."""
    components: Annotated[str, COUNTS] = "1,2,5,10,20"
    """Numbers of components to try, separated by commas."""
    data: str | None = None
    """Data set that the model was trained on; by default the one that its run names."""
    seed: int = 0
    """Of the latents that are drawn and of the fits."""
    out: Path = Path("mixture")
    """Folder to write; `fastdiff sample MODEL --mixture FOLDER` draws from it."""

    def run(self) -> int:
        """Fit, print log densities and write the mixture."""
        components = sorted(set(parse_counts("components", self.components)))
        self.check_threads()

        from tqdm import tqdm

        from ..checkpoints import load
        from ..sampling.mixtures import draw_latents, is_mixture, scikit_learn
        from ..training.batches import check_fit

        scikit_learn()  # raises before the work
        if self.out.exists() and not is_mixture(self.out):
            raise InvalidValueError(f"--out must be a new folder or that of a mixture, got {self.out}")
        self.check_free(self.out)
        check_parent(self.out)
        autoencoder = load(self.model).to(self.chosen_device()).autoencoder
        data = load_data(self.model, self.data, autoencoder.shape)
        check_fit(autoencoder, data)
        if components[-1] > len(data.train_images):
            raise InvalidValueError(f"--components must be <= {len(data.train_images)}, got {components[-1]}")
        with tqdm(total=2 + len(components), desc="encoding images", leave=False, disable=not is_watched()) as bar:
            held_out = draw_latents(autoencoder, data.test_images[:], self.seed)  # [:] reads a folder's images
            bar.update()
            latents = draw_latents(autoencoder, data.train_images[:], self.seed)
            bar.update()
            _say(bar, f"mean log density of the latents z_1 of {data.name}, in nats")
            _say(bar, f"{'components':>10}  {'training':>9}  {'held-out':>9}")
            best = self.best(autoencoder, components, latents, held_out, bar)
        best.save(self.out)
        print(f"wrote {self.out} ({best.components} components)")
        return 0

    def best(
        self, autoencoder: "Model", components: list[int], latents: "Tensor", held_out: "Tensor", bar: "tqdm[NoReturn]"
    ) -> "LatentMixture":
        """Fit all numbers of components, print their log densities, and return the best on held-out latents."""
        import torch

        from ..sampling.mixtures import MixtureError, fit_latents, fitted_to

        prior = -math.inf  # of a deeper chain the prior of z_1 is not N(0, I)
        if autoencoder.T == 1:
            prior = float(torch.distributions.Normal(0.0, 1.0).log_prob(held_out.double()).sum(1).mean())
            _say(bar, f"{'N(0, I)':>10}  {'':>9}  {prior:9.3f}")
        best: tuple[float, LatentMixture] | None = None
        for number in components:
            bar.set_description(f"fitting {number} components")
            try:
                mixture = fit_latents(latents, number, self.seed, fitted_to(autoencoder))
            except MixtureError as error:
                _say(bar, f"{number:>10}  {error}")
                continue
            finally:
                bar.update()
            nats = float(mixture.log_density(held_out).mean())
            _say(bar, f"{number:>10}  {(mixture.fitted_to or {})['nats']:9.3f}  {nats:9.3f}")
            if best is None or nats > best[0]:
                best = nats, mixture
        if best is None:
            raise MixtureError(f"none of --components {self.components} could be fitted")
        if best[0] < prior:
            raise MixtureError(
                f"the best of --components {self.components} is worse than the prior on held-out latents"
            )
        return best[1]


def _say(bar: "tqdm[NoReturn]", line: str) -> None:
    """Print a line above a progress bar."""
    bar.write(line)
    sys.stdout.flush()
