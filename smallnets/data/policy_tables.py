"""The policies of AutoAugment, and how strong each operation of the three policies is at each magnitude, as numbers."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from smallnets.data.colour import BLENDS, TABLES
from smallnets.data.geometry import MATRICES

# In the order in which they are grouped: identity, geometry, tables, blends.
OPERATIONS = ("Identity", *MATRICES, *TABLES, *BLENDS)
IDENTITY = 0

_SIGNED = {*MATRICES, "Brightness", "Contrast", "Color", "Sharpness"}


class Space(NamedTuple):
    """The magnitudes of a policy: `bins` of them, evenly spaced from nothing to the largest, which is given for each.

    Shear is a slope, rotation is in degrees, `blend` is what brightness, contrast, colour and sharpness add to their
    factor of 1, `bits` is how many posterizing drops. Translation is a share of the image's width or height, or where
    `in_pixels` a number of pixels. Solarizing goes from the threshold 1 down to 0 everywhere.
    """

    bins: int
    shear: float
    translate: float
    in_pixels: bool
    rotate: float
    blend: float
    bits: int

    def at(self, height: int, width: int) -> Tensor:
        """float32 (operations, bins) for images of that size; 0 for those that have no magnitude."""
        return _magnitudes(self, height, width)


# AutoAugment (Cubuk et al. 2019) has 10 magnitudes; RandAugment (Cubuk et al. 2020) has 31 in the same ranges.
AUTO = Space(10, shear=0.3, translate=150 / 331, in_pixels=False, rotate=30, blend=0.9, bits=4)
RAND = AUTO._replace(bins=31)
# TrivialAugment (Mueller & Hutter 2021), in its wide ranges.
WIDE = Space(31, shear=0.99, translate=32, in_pixels=True, rotate=135, blend=0.99, bits=6)


def signs(operations: Tensor, uniform: Tensor) -> Tensor:
    """-1 or 1 for operations that go two ways, by a uniform draw for each; 1 for the others."""
    signed = torch.tensor([name in _SIGNED for name in OPERATIONS])
    return torch.where(signed[operations] & (uniform < 0.5), -1.0, 1.0)


class Policy(NamedTuple):
    """Sub-policies of two steps, each (sub-policies, 2): operation, how likely it is done, the bin of its magnitude."""

    operations: Tensor
    chances: Tensor
    bins: Tensor


def autoaugment_policy(name: str) -> Policy:
    """One of `AUTOAUGMENT`, as numbers."""
    steps = [[step.split() for step in line.split(",")] for line in AUTOAUGMENT[name].strip().splitlines()]
    return Policy(
        torch.tensor([[OPERATIONS.index(step[0]) for step in pair] for pair in steps]),
        torch.tensor([[float(step[1]) for step in pair] for pair in steps]),
        torch.tensor([[int(step[2]) if len(step) > 2 else 0 for step in pair] for pair in steps]),
    )


@lru_cache
def _magnitudes(space: Space, height: int, width: int) -> Tensor:
    across, down = (1, 1) if space.in_pixels else (width, height)
    largest = {
        "ShearX": space.shear,
        "ShearY": space.shear,
        "TranslateX": space.translate * across,
        "TranslateY": space.translate * down,
        "Rotate": space.rotate,
        **dict.fromkeys(("Brightness", "Contrast", "Color", "Sharpness"), space.blend),
    }
    rows = [torch.linspace(0, largest.get(name, 0), space.bins) for name in OPERATIONS]
    rows[OPERATIONS.index("Solarize")] = torch.linspace(1, 0, space.bins)
    rows[OPERATIONS.index("Posterize")] = (8 - torch.arange(space.bins) / ((space.bins - 1) / space.bits)).round()
    return torch.stack(rows)


# Each line a sub-policy: operation, probability and, where there is one, the bin of its magnitude, 0 .. 9.
AUTOAUGMENT = {
    "cifar10": """
        Invert 0.1, Contrast 0.2 6
        Rotate 0.7 2, TranslateX 0.3 9
        Sharpness 0.8 1, Sharpness 0.9 3
        ShearY 0.5 8, TranslateY 0.7 9
        AutoContrast 0.5, Equalize 0.9
        ShearY 0.2 7, Posterize 0.3 7
        Color 0.4 3, Brightness 0.6 7
        Sharpness 0.3 9, Brightness 0.7 9
        Equalize 0.6, Equalize 0.5
        Contrast 0.6 7, Sharpness 0.6 5
        Color 0.7 7, TranslateX 0.5 8
        Equalize 0.3, AutoContrast 0.4
        TranslateY 0.4 3, Sharpness 0.2 6
        Brightness 0.9 6, Color 0.2 8
        Solarize 0.5 2, Invert 0
        Equalize 0.2, AutoContrast 0.6
        Equalize 0.2, Equalize 0.6
        Color 0.9 9, Equalize 0.6
        AutoContrast 0.8, Solarize 0.2 8
        Brightness 0.1 3, Color 0.7 0
        Solarize 0.4 5, AutoContrast 0.9
        TranslateY 0.9 9, TranslateY 0.7 9
        AutoContrast 0.9, Solarize 0.8 3
        Equalize 0.8, Invert 0.1
        TranslateY 0.7 9, AutoContrast 0.9
    """,
    "imagenet": """
        Posterize 0.4 8, Rotate 0.6 9
        Solarize 0.6 5, AutoContrast 0.6
        Equalize 0.8, Equalize 0.6
        Posterize 0.6 7, Posterize 0.6 6
        Equalize 0.4, Solarize 0.2 4
        Equalize 0.4, Rotate 0.8 8
        Solarize 0.6 3, Equalize 0.6
        Posterize 0.8 5, Equalize 1
        Rotate 0.2 3, Solarize 0.6 8
        Equalize 0.6, Posterize 0.4 6
        Rotate 0.8 8, Color 0.4 0
        Rotate 0.4 9, Equalize 0.6
        Equalize 0, Equalize 0.8
        Invert 0.6, Equalize 1
        Color 0.6 4, Contrast 1 8
        Rotate 0.8 8, Color 1 2
        Color 0.8 8, Solarize 0.8 7
        Sharpness 0.4 7, Invert 0.6
        ShearX 0.6 5, Equalize 1
        Color 0.4 0, Equalize 0.6
        Equalize 0.4, Solarize 0.2 4
        Solarize 0.6 5, AutoContrast 0.6
        Invert 0.6, Equalize 1
        Color 0.6 4, Contrast 1 8
        Equalize 0.8, Equalize 0.6
    """,
    "svhn": """
        ShearX 0.9 4, Invert 0.2
        ShearY 0.9 8, Invert 0.7
        Equalize 0.6, Solarize 0.6 6
        Invert 0.9, Equalize 0.6
        Equalize 0.6, Rotate 0.9 3
        ShearX 0.9 4, AutoContrast 0.8
        ShearY 0.9 8, Invert 0.4
        ShearY 0.9 5, Solarize 0.2 6
        Invert 0.9, AutoContrast 0.8
        Equalize 0.6, Rotate 0.9 3
        ShearX 0.9 4, Solarize 0.3 3
        ShearY 0.8 8, Invert 0.7
        Equalize 0.9, TranslateY 0.6 6
        Invert 0.9, Equalize 0.6
        Contrast 0.3 3, Rotate 0.8 4
        Invert 0.8, TranslateY 0 2
        ShearY 0.7 6, Solarize 0.4 8
        Invert 0.6, Rotate 0.8 4
        ShearY 0.3 7, TranslateX 0.9 3
        ShearX 0.1 6, Invert 0.6
        Solarize 0.7 2, TranslateY 0.6 7
        ShearY 0.8 4, Invert 0.8
        ShearX 0.7 9, TranslateY 0.8 3
        ShearY 0.8 5, AutoContrast 0.7
        ShearX 0.7 2, Invert 0.1
    """,
}
