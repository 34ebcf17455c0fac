"""Distances between images of letters: the root mean square difference of their pixels, black 0 and white 1."""

import numpy as np
from numpy.typing import NDArray

from fastdiff.data import LETTERS, LETTERS_LEVELS


def distances(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the distance of each of N images to each of M others, in [0, 1]; [N, M].

    The sums under the root are sums of integers, exact in float64.
    """
    one, other = (each.reshape(len(each), -1).astype(np.float64) for each in (images, others))
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2.0 * one @ other.T
    return np.sqrt(squares / one.shape[1]) / (LETTERS_LEVELS - 1)


def nearest(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], others: NDArray[np.uint8], other_labels: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the distance of each image to the nearest of ``others`` with its label, [N]."""
    found = np.zeros(len(images))
    for letter in range(len(LETTERS)):
        chosen = labels == letter
        found[chosen] = distances(images[chosen], others[other_labels == letter]).min(1)
    return found
