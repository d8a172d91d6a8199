"""`recipes`: the other augmentations of a training recipe, each beside torchvision's where it has it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import v2

from smallnets.bench.images import CLASSES, Batches
from smallnets.bench.pipeline import PILImages, batched, usual
from smallnets.bench.rows import Row, with_rate
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.data.modules import Specs
from smallnets.training.mixing import cutmix, mixup

# Ours, and torchvision's on a PIL image, or after it is a tensor.
IMAGE_BY_IMAGE: dict[str, tuple[Specs, Callable[[], list[Any]], Callable[[], list[Any]]]] = {
    "erase": (["erase"], list, lambda: [transforms.RandomErasing()]),
    "randaugment": (["randaugment"], lambda: [transforms.RandAugment()], list),
    "trivialaugment": (["trivialaugment"], lambda: [transforms.TrivialAugmentWide()], list),
}
# These mix float images; torchvision's draw one mixing coefficient (and one box) for the whole batch.
MIXED: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "mixup": (mixup, lambda: v2.MixUp(num_classes=CLASSES)),
    "cutmix": (cutmix, lambda: v2.CutMix(num_classes=CLASSES)),
}


def measure(settings: Settings) -> list[Row]:
    """Seconds of one batch of 128, normalised and on the device; cutout, which torchvision lacks, beside none."""
    number, size = (1, 16) if settings.quick else (4, 128)
    rows = [_cutout(settings, number, size)]
    for name, (specs, on_pil, on_tensors) in IMAGE_BY_IMAGE.items():
        batches = Batches(settings.device, number, size, augment=specs)
        loader: Any = DataLoader(PILImages(batches, on_pil(), on_tensors()), size, shuffle=True, num_workers=0)
        batched(batches)
        ours = timed(partial(batched, batches), settings.device, times=1 if settings.quick else 5)
        theirs = timed(partial(usual, loader, settings.device), settings.device)
        passes = alternate({"torchvision on PIL": theirs, "batched": ours}, settings.rounds(5))
        rows.append(_row(name, {side: [s / number for s in each] for side, each in passes.items()}, size))
    images = torch.rand(size, 3, 32, 32, device=settings.device)
    labels = torch.arange(size, device=settings.device) % CLASSES
    for name, (ours_of, theirs_of) in MIXED.items():
        sides: dict[str, Callable[[], Any]] = {
            "torchvision v2": partial(theirs_of(), images, labels),
            "batched": partial(_mixed, ours_of, images, labels),
        }
        times = 1 if settings.quick else 20
        found = alternate({k: timed(v, settings.device, times) for k, v in sides.items()}, settings.rounds(9))
        rows.append(_row(name, found, size))
    return rows


def _cutout(settings: Settings, number: int, size: int) -> Row:
    both = {
        name: Batches(settings.device, number, size, augment=specs)
        for name, specs in (("batched", ["cutout"]), ("no augmentation", []))
    }
    times = 1 if settings.quick else 10
    sides = {name: timed(partial(batched, each), settings.device, times) for name, each in both.items()}
    passes = alternate(sides, settings.rounds(5))
    seconds = {name: [s / number for s in each] for name, each in passes.items()}
    return with_rate(compare("cutout", seconds, "batched", "no augmentation", f"a batch of {size}"), size)


def _mixed(mix: Callable[..., Any], images: Tensor, labels: Tensor) -> None:
    generator = Generator(images.device).manual_seed(0)
    mix(images, one_hot(labels, CLASSES).to(images.dtype), 1.0, generator)


def _row(name: str, seconds: dict[str, list[float]], size: int) -> Row:
    theirs, ours = seconds
    return with_rate(compare(name, seconds, theirs, ours, f"a batch of {size}"), size)
