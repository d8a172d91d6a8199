"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8, for trying things without a download."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from smallnets.data.arrays import Arrays, Part
from smallnets.data.source import Source
from smallnets.data.split import stratified_split

SHARES = (50, 10)  # training (and validation) : test, as in CIFAR


@final
@dataclass(frozen=True)
class SklearnDigits(Source):
    """The set, drawn to `image_size` pixels a side; grey is repeated over `in_channels`.

    One sixth of the images is the test part, chosen by `split_seed`.
    """

    split_seed: int
    image_size: int
    in_channels: int

    def read(self, part: Part) -> Arrays:
        """Values 0 .. 16 are stretched to 0 .. 255; uint8 (N, in_channels, image_size, image_size).

        Drawn larger by nearest neighbour, which is exact in integers and so the same on every machine.
        """
        from sklearn.datasets import load_digits  # slow to import

        data = load_digits()
        chosen = stratified_split(data.target, SHARES, self.split_seed)[0 if part == "train" else 1]
        grey = ((data.images[chosen].astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
        nearest = np.arange(self.image_size) * grey.shape[1] // self.image_size
        drawn = grey[:, nearest][:, :, nearest]
        images = torch.from_numpy(np.repeat(drawn[:, None], self.in_channels, axis=1))
        labels = torch.from_numpy(data.target[chosen].astype(np.int64))
        return Arrays(images, labels, [str(c) for c in data.target_names])
