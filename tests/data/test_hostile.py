"""Hostile files: each is a named error within a second and 200 MB, measured in a process of its own."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from images import random_image, save
from sources import ROOT

SECONDS, MEGABYTES = 1.0, 200.0
MIB = 1 << 20
MEASURE = """
import json, resource, sys, time, warnings
import PIL.Image, torch
from fastdiff.data import DataError, ImageOptions, digits, load_dataset
warnings.simplefilter("ignore")
PIL.Image.init(), digits()
for name, options in json.loads(sys.argv[1]):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        load_dataset(name, ImageOptions(**options)).train_images[:]
        message = None
    except DataError as error:
        message = str(error)
    seconds, grown = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([message, seconds, grown / 1000]), flush=True)
"""


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, rows: int) -> bytes:
    """A grey PNG of zeros that holds some of its rows, packed a thousand to one."""
    packed = zlib.compress(bytes((width + 1) * rows), 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def with_file(folder, content: bytes, name: str = "z.png") -> str:
    path = save(folder, {each: random_image(0, "L", (32, 32)) for each in ("a.png", "b.png", "c.png", "d.png")})
    (folder / name).write_bytes(content)
    return path


def npz(path, header: str, content: bytes, claimed: int | None = None, method: int = zipfile.ZIP_STORED) -> str:
    """An archive whose train_images have a header written by hand, and perhaps a claimed size."""
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    test = io.BytesIO()
    np.save(test, np.zeros((2, 3, 4, 5), np.uint8))
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("train_images.npy", start + content)
        archive.writestr("test_images.npy", test.getvalue())
    if claimed is not None:
        whole, old = path.read_bytes(), (len(start) + len(content)).to_bytes(4, "little")
        path.write_bytes(whole.replace(old, (claimed + len(start)).to_bytes(4, "little")))
    return str(path)


def described(*shape: int) -> str:
    return str({"descr": "|u1", "fortran_order": False, "shape": shape})


def labels(path, values) -> str:
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez(path, train_images=images, test_images=images, train_labels=values, test_labels=[0, 1])
    return str(path)


def channels_last(path) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, count in (("train_images", 18000), ("test_images", 1)):
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, np.zeros((count, 64, 64, 3), np.uint8))
    return str(path)


def fifo(folder) -> str:
    path = with_file(folder, b"", "y.png")
    os.mkfifo(folder / "z.png")
    return path


def bomb(path, name: str) -> str:
    """Three gigabytes of zeros in 3 MB."""
    member = tarfile.TarInfo(name)
    member.size = 30 * MIB
    zeros = gzip.compress(bytes(30 * MIB))
    path.write_bytes((gzip.compress(member.tobuf(tarfile.GNU_FORMAT)) + zeros) * 100)
    return str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in Linux's unit")
def test_hostile_files(tmp_path):
    huge = png(12000, 12000, 12000)
    held = described(2, 3, 4, 5)
    cases = [
        (with_file(tmp_path / "huge", huge), {}, "megapixels"),
        (with_file(tmp_path / "sized", huge), {"size": 8}, "megapixels"),
        (with_file(tmp_path / "large", png(7900, 7900, 7900)), {}, "must have the size"),
        (with_file(tmp_path / "short", png(7900, 7900, 10)[:-30]), {"size": 8}, "cannot be read"),
        (fifo(tmp_path / "fifo"), {}, "regular file"),
        (with_file(tmp_path / "cut", png(32, 32, 32)[:-14]), {}, "cannot be read"),
        (with_file(tmp_path / "text", b"words" * 1000), {}, "no known format"),
        (with_file(tmp_path / "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"%%X: 1\n" * 10**6), {}, "no known format"),
        (npz(tmp_path / "1.npz", described(10**12, 3, 4, 5), bytes(120)), {}, "describes 60000000000"),
        (npz(tmp_path / "2.npz", held.replace(")", "i"), bytes(120)), {}, "cannot be read"),
        (npz(tmp_path / "3.npz", described(2 * 10**7, 3, 4, 5), bytes(120), 12 * 10**8), {}, "claims"),
        (npz(tmp_path / "4.npz", described(2 * 10**7, 3, 4, 5), bytes(120), 12 * 10**8, 8), {}, "claims"),
        (channels_last(tmp_path / "5.npz"), {}, "channels before"),
        (labels(tmp_path / "6.npz", np.array([0, 2**64 - 1], np.uint64)), {}, "from 0 to 18446744073709551615"),
        (labels(tmp_path / "7.npz", [0, 2**62]), {}, "train_labels must lie in"),
        (bomb(tmp_path / "8.tgz", "other"), {}, "at most"),
        (bomb(tmp_path / "9.tgz", "cifar-10-batches-py/data_batch_1"), {}, "at most"),
    ]  # fmt: skip
    arguments = json.dumps([case[:2] for case in cases])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, arguments], capture_output=True, text=True, check=True, env=environment
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for (path, _, words), (message, seconds, grown) in zip(cases, lines, strict=True):
        assert message is not None, path
        assert words in message, path
        assert path in message, path
        assert seconds < SECONDS, path
        assert grown < MEGABYTES, path
