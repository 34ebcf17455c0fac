"""The command ``check``."""

import itertools
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .choices import COLORS, choice
from .common_flags import is_watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data import ImageOptions
    from ..data.image_folder import Folder
    from ..data.inspection import Report

Kind = tuple[int, int, str]  # width, height and mode
T = TypeVar("T")

SHOWN_KINDS = 10  # lines of the table for sizes and modes
NAMED_ONE_BY_ONE = 10  # images unlike the others; of more a summary is printed
EXAMPLES = 3  # files that a line of that summary names


@dataclass
class Check:
    """Read every file of a data set, and name those that cannot be used; exit code 1 if there are any."""

    data: tyro.conf.Positional[str]
    """Folder of images, or an .npz file, or a CIFAR-10 archive."""
    size: int | None = None
    """Side to which training will resize and crop the images, so that they may have different sizes."""
    resize: int | None = None
    """Length of the shorter side before the crop, --size by default."""
    color: Annotated[str | None, choice(*COLORS)] = None
    """Mode to which training will convert the images, so that they may have different ones."""
    classes: bool = False
    """Check as well that every image lies in the folder of a class."""
    workers: int | None = None
    """Processes that read; by default one per processor, up to 8. No more than there are processors."""

    def run(self) -> int:
        """Read everything, print the files that cannot be used, and a summary."""
        if self.workers is not None and self.workers < 0:
            raise InvalidValueError(f"--workers must be an integer >= 0, got {self.workers}")

        from ..data import DataError, ImageOptions, load_dataset
        from ..data.image_folder import open_folder
        from ..data.loading import is_image_folder

        options = ImageOptions(size=self.size, resize=self.resize, color=self.color, classes=self.classes)
        try:
            if is_image_folder(self.data):
                return self.check_folder(open_folder(self.data, options), options)
            data = load_dataset(self.data, options)
        except DataError as error:
            print(error)
            return 1
        sides = "×".join(map(str, data.shape))
        print(f"{self.data}: {len(data.train_images)} training and {len(data.test_images)} held-out images {sides}")
        return 0

    def check_folder(self, folder: "Folder", options: "ImageOptions") -> int:
        """Check a folder of images.

        Raises:
            DataError: a process ended while it read a file.
        """
        found = _Images(options)
        damaged = len(folder.irregular)
        for path, problem in folder.irregular:
            print(f"{path} {problem}")
        damaged += self._read(folder, found)
        if damaged:
            which = "the file" if damaged == 1 else f"the {damaged:,} files"
            print(f"--skip-damaged (`ImageOptions(skip_damaged=True)`) trains without {which} that cannot be read")
        unfit = found.print_unfit()
        found.print_alpha()
        total = len(folder.train.paths) + len(folder.test.paths) + len(folder.irregular)
        ignored = sum(listing.ignored for listing in folder.listings)
        rows = {"image files": total, "usable": total - damaged - unfit, "other files, ignored": ignored}
        if folder.classes:
            rows["classes"] = len(folder.classes)
        _print_summary(rows, found.kinds)
        return 1 if damaged or unfit else 0

    def _read(self, folder: "Folder", found: "_Images") -> int:
        """Read all files, print those that cannot be read, and return how many they are."""
        from tqdm import tqdm

        from ..data.inspection import inspect_files
        from ..data.listing import BAR_FROM

        damaged = 0
        total = len(folder.train.paths) + len(folder.test.paths)
        with tqdm(total=total, desc="checking", unit="img", disable=total < BAR_FROM or not is_watched()) as bar:
            for part in (folder.train, folder.test):
                for report in inspect_files(part.root, part.paths, self.workers, bar):
                    if report.problem is None:
                        found.add(os.path.join(part.root, part.paths[report.position]), report)
                    else:
                        bar.write(report.problem)
                        damaged += 1
        return damaged


