"""Mutated image, npz and CIFAR-10 files."""

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import torch

from fastdiff.data import ImageOptions, load_dataset

from .fault import Attempt, Outcome, Tries, fault, only_errors_of_users
from .limits import bounded, guarded
from .rewriting import mutated

OPTIONS = ImageOptions(size=8, color="rgb", held_out=1)


def pictures() -> dict[str, bytes]:
    """Return an image of 12 × 10 in every format and mode that Pillow writes and fastdiff reads, by file name."""
    from PIL import Image

    from fastdiff.data.decoding import MODES, _formats

    Image.init()
    endings = {name: ending for ending, name in Image.registered_extensions().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 4), np.uint8)
    found = {}
    for name in sorted(set(_formats()) & set(Image.SAVE) & set(endings)):
        for mode in MODES:
            file = io.BytesIO()
            picture = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
            try:
                picture.save(file, name)
            except Exception:  # a format that does not have this mode
                continue
            found[f"{name}-{mode}{endings[name]}"] = file.getvalue()
    return found


@fault(
    "mutated image files", "faults 1, 2.13; ecosystem 6", tries=2500, quick=40,
    done="Bytes of an image file, of every format and mode that Pillow writes, are changed; it is read among others",
    must_hold="a FastdiffError, or images of the right shape; at most 1 s and 200 MB, and nothing written",
)  # fmt: skip
def mutated_images(tries: Tries):
    originals = pictures()
    tries.largest("formats and modes", len(originals))
    good = originals["PNG-RGB.png" if "PNG-RGB.png" in originals else "PNG-RGB.apng"]
    with guarded():
        for attempt in tries:
            name = attempt.random.choice(sorted(originals))
            (attempt.folder / "a.png").write_bytes(good)
            (attempt.folder / f"b{Path(name).suffix}").write_bytes(mutated(originals[name], attempt.random))
            wrong: list[str] = []
            with bounded(tries, attempt, wrong), only_errors_of_users(attempt, name, wrong):
                data = load_dataset(str(attempt.folder), OPTIONS)
                for images in (data.train_images[:], data.test_images[:]):
                    if images.dtype != torch.uint8 or images.shape != (1, 3, 8, 8):
                        wrong.append(f"try {attempt.number}, {name}: {images.dtype} {tuple(images.shape)}")
                tries.count("read")
            yield "; ".join(wrong) or None


def npz(random: Random) -> bytes:
    """Return an .npz file, perhaps compressed, with labels."""
    generator = np.random.default_rng(random.getrandbits(32))
    images = {name: generator.integers(0, 17, (3, 2, 4, 4), np.uint8) for name in ("train_images", "test_images")}
    labels = {name: generator.integers(0, 5, 3) for name in ("train_labels", "test_labels")}
    file = io.BytesIO()
    random.choice([np.savez, np.savez_compressed])(file, **images, **labels, levels=np.array(17))
    return file.getvalue()


def mutated_npz(data: bytes, random: Random) -> bytes:
    """Change bytes of the archive, or of an entry, with the archive's checksums made right."""
    if random.random() < 0.4:
        return mutated(data, random)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        chosen = random.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutated(content, random) if name == chosen else content)
    return file.getvalue()


@fault(
    "mutated npz files", "faults 1, 2.9, 2.13; ecosystem 6", tries=1250, quick=60,
    done="Bytes of an .npz file or of one of its arrays are changed, half of the time with its checksums made right",
    must_hold="a FastdiffError, or the arrays that NumPy reads; at most 1 s and 200 MB, and nothing written",
)  # fmt: skip
def mutated_npz_files(tries: Tries):
    with guarded():
        for attempt in tries:
            path, wrong = attempt.folder / "data.npz", []
            path.write_bytes(mutated_npz(npz(attempt.random), attempt.random))
            with bounded(tries, attempt, wrong), only_errors_of_users(attempt, "npz", wrong):
                data = load_dataset(str(path))
                tries.count("read")
                wrong += differing(attempt, path, data)
            yield "; ".join(wrong) or None


def differing(attempt: Attempt, path: Path, data) -> list[str]:
    """Compare a data set with the arrays that NumPy reads."""
    with np.load(path, allow_pickle=False) as arrays:
        found = []
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            value = getattr(data, name)
            if (value is None) != (name not in arrays):
                found.append(f"try {attempt.number}: {name} is {value}")
            elif value is not None:
                wanted = arrays[name] if arrays[name].ndim != 3 else arrays[name][:, None]
                if not np.array_equal(value.numpy(), wanted):
                    found.append(f"try {attempt.number}: {name} was read with other numbers")
    return found


def batches(random: Random, binary: bool, protocol: int) -> dict[str, bytes]:
    """Return the six files of CIFAR-10 with two images each, by name."""
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    generator = np.random.default_rng(random.getrandbits(32))
    found = {}
    for name in names:
        images, labels = generator.integers(0, 256, (2, 3072), np.uint8), generator.integers(0, 10, 2)
        if binary:
            records = np.concatenate([labels[:, None].astype(np.uint8), images], 1)
            found[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
        else:
            content = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"training"}
            found[f"cifar-10-batches-py/{name}"] = pickle.dumps(content, protocol)
    return found


def packed(files: dict[str, bytes]) -> bytes:
    """Return a tar archive of files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@fault(
    "mutated CIFAR-10 archives", "faults 1, 2.13; ecosystem 6", tries=1250, quick=40,
    done="Bytes of a pickled or binary batch, of the tar archive or of the gzip file are changed",
    must_hold="a FastdiffError, or images and labels of the right shape and range; at most 1 s and 200 MB",
)  # fmt: skip
def mutated_cifar(tries: Tries):
    with guarded():
        for attempt in tries:
            random, where = attempt.random, attempt.number % 4
            files = batches(random, binary=attempt.number % 3 == 0, protocol=random.choice([2, 3, 4]))
            if where < 2:
                chosen = random.choice(sorted(files))
                files[chosen] = mutated(files[chosen], random)
            tar = packed(files) if where != 2 else mutated(packed(files), random)
            content = gzip.compress(tar, 1) if where != 3 else mutated(gzip.compress(tar, 1), random)
            (attempt.folder / "data.tar.gz").write_bytes(content)
            yield read_cifar(tries, attempt)


def read_cifar(tries: Tries, attempt: Attempt) -> Outcome:
    wrong: list[str] = []
    with bounded(tries, attempt, wrong), only_errors_of_users(attempt, "CIFAR-10", wrong):
        data = load_dataset(str(attempt.folder / "data.tar.gz"))
        tries.count("read")
        for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
            count = len(images)
            right = images[:].shape == (count, 3, 32, 32) and images.dtype == torch.uint8 and labels.shape == (count,)
            if not right or int(labels.min()) < 0 or int(labels.max()) > 9:
                wrong.append(f"try {attempt.number}: {tuple(images.shape)}, labels {labels.tolist()}")
    return "; ".join(wrong) or None
