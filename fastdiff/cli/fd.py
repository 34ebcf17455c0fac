"""The command ``fd``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .arguments import parse_counts, sampler_of
from .choices import COLORS, COUNTS, PAIR, SAMPLERS, SPACINGS, VARIANCES, choice, choices
from .common_flags import Computing, is_watched

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion import Sampler
    from ..models import Model
    from .comparison import Comparison

    Setting = tuple[str | None, Sampler | None, int | None]  # name, sampler, steps


@dataclass
class Fd(Computing):
    """Print the Fréchet distance, precision and recall of a model's samples, or of images on disk, against a reference.

    A model is sampled at several numbers of steps: `fastdiff fd digits`. Images are a folder or an .npz file:
    `fastdiff fd samples/ photos/ --features inception`.
    """

    images: tyro.conf.Positional[str] = "digits"
    """A model (checkpoint folder, run folder, embedded model), or images: a folder, or an .npz file with arr_0."""
    against: tyro.conf.Positional[str | None] = None
    """The reference: a folder, an .npz file, or the training images of a data set. By default the data set of the
    features digits or letters, or with other --features the training images of the model, read as in its training."""
    reference: str | None = None
    """The reference, by a flag."""
    features: str | None = None
    """Network of the features: digits or letters (a classifier of the data set; grey images of 8×8 or 28×28), inception
    (that of FID, where its weights are at hand), module:function (your own: uint8 [n, C, H, W] to floats [n, F]), a
    TorchScript file (.pt), or none, with --paired. By default digits or letters, by the data set that the reference is
    or that the model was trained on, else by the size of the images."""
    weights: Path | None = None
    """With --features inception: the file of the weights, where it is not in PyTorch's folder of checkpoints."""
    k: int = 3
    """Neighbours of precision and recall, fewer than the images of either set."""
    precision_recall: bool = True
    """Print precision and recall, which take time and memory for many images: all pairs are compared."""
    paired: bool = False
    """Also print the PSNR between images of the same file name in two folders, or the same position in .npz files."""
    size: int | None = None
    """Resize and crop all images to squares of this side first."""
    color: Annotated[str | None, choice(*COLORS)] = None
    """Convert all images first."""
    skip_damaged: bool = False
    """Leave out files of folders that cannot be read, with a warning."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 1500
    """Number of images of a model; compare only distances of equal n."""
    steps: Annotated[str | None, COUNTS] = None
    """Numbers of sampler steps, separated by commas, 10,50,250 by default; a VAE has none."""
    calls: Annotated[str | None, COUNTS] = None
    """Numbers of calls of the network instead of --steps: heun, which calls it twice a step, takes half as many."""
    sampler: Annotated[str, choices(*SAMPLERS)] = "ancestral"
    """One or more, separated by commas; euler is ddim by its other name."""
    eta: float | None = None
    """Option of ddim, euler-a and dpm-solver-sde, the noise: 0 is deterministic, 1 that of ancestral sampling."""
    order: int | None = None
    """Option of unipc and deis: 1, 2 or 3 (the default)."""
    spacing: Annotated[str | None, choice(*SPACINGS)] = None
    """Where the steps lie: evenly in time (the default), or as another spacing, see `fastdiff sample`."""
    rho: float | None = None
    """Exponent of --spacing karras, 7 by default."""
    betas: Annotated[tuple[float, float] | None, PAIR] = None
    """First and last of evenly spaced betas instead of a DDPM's own noise levels, see `fastdiff sample`."""
    variance: Annotated[str | None, choice(*VARIANCES)] = None
    """Option of ancestral, instead of the model's own."""
    brownian: bool = False
    """Draw the noise of the steps from a Brownian path, see `fastdiff sample`."""
    mixture: str | None = None
    """Mixture that the latent z of a VAE or a DiffuseVAE is drawn from: a folder, or the name of an embedded model."""
    seed: int = 0
    """Image i is a function of the seed and i."""
    batch_size: int = 250
    """Images per call of the networks."""
    json: bool = False
    """Print JSON lines instead of a table."""

    def run(self) -> int:
        """Compare images, or the samples of every sampler and number of steps, and print the table."""
        if self.n < 2:
            raise InvalidValueError(f"--n must be an integer >= 2, got {self.n}")
        if self.k < 1:
            raise InvalidValueError(f"--k must be an integer >= 1, got {self.k}")
        if self.calls is not None and self.steps is not None:
            raise InvalidValueError(f"--calls must be absent where --steps is set, got {self.calls}")
        if self.against is not None and self.reference is not None:
            raise InvalidValueError(f"--reference must be absent where a second set is named, got {self.reference}")
        if self.features == "none" and not self.paired:
            raise InvalidValueError("--features none needs --paired")
        counts = parse_counts("calls", self.calls) if self.calls else parse_counts("steps", self.steps or "10,50,250")
        self.check_threads()
        settings = self.settings(counts)

        from ..data import ImageOptions
        from .comparison import Comparison, check_exists, is_image_set

        second = self.reference if self.against is None else self.against
        comparison = Comparison(
            self.features, self.weights, self.k if self.precision_recall else None, self.batch_size, self.json,
            ImageOptions(size=self.size, color=self.color, skip_damaged=self.skip_damaged),
            str(self.chosen_device()), is_watched(),
        )  # fmt: skip
        if is_image_set(self.images):
            comparison.compare_images(self.images, second, self.paired)
            return 0
        check_exists(self.images)
        if self.paired:
            raise InvalidValueError(f"--paired needs two folders or .npz files, and {self.images} is a model")
        self._compare_model(comparison, second, settings)
        return 0

    def _compare_model(
        self,
        comparison: "Comparison",
        second: str | None,
        settings: "list[Setting]",
    ) -> None:
        """Sample a model with every setting, and print a row for each."""
        from ..checkpoints import load
        from ..models import Request

        model = load(self.images).to(self.chosen_device())
        if "sampler" not in model.sampling_options:  # a VAE: one setting, and `sample` rejects what it does not take
            settings = settings[:1] if self.steps or self.calls or self.sampler != "ancestral" else [(None, None, None)]
        for _, sampler, steps in settings:
            self.draw(model, 0, sampler, steps)  # checks all settings before the work
        comparison.begin(self.images, second, model, f", seed {self.seed}")
        for name, sampler, steps in settings:
            calls = None if sampler is None else model.prepare(Request(1, steps=steps, sampler=sampler)).rows
            images = comparison.converted(self.draw(model, self.n, sampler, steps))
            comparison.print_row({"sampler": name or model.title, "steps": steps, "calls": calls}, images, 256)

    def settings(self, counts: list[int]) -> "list[Setting]":
        """Return the name, the sampler and the number of steps of every row; ``counts`` are steps or calls."""
        names = ("eta", "order", "spacing", "rho", "betas", "variance", "brownian")
        options = {name: getattr(self, name) for name in names}
        rows = []
        for name in (part.strip() for part in self.sampler.split(",")):
            sampler = sampler_of(name, **options)
            per_step = sampler.calls_per_step if self.calls else 1
            if min(counts) < per_step:
                raise InvalidValueError(f"--calls must be integers >= {per_step} for {name}, got {self.calls}")
            rows += [(name, sampler, count // per_step) for count in counts]
        return rows

    def draw(self, model: "Model", n: int, sampler: "Sampler | None", steps: int | None) -> "Tensor":
        """Draw the images of a row, uint8 in 0 .. 255."""
        from ..models import Latents
        from ..sample import sample

        latents = None if self.mixture is None else Latents(mixture=self.mixture)
        return sample(
            model, n, steps, "ancestral" if sampler is None else sampler, self.seed, latents=latents,
            batch_size=self.batch_size, progress=is_watched() and n > 0,
        )  # fmt: skip
