"""`pipeline`: batches from uint8 images to what a network takes, against torchvision's transforms on PIL images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Generator
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from smallnets.bench.images import Batches
from smallnets.bench.rows import Row, with_rate
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.data.augment import apply_all, normalise
from smallnets.data.modules import Specs
from smallnets.data.seeds import STREAM_AUGMENT, mix

# What is measured: our augmentations, torchvision's, and how many times faster ours are to be on a CPU.
_Make = Callable[[], list[Any]]
CHAINS: dict[str, tuple[Specs, _Make, float]] = {
    "crop+flip": (
        ["crop", "flip"],
        lambda: [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()],
        30.0,
    ),
    "autoaugment+perspective+crop+flip": (
        ["autoaugment", "perspective", "crop", "flip"],
        lambda: [
            transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
            transforms.RandomPerspective(distortion_scale=0.5, p=0.5),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
        ],
        12.0,
    ),
}

# Images a second that an H200-class GPU is expected to give: estimates, which a run there checks.
EXPECTED = {"autoaugment+perspective+crop+flip": 1_000_000}


class PILImages(Dataset[tuple[torch.Tensor, int]]):
    """Images made into PIL's one by one, transformed and normalised, as torchvision's data sets give them."""

    def __init__(self, batches: Batches, augmentations: list[Any], on_tensors: Sequence[Any] = ()) -> None:
        chosen = torch.from_numpy(batches.indices)
        self._images = batches.images.cpu()[chosen].permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = batches.labels.cpu()[chosen].tolist()
        normalisation = transforms.Normalize(batches.mean, batches.std)
        self._transform = transforms.Compose([*augmentations, transforms.ToTensor(), *on_tensors, normalisation])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def measure(settings: Settings) -> list[Row]:
    """Seconds of one batch of 128, out of an epoch of some: read in a random order, augmented, normalised, there."""
    number, size = (1, 16) if settings.quick else (4, 128)
    rows = []
    for name, (specs, make, times) in CHAINS.items():
        batches = Batches(settings.device, number, size, augment=specs)
        loader: Any = DataLoader(PILImages(batches, make()), size, shuffle=True, num_workers=0)
        batched(batches)
        # Ours is so much shorter that a pass over the epoch is repeated.
        ours = timed(partial(batched, batches), settings.device, times=1 if settings.quick else 10)
        theirs = timed(partial(usual, loader, settings.device), settings.device)
        passes = alternate({"torchvision on PIL": theirs, "batched": ours}, settings.rounds(9))
        seconds = {side: [s / number for s in of_a_pass] for side, of_a_pass in passes.items()}
        row = compare(f"{name}+normalise", seconds, "torchvision on PIL", "batched", f"a batch of {size}")
        rows.append(with_rate(row, size, EXPECTED.get(name)).with_bar(">=", times))
    return rows


def batched(batches: Batches) -> None:
    """An epoch of ours."""
    for images, _, place in batches.loader():
        generator = Generator(batches.device).manual_seed(mix(0, STREAM_AUGMENT, *place))  # type: ignore[misc]
        normalise(apply_all(batches.augmentations, images, generator), *batches.constants)


def usual(loader: Any, device: torch.device) -> None:
    """An epoch of theirs."""
    for images, labels in loader:
        images.to(device), labels.to(device)
