"""What a reader of the pages has: a folder of pictures, a pipeline of diffusers, models that were trained before."""

import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdiff.checkpoints import embedded_names
from fastdiff.data import digits
from fastdiff.models import DDPM, ConcatUNetConfig, DDPMConfig
from fastdiff.presets import PRESETS, preset

WRITES_PHOTOS = 'path = Path("photos",'  # a page may write its own photos/, and shows how after it has used them
LARGE = ("cifar10", "celeba64", "imagenet32", "imagenet64")  # presets of up to 238 M parameters


def make_files(folder: Path) -> None:
    """Write what the pages speak of: photos/ of two classes, pictures/ as large as digits, coloured small-pictures/ of
    half the size, masks, a pipeline."""
    random = np.random.default_rng(0)
    for number in range(40):
        path = folder / "photos" / ("circles" if number % 2 else "squares") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (16 + number % 5, 16 + number % 3, 3)
        Image.fromarray(random.integers(256, size=size, dtype=np.uint8)).save(path)
    for name, size, mode in (("pictures", 8, "L"), ("small-pictures", 4, "RGB")):
        (folder / name).mkdir()
        for number, image in enumerate(digits().test_images[:3]):
            pixels = (image[0].double() * 255 / 16).round().byte().numpy()
            Image.fromarray(pixels).resize((size, size)).convert(mode).save(folder / name / f"{number}.png")
    left = np.zeros((8, 8), np.uint8)
    left[:, :4] = 255
    for name in ("mask.png", "left.png"):
        Image.fromarray(left).save(folder / name)
    save_file({"latents": torch.zeros(2, 1, 8, 8)}, folder / "latents.safetensors")
    network = ConcatUNetConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), max_groups=4, timesteps=1000)
    DDPM(DDPMConfig(shape=(1, 8, 8), levels=256, network=network)).save_diffusers(folder / "my-ddpm")


def make_models(text: str) -> None:
    """Prepare for an example: a preset that it names, and that nothing has trained yet, gets a run with fresh weights.

    Such a run is removed where an example trains it.
    """
    if WRITES_PHOTOS in text:
        shutil.rmtree("photos")
    for name in PRESETS:
        named = re.search(rf"(?<![\w/-]){name}(?![\w-])|\bruns/{name}(?![\w-])", text)
        embedded = name in embedded_names() and "runs/" not in text
        if named is None or embedded or name.endswith(LARGE):
            continue
        run = Path("runs", name)
        if re.match(rf"fastdiff train {name}(?![\w-])(?!.*--resume)", text):
            if (run / "config.json").exists():
                shutil.rmtree(run)
        elif not run.exists():
            preset(name).build().save(run)


def make_folders(words: list[str]) -> None:
    """A folder that a command reads, and that nothing has written, is a copy of pictures/."""
    for before, word in itertools.pairwise(words):
        if word.endswith("/") and not Path(word).exists() and before != "--out":
            shutil.copytree("pictures", word)
