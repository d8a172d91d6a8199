"""Random images in place of a data set: speed does not depend on what they show."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from smallnets.data.arrays import Arrays, Part
from smallnets.data.augment import parse
from smallnets.data.loader import BatchLoader
from smallnets.data.modules import ImageData, Specs
from smallnets.data.source import Source

CLASSES = 10


@final
@dataclass(frozen=True)
class Noise(Source):
    """Uniform bytes, the same in every part and every time; labels 0 .. 9 in turn."""

    count: int
    image_size: int

    def read(self, part: Part) -> Arrays:
        """`count` images, uint8 (count, 3, image_size, image_size)."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.count, 3, self.image_size, self.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return Arrays(images, torch.arange(self.count) % CLASSES, [str(c) for c in range(CLASSES)])


@final
class RandomImages(ImageData):
    """`batches` full training batches of random images, and a few for validation, in memory."""

    num_classes = CLASSES

    def __init__(self, batches: int, batch_size: int, image_size: int = 32, augment: Specs = ()) -> None:
        self.image_size = image_size
        size = batches * batch_size
        # A ninth more for validation, and some for the rounding of the split.
        self._noise = Noise(size * 10 // 9 + 4 * CLASSES, image_size)
        super().__init__(batch_size=batch_size, augment=augment, train_size=size, order_seed=0, augment_seed=0)

    def make_source(self) -> Source:
        return self._noise


class Batches:
    """The batches of `RandomImages`, for a loop without Lightning: tensors on the device, augmentations, constants."""

    def __init__(
        self, device: torch.device, batches: int, batch_size: int, image_size: int = 32, augment: Specs = ()
    ) -> None:
        self.device, self.batch_size = device, batch_size
        data = RandomImages(batches, batch_size, image_size, augment)
        loader = data.train_dataloader()
        assert isinstance(loader, BatchLoader), "chunks are for a trainer"
        self.images, self.labels, self.indices = loader.images.to(device), loader.labels.to(device), loader.indices
        self.augmentations = parse(augment)
        self.mean, self.std = data.mean, data.std

    @cached_property
    def constants(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of each channel, on the device."""
        return torch.tensor(self.mean, device=self.device), torch.tensor(self.std, device=self.device)

    def loader(self) -> BatchLoader:
        """A loader at the start of the first epoch, in the order in which `RandomImages` gives the images."""
        return BatchLoader(self.images, self.labels, self.indices, batch_size=self.batch_size, seed=0)
