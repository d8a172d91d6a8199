"""The data sets: where each one's images come from, over the common `ImageData`."""

from pathlib import Path
from typing import Any, final

from smallnets.data.cifar import Cifar
from smallnets.data.digits import SklearnDigits
from smallnets.data.folder import Tree
from smallnets.data.imagenet64 import NUM_CLASSES, SIZE, Batches
from smallnets.data.mnist import Mnist
from smallnets.data.modules import ImageData
from smallnets.data.source import Source
from smallnets.errors import UserError


@final
class CIFAR10(ImageData):
    """CIFAR-10: 10 classes, 32 x 32 in colour; 45,000 / 5,000 / 10,000 images."""

    num_classes = 10

    def make_source(self) -> Source:
        return Cifar("CIFAR10", self.root)


@final
class CIFAR100(ImageData):
    """CIFAR-100: 100 classes, 32 x 32 in colour; 45,000 / 5,000 / 10,000 images."""

    num_classes = 100

    def make_source(self) -> Source:
        return Cifar("CIFAR100", self.root)


@final
class MNIST(ImageData):
    """MNIST: 10 digits, 28 x 28 in grey; 54,000 / 6,000 / 10,000 images."""

    num_classes, in_channels, image_size = 10, 1, 28

    def make_source(self) -> Source:
        return Mnist(self.root)


@final
class Digits(ImageData):
    """scikit-learn's digits: 10 classes, 8 x 8 in grey, drawn larger; 1,348 / 150 / 299 images, without a download.

    Args:
        image_size: pixels a side that the digits are drawn to.
        in_channels: 3 repeats the grey for networks that take colour, or 1.
        kwargs: those of `ImageData`.
    """

    num_classes = 10

    def __init__(self, image_size: int = 32, in_channels: int = 3, **kwargs: Any) -> None:
        self.image_size, self.in_channels = _checked_form(image_size, in_channels)
        super().__init__(**kwargs)

    def make_source(self) -> Source:
        return SklearnDigits(self.split_seed, self.image_size, self.in_channels)


@final
class ImageNet64(ImageData):
    """ImageNet64: 1,000 classes, 64 x 64 in colour, the published batches in `root`; `val_data` is the test part.

    Converted once to 15.7 GB that are mapped into memory, and read by index. Statistics and digest, which take
    minutes, are kept beside them.

    Args:
        cache: where the converted images are written; by default `root`.
        kwargs: those of `ImageData`.
    """

    num_classes, image_size = NUM_CLASSES, SIZE

    def __init__(self, cache: str | None = None, **kwargs: Any) -> None:
        self.cache = cache
        super().__init__(**kwargs)

    def make_source(self) -> Source:
        return Batches(self.root, self.cache)

    def prepare_data(self) -> None:
        super().prepare_data()
        _ = self.true_mean  # on one process; the others find it


@final
class ImageFolder(ImageData):
    """A user's own images: `root`/train/<class>/* with or without `root`/test/<class>/*, or `root`/<class>/* alone.

    Without a test folder the images are split 45 : 5 : 10 into training, validation and test. `folder.decode` says
    how they are resized.

    Args:
        image_size: pixels a side that the images are resized and cut to.
        in_channels: 3 for RGB, 1 for grey.
        kwargs: those of `ImageData`.
    """

    def __init__(self, image_size: int = 32, in_channels: int = 3, **kwargs: Any) -> None:
        self.image_size, self.in_channels = _checked_form(image_size, in_channels)
        super().__init__(**kwargs)
        self.num_classes = len(self.classes)

    def make_source(self) -> Tree:
        return Tree(Path(self.root), self.split_seed, self.image_size, self.in_channels)

    @property
    def classes(self) -> list[str]:
        """The names of the class folders, in the order of the labels."""
        assert isinstance(self.source, Tree)
        return self.source.classes


def _checked_form(image_size: int, in_channels: int) -> tuple[int, int]:
    if in_channels not in (1, 3):
        raise UserError(f"--data.in_channels is 1 or 3, not {in_channels}")
    if image_size < 1:
        raise UserError(f"--data.image_size is 1 or more, not {image_size}")
    return image_size, in_channels
