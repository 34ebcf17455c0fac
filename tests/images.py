"""Image files for the tests of folders, and their pixels read one by one."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (6, 4)  # width, height: not square, so that a mix-up shows


def random_image(seed: int, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def pixels(image: Image.Image) -> list:
    """[H][W] of the values of getpixel, one by one."""
    return [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]


def save(root: Path, files: dict[str, Image.Image]) -> str:
    for name, image in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return str(root)


def flat() -> dict[str, Image.Image]:
    names = ("train/b.png", "train/a.png", "train/10.png", "test/x.png")
    return {name: random_image(seed) for seed, name in enumerate(names)}
