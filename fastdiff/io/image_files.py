"""Images as the bytes of files that other programs read: PNG, and the arrays of an ``.npz`` file."""

import io

import numpy as np
from fastdiff_kernels.errors import InvalidValueError
from torch import Tensor

from .pictures import to_pil

CHANNELS = (1, 3)  # grey and RGB: what PNG files, and programs that compute FID, read
IMAGES, LABELS = "arr_0", "arr_1"  # the names that numpy.savez gives to arrays without one


def check_channels(what: str, channels: int) -> None:
    """Check that images can be written to files.

    Raises:
        InvalidValueError: neither grey nor RGB.
    """
    if channels not in CHANNELS:
        raise InvalidValueError(f"{what} needs images of 1 or 3 channels, got {channels}")


def png_bytes(image: Tensor) -> bytes:
    """Return a PNG file of an image uint8 [C, H, W], C = 1 or 3.

    Raises:
        InvalidValueError: another dtype or shape.
    """
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def npz_bytes(images: Tensor, labels: Tensor | None = None) -> bytes:
    """Return an ``.npz`` file of images uint8 [N, C, H, W], and of labels int64 [N] where there are any.

    The images are channels last, uint8 [N, H, W, C], under the key ``arr_0``, and the labels int64 [N] under ``arr_1``:
    the arrays that guided-diffusion (Dhariwal and Nichol 2021) writes, and that its evaluator and other FID programs
    read. The bytes are a function of the content: the file has no date.
    """
    check_channels("an .npz file of images", images.shape[1])
    arrays = {IMAGES: np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())}
    if labels is not None:
        arrays[LABELS] = labels.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()
