"""Image data: sets as uint8 tensors, exact splits, a loader that keeps its place, batched augmentation.

The LightningDataModules (`CIFAR10`, `CIFAR100`, `ImageNet64`, `Digits`, `MNIST`, `ImageFolder`, their base `ImageData`)
are imported when first used, so that the rest of this package works without Lightning.
"""

from importlib import import_module
from typing import Any

MODULES = ("CIFAR10", "CIFAR100", "Digits", "ImageFolder", "ImageNet64", "MNIST")
_LAZY = {
    **dict.fromkeys(MODULES, "smallnets.data.sets"),
    "ImageData": "smallnets.data.modules",
    "Arrays": "smallnets.data.arrays",
    "BatchLoader": "smallnets.data.loader",
    "Place": "smallnets.data.loader",
    "normalise": "smallnets.data.augment",
    "stratified_split": "smallnets.data.split",
}
__all__ = sorted(["MODULES", *_LAZY])


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'smallnets.data' has no attribute {name!r}")
