"""The options with which images are read: their size, crops, colours and classes, and what is held out."""

from ..io.configuration import ConfigError, at_least, configuration, field, one_of


@configuration
class ImageOptions:
    """How the images of a data set are read. Resizing and cropping happen when an image is used.

    size: side of the square images; None keeps the stored size, which must be the same for all.
    resize: length of the shorter side before the crop, >= size; None: ``size``.
    crop: where the square is cut out: "center", or "random" for training images (held-out ones stay centred).
    color: "grey" or "rgb" converts; None keeps the stored colours, and all images must be grey, or all RGB.
    classes: labels from the names of the folders, for a folder of images.
    held_out: number of images held out of a folder without train/ and test/; None: one in twenty, from 1 to 1000.
    skip_damaged: leave out the files of a folder that cannot be read, with a warning that counts them. Every file is
        decoded once when the folder is opened, in several processes, since nothing less finds the damaged ones.
    """

    size: int | None = field(at_least(1), default=None)
    resize: int | None = field(at_least(1), default=None)
    crop: str = field(one_of("center", "random"), default="center")
    color: str | None = field(one_of("grey", "rgb"), default=None)
    classes: bool = field(default=False)
    held_out: int | None = field(at_least(1), default=None)
    skip_damaged: bool = field(default=False)

    def __attrs_post_init__(self) -> None:
        if self.size is None and self.resize is not None:
            raise ConfigError(f"ImageOptions: resize must be None without size, got {self.resize}")
        if self.size is None and self.crop == "random":
            raise ConfigError("ImageOptions: crop must be 'center' without size, got 'random'")
        if self.size is not None and self.resize is not None and self.resize < self.size:
            raise ConfigError(f"ImageOptions: resize must be >= size, {self.size}, got {self.resize}")
