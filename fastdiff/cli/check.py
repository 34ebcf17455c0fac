"""The command ``check``."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from fastdiff_kernels.errors import InvalidValueError

from .choices import COLORS, choice
from .common_flags import is_watched

if TYPE_CHECKING:
    from ..data import ImageOptions
    from ..data.inspection import Report

SHOWN_KINDS = 20  # lines of the table for sizes and modes


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
        from ..data.loading import is_image_folder

        options = ImageOptions(size=self.size, resize=self.resize, color=self.color, classes=self.classes)
        try:
            if is_image_folder(self.data):
                return self.check_folder(options)
            data = load_dataset(self.data, options)
        except DataError as error:
            print(error)
            return 1
        sides = "×".join(map(str, data.shape))
        print(f"{self.data}: {len(data.train_images)} training and {len(data.test_images)} held-out images {sides}")
        return 0

    def check_folder(self, options: "ImageOptions") -> int:
        """Check a folder of images."""
        from tqdm import tqdm

        from ..data.decoding import HINT
        from ..data.image_folder import open_folder
        from ..data.inspection import inspect_files
        from ..data.listing import BAR_FROM

        folder = open_folder(self.data, options)
        problems, unfit, kinds = 0, 0, Counter[str]()
        for path, problem in folder.irregular:
            print(f"{path} {problem}")
            problems += 1
        compare = _Comparison(options)
        parts = (folder.train, folder.test)
        total = sum(len(part.paths) for part in parts)
        with tqdm(total=total, desc="checking", unit="img", disable=total < BAR_FROM or not is_watched()) as bar:
            for part in parts:
                for report in inspect_files(part.root, part.paths, self.workers, bar):
                    path = os.path.join(part.root, part.paths[report.position])
                    problem = report.problem or compare(path, report)
                    if problem is not None:
                        problems += 1
                        unfit += report.problem is None
                        bar.write(problem.removesuffix(f". {HINT}"))
                    if report.problem is None:
                        kinds[f"{report.width}×{report.height} {report.mode}"] += 1
        if unfit:
            print(HINT)
        files = total + len(folder.irregular)
        ignored = sum(listing.ignored for listing in folder.listings)
        rows = {"image files": files, "usable": files - problems, "other files, ignored": ignored}
        if folder.classes:
            rows["classes"] = len(folder.classes)
        _print_summary(rows, kinds)
        return 1 if problems else 0


class _Comparison:
    """Compares every image with the first one that can be read."""

    def __init__(self, options: "ImageOptions") -> None:
        self.options, self.form = options, None

    def __call__(self, path: str, report: "Report") -> str | None:
        """Return what is wrong with an image that can be read."""
        from ..data import DataError
        from ..data.decoding import COLORS, Form

        mode = report.mode if self.options.color is None else COLORS[self.options.color]
        if self.form is None:
            self.form = Form(mode, report.width, report.height, path, self.options)
        try:
            self.form.check(path, report.width, report.height, mode)
        except DataError as error:
            return str(error)
        return None


def _print_summary(rows: dict[str, int], kinds: Counter[str]) -> None:
    shown = kinds.most_common(SHOWN_KINDS)
    rows = rows | dict(shown)
    if len(kinds) > len(shown):
        rows[f"{len(kinds) - len(shown)} other sizes"] = kinds.total() - sum(count for _, count in shown)
    width = max(map(len, rows))
    for name, count in rows.items():
        print(f"{name:<{width}}  {count:>9,}")