class _Images:
    """The images that can be read: how many of each size and mode there are, and some of their files.

    Args:
        options: how a training will read them.
    """

    def __init__(self, options: "ImageOptions") -> None:
        self.options = options
        self.counts = Counter[Kind]()
        self.files: dict[Kind, list[str]] = {}  # the first ones
        self.alpha = self.transparent = 0

    def add(self, path: str, report: "Report") -> None:
        """Count an image."""
        kind = (report.width, report.height, report.mode)
        self.counts[kind] += 1
        files = self.files.setdefault(kind, [])
        if len(files) < NAMED_ONE_BY_ONE:
            files.append(path)
        self.alpha += report.alpha
        self.transparent += report.transparent

    @property
    def kinds(self) -> Counter[str]:
        """Number of images of each size and mode."""
        return Counter({f"{width}×{height} {mode}": count for (width, height, mode), count in self.counts.items()})

    def print_unfit(self) -> int:
        """Print which images differ from the most frequent size and mode that training requires all to have.

        Returns:
            The number of images that differ.
        """
        from ..data.decoding import HINT

        required = self._counted(self._required)
        if len(required) < 2:
            return 0
        usual = _usual(required)
        unfit = self.counts.total() - required[usual]
        if unfit <= NAMED_ONE_BY_ONE:
            self._print_each(usual)
        else:
            self._print_kinds()
        print(HINT)
        return unfit

    def print_alpha(self) -> None:
        """Print how many images have alpha, and what becomes of it."""
        if self.alpha:
            images = "1 image has" if self.alpha == 1 else f"{self.alpha:,} images have"
            seen = "and the color that is stored in a transparent pixel is trained on"
            seen = f"{seen}, in {self.transparent:,} of them" if self.transparent else "and all pixels are opaque"
            print(f"{images} alpha, which is dropped, {seen}")

    def _required(self, kind: Kind) -> Kind:
        """Return what all images must have in common; 0 stands for a width and a height that may differ."""
        from ..data.decoding import COLORS as MODES

        width, height, mode = kind
        mode = mode if self.options.color is None else MODES[self.options.color]
        return (width, height, mode) if self.options.size is None else (0, 0, mode)

    def _counted(self, key: "Callable[[Kind], T]") -> "Counter[T]":
        """Return the number of images for each value of a function of their kinds."""
        counts: Counter[T] = Counter()
        for kind, count in self.counts.items():
            counts[key(kind)] += count
        return counts

    def _print_each(self, usual: Kind) -> None:
        """Print a line for each image that is not of the usual kind."""
        from ..data import DataError
        from ..data.decoding import HINT, Form

        like = next(files[0] for kind, files in self.files.items() if self._required(kind) == usual)
        form = Form(usual[2], *usual[:2], like, self.options)
        for kind, files in self.files.items():
            for path in files:
                try:
                    form.check(path, *kind[:2], self._required(kind)[2])
                except DataError as error:
                    print(str(error).removesuffix(f". {HINT}"))

    def _print_kinds(self) -> None:
        """Print how many sizes and modes there are, and some files of each kind."""
        sizes = self._counted(_size)
        if self.options.size is None and len(sizes) > 1:
            print(f"the images must have one size, but they have {len(sizes):,}:")
            ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
            for name, size in {"smallest": ordered[0], "largest": ordered[-1], "most frequent": _usual(sizes)}.items():
                print(f"  {name:<13}  {size[0]}×{size[1]}, {self._examples(_size, size)}")
        modes = self._counted(_mode)
        if self.options.color is None and len(modes) > 1:
            print(f"the images must have one mode, but they have {len(modes)}:")
            for mode, _ in modes.most_common():
                print(f"  {mode:<3}  {self._examples(_mode, mode)}")

    def _examples(self, key: "Callable[[Kind], T]", value: "T") -> str:
        """Return how many images are of a size or a mode, and the names of some."""
        count = sum(count for kind, count in self.counts.items() if key(kind) == value)
        names = list(itertools.chain(*(files for kind, files in self.files.items() if key(kind) == value)))[:EXAMPLES]
        return f"{count:,} {'image' if count == 1 else 'images'}: {', '.join(names)}{', …' * (count > len(names))}"


def _size(kind: Kind) -> tuple[int, int]:
    return kind[:2]


def _mode(kind: Kind) -> str:
    return kind[2]


def _usual(counts: "Counter[T]") -> "T":
    return counts.most_common(1)[0][0]


def _print_summary(rows: dict[str, int], kinds: Counter[str]) -> None:
    shown = kinds.most_common(SHOWN_KINDS)
    rows = rows | dict(shown)
    if len(kinds) > len(shown):
        rows[f"{len(kinds) - len(shown)} other sizes"] = kinds.total() - sum(count for _, count in shown)
    width = max(map(len, rows))
    for name, count in rows.items():
        print(f"{name:<{width}}  {count:>9,}")
