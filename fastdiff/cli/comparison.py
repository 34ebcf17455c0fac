"""Comparisons of sets of images with a reference, as ``fd`` prints them: a table or JSON lines."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..checkpoints import RUNS, embedded_names, last_checkpoint, training_of
from ..data import ImageOptions, ImageSet, ImageSource, load_dataset, open_images
from ..data.image_set import paired
from ..data.in_memory import TensorSource, array_form
from ..data.loading import EMBEDDED
from ..evaluation import compare_features, image_features, load_features, neighbour_radii, paired_psnr, precision_recall
from ..evaluation.classifiers import CLASSIFIERS
from ..evaluation.features import NAMES, check_set
from ..io import folders
from ..io.folders import Json
from ..kernels import InvalidValueError
from ..models import Model
from ..training.metrics import json_line
from .arguments import embedded_of, load_data

Pixels = Tensor | ImageSource
ARRAYS = (".npz", ".tar.gz", ".tgz")
OF_MODELS = (  # in the folders of models, runs and diffusers' pipelines; a class of pictures may be called "model"
    "config.json", "model_index.json", "manifest.json", "model/manifest.json", "model/config.json", "unet/config.json",
)  # fmt: skip
FEWEST = 2  # images that have a covariance
TITLES = {"inception": "FID"} | {data: f"FD-{data}" for data in CLASSIFIERS}


def is_image_set(name: str) -> bool:
    """Return whether a word means images on disk, and not a model."""
    if not os.path.isdir(name):
        return name.endswith(ARRAYS)
    if name in EMBEDDED:
        return False  # as for `load`, the embedded model has precedence; ./digits is the folder
    return last_checkpoint(Path(name)) is None and not any(
        os.path.exists(os.path.join(name, each)) for each in OF_MODELS
    )


def check_exists(name: str) -> None:
    """Check that a word that means no images on disk may name a model.

    Raises:
        InvalidValueError: there is neither a file nor a folder, run or embedded model of this name.
    """
    if name not in embedded_names() and not any(
        os.path.exists(path) or folders.exists(path) for path in (Path(name), RUNS / name)
    ):
        raise InvalidValueError(
            "images must be a model (a checkpoint folder, the folder of a run or its name, an embedded model), a "
            f"folder of images or an .npz file; there is no file {name}"
        )


def default_features(name: str, second: str | None, shape: tuple[int, ...], is_images: bool) -> str:
    """Return the features where none are chosen, which are those of an embedded data set.

    It is the data set that the reference is, or that the model was trained on, or where the images have the shape
    [C, H, W] of one and nothing says that they are of other data.

    Raises:
        InvalidValueError: there is none.
    """
    trained_on = _trained_on(name, is_images)
    for data in (second, trained_on):
        if data in CLASSIFIERS:
            return data
    found = embedded_of(shape)
    if found is None or trained_on is not None:
        about = "" if trained_on is None else f" of a model that was trained on {trained_on}"
        raise InvalidValueError(
            f"--features must be set for images of the shape {list(shape)}{about}: {NAMES}, or none with --paired"
        )
    return found


def _trained_on(name: str, is_images: bool) -> str | None:
    """Return the name or path of the data that a model was trained on, if it is known."""
    data = None if is_images else training_of(name).get("data")
    return None if data is None else str(data)


@dataclass
class Comparison:
    """How images are compared, and with which reference.

    features, weights, device: as for `load_features`; the features "none" compare pairs alone, and `begin` replaces
    None by the `default_features`. k: neighbours of precision and recall, or None without. options: how all images are
    resized and converted. progress: whether progress bars are shown.
    """

    features: str | None
    weights: Path | None
    k: int | None
    batch_size: int
    json: bool
    options: ImageOptions
    device: str
    progress: bool = False
    network: Callable[[Tensor], Tensor] | None = field(default=None, init=False)
    reference: ImageSet | None = field(default=None, init=False)
    of_reference: Tensor | None = field(default=None, init=False)
    radii: Tensor | None = field(default=None, init=False)

    def compare_images(self, name: str, second: str | None, pairs: bool) -> None:
        """Print a row for a set of images on disk, and with ``pairs`` the PSNR to the reference.

        Raises:
            FastdiffError: images that cannot be read, do not fit each other or the features, or have no partner.
        """
        images = open_images(name, self.options)
        reference = self.begin(name, second, images)
        psnr = None
        if pairs:
            one, other = paired(images, reference)
            psnr = paired_psnr(one.images, other.images, one.levels, self.batch_size, other.levels, self.progress)
        about: Json = {"images": name}
        if psnr is not None:
            about |= {"psnr": psnr.value, "psnr_se": psnr.standard_error, "pairs": psnr.images, "equal": psnr.equal}
        self.print_row(about, images.images, images.levels)
        if psnr is not None and not self.json:
            equal = f", {psnr.equal} of them equal" if psnr.equal else ""
            error = "" if psnr.equal else f" ± {psnr.standard_error:.2f}"
            print(f"PSNR {psnr.value:.2f}{error} dB, the mean over {psnr.images} pairs{equal}")

    def begin(self, name: str, second: str | None, images: "ImageSet | Model", about: str = "") -> ImageSet:
        """Open the reference, check that it fits, and print the title and the row of its held-out images."""
        is_images, shape = isinstance(images, ImageSet), images.shape
        form = None if is_images else array_form(name, shape, self.options)
        shape = shape if form is None else form.shape
        second = self._default_reference(name, shape, is_images) if second is None else second
        reference, held_out = self._open_reference(name, second, is_images)
        if reference.shape != shape:
            raise InvalidValueError(
                f"{name} and {reference.name} must have images of one shape [C, H, W], got {list(shape)} and "
                f"{list(reference.shape)}; --size and --color convert both"
            )
        self.reference = reference
        features = default_features(name, second, shape, is_images) if self.features is None else self.features
        self.features = features
        if features == "none":
            return reference
        self.network = load_features(features, self.weights, self.device)
        check_set(f"the images of {reference.name}", reference.images, self.batch_size)
        self.of_reference = self._features(reference.images, reference.levels)
        title = TITLES.get(features, "FD")
        if not self.json:
            print(f"{name}: {title} against {reference.name}, n = {len(reference.images)}{about}; compare only equal n")
            head = f"{'images':>18}  {'steps':>6}  {'calls':>6}  {'n':>6}  {title:>9}  {'± s.e.':>7}"
            print(head + ("" if self.k is None else f"  {'precision':>9}  {'± s.e.':>7}  {'recall':>7}"))
        if held_out is not None:
            self.print_row({"sampler": "held-out", "steps": None, "calls": None}, held_out, reference.levels)
        return reference

    def _default_reference(self, name: str, shape: tuple[int, ...], is_images: bool) -> str:
        """Return the reference where none is named: the data set of the features, or the one of a model's training."""
        features = default_features(name, None, shape, is_images) if self.features is None else self.features
        if features in CLASSIFIERS:
            return features
        found = _trained_on(name, is_images) or (None if is_images else embedded_of(shape))
        if found is None:
            raise InvalidValueError(f"fd {name} needs a second set of images: fastdiff fd {name} REFERENCE")
        return found

    def _open_reference(self, name: str, second: str, is_images: bool) -> tuple[ImageSet, Pixels | None]:
        """Open the reference; of an embedded data set, and of the model's own data, the held-out images too.

        The model's own data are read as in its training, unless they are to be resized or converted otherwise.
        """
        own = _trained_on(name, is_images) == second
        if second not in EMBEDDED and os.path.isdir(second) and not is_image_set(second):
            raise InvalidValueError(f"the reference must be images or a data set, and {second} holds a model")
        if self.options != ImageOptions() or not (own or second in EMBEDDED):
            return open_images(second, self.options), None
        data = load_data(name, None) if own else load_dataset(second)
        held_out = data.test_images if len(data.test_images) >= FEWEST else None
        return ImageSet(f"the training images of {data.name}", data.train_images, data.levels), held_out

    def converted(self, images: Tensor) -> Pixels:
        """Return the samples of a model as the options convert them."""
        form = array_form("the samples", tuple(images.shape[1:]), self.options)
        return images if form is None else TensorSource(images, None, 256, form, False)

    def print_row(self, about: Json, images: Pixels, levels: int) -> None:
        """Compare images with the reference, and print one line; ``about`` says what they are."""
        row = about | {"n": len(images)} | self._compare(images, levels)
        if self.json:
            print(json_line(row), flush=True)
        elif self.network is not None:
            name = str(row["sampler"] if "sampler" in row else Path(str(row["images"])).name)[-18:]
            line = f"{name:>18}  {row.get('steps') or '':>6}  {row.get('calls') or '':>6}  {len(images):>6}"
            line += f"  {row['fd']:9.3f}  {row['se']:7.3f}"
            if "recall" in row:
                line += f"  {row['precision']:9.4f}  {row['precision_se']:7.4f}  {row['recall']:7.4f}"
            print(line, flush=True)

    def _compare(self, images: Pixels, levels: int) -> Json:
        """Return the measures of images on the features, by name; none without features."""
        if self.of_reference is None:
            return {}
        check_set("images", images, self.batch_size)
        features = self._features(images, levels)
        result = compare_features(features, self.of_reference)
        row: Json = {"features": self.features, "reference": result.reference}
        row |= {"fd": result.value, "se": result.standard_error}
        fewest = min(len(features), len(self.of_reference))
        if self.k is not None and fewest <= self.k:
            print(
                f"fastdiff: warning: precision and recall are left out: --k {self.k} needs more than {self.k} images "
                f"in both sets, got {len(features)} and {len(self.of_reference)}", file=sys.stderr,
            )  # fmt: skip
        elif self.k is not None:
            if self.radii is None:
                self.radii = neighbour_radii(self.of_reference.to(self.device), self.k, self.progress)
            found = precision_recall(features.to(self.device), self.of_reference, self.k, self.radii, self.progress)
            row |= {"precision": found.precision, "precision_se": found.precision_error}
            row |= {"recall": found.recall, "k": self.k}
        return row

    def _features(self, images: Pixels, levels: int) -> Tensor:
        assert self.network is not None
        return image_features(images, self.network, self.batch_size, levels, progress=self.progress)
