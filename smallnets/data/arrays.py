"""What every data set is read into, and what is computed from it: statistics and a digest."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from smallnets.errors import RunError

Part = Literal["train", "test"]
_CHUNK = 4096  # images read at once from a set that may lie on disk


@dataclass(frozen=True)
class Arrays:
    """Images with their labels.

    Attributes:
        images: uint8 (N, channels, height, width).
        labels: int64 (N,), in 0 .. len(classes) - 1, or -1 where unknown.
        classes: the names of the classes, in the order of the labels.
        mapped: the images lie in a file that is read by index, and are too many to be moved to a device.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    mapped: bool = False

    def __len__(self) -> int:
        return len(self.labels)


class Statistics(NamedTuple):
    """Mean and standard deviation (of the population) of each channel, for pixels in [0, 1]."""

    mean: list[float]
    std: list[float]


def _chunks(images: Tensor, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    array = images.numpy()
    for start in range(0, len(indices), _CHUNK):
        yield array[indices[start : start + _CHUNK]]


def histogram(images: Tensor, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of the 256 values occurs in each channel of the images chosen: int64 (channels, 256)."""
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for chunk in _chunks(images, indices):
        for channel, row in enumerate(counts):
            row += np.bincount(chunk[:, channel].ravel(), minlength=256)
    return counts


def statistics_of(counts: NDArray[np.int64]) -> Statistics:
    """Statistics from a histogram (channels, 256).

    Exact: sums are Python integers, and one division and one root, both correctly rounded, make each figure. So every
    rank and every machine gets the same bits.
    """
    mean, std = [], []
    for row in counts.tolist():
        number = sum(row)
        total = sum(value * n for value, n in enumerate(row))
        squares = sum(value * value * n for value, n in enumerate(row))
        mean.append(total / (255 * number))
        std.append(sqrt((number * squares - total * total) / (255 * number) ** 2))
    return Statistics(mean, std)


def channel_statistics(images: Tensor, indices: NDArray[np.int64], name: str) -> Statistics:
    """Exact mean and standard deviation of each channel over the images chosen.

    Raises:
        RunError: a channel is constant, so that nothing can be divided by its deviation.
    """
    statistics = statistics_of(histogram(images, indices))
    if 0.0 in statistics.std:
        raise RunError(
            f"{name}: channel {statistics.std.index(0.0)} has one value in all training images, so its standard"
            " deviation is 0; set --data.std if this is meant"
        )
    return statistics


def digest_of(arrays: Arrays, indices: NDArray[np.int64]) -> str:
    """sha256, in hexadecimal, of the shape, the pixels and the labels of the images chosen, in their order."""
    sha = hashlib.sha256(str((len(indices), *arrays.images.shape[1:])).encode())
    for chunk in _chunks(arrays.images, indices):
        sha.update(chunk.tobytes())
    sha.update(arrays.labels.numpy()[indices].astype("<i8").tobytes())
    return sha.hexdigest()
