"""Checkpoints and exported files side by side: inference by turns, each against the first."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.compress.runtime import FORMATS, open_exported
from smallnets.compress.subject import read_subject
from smallnets.errors import UserError

BATCHES = (1, 32)


def measure(settings: Settings, paths: Sequence[str]) -> list[Row]:
    """Seconds of one inference of a batch of 1 and of 32: files on the CPU, checkpoints by torch on the device.

    A single file is measured against itself.

    Raises:
        UserError: not a checkpoint nor an exported file, the same one twice, or files for different images.
        RunError: a damaged file.
    """
    if len(set(paths)) < len(paths):
        raise UserError(f"smallnets bench: --ckpt names a file twice: {', '.join(paths)}")
    opened = {path: _open(path, settings) for path in paths}
    shapes = {path: shape for path, (_, shape) in opened.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{path} takes {'x'.join(map(str, shape))}" for path, shape in shapes.items())
        raise UserError(f"smallnets bench: --ckpt: these are for different images: {told}")
    first, *others = paths
    rows = []
    for batch in BATCHES:
        images = torch.randn(batch, *shapes[first], generator=Generator().manual_seed(0))
        runs = {path: partial(run, images) for path, (run, _) in opened.items()}
        for run in runs.values():
            run()
        sides = {path: timed(run, settings.device, times=1 if settings.quick else 5) for path, run in runs.items()}
        seconds = alternate(sides, settings.rounds(30))
        rows += [compare(f"batch {batch}", seconds, first, other, "one inference") for other in others or [first]]
    return rows


def _open(path: str, settings: Settings) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
    """What runs a batch, and the shape of one image."""
    if Path(path).suffix in FORMATS.values():
        file = open_exported(path, settings.threads)
        return file, file.shape
    subject = read_subject(path)
    return partial(_by_torch, subject.net.to(settings.device), settings.device), subject.shape


@torch.no_grad()
def _by_torch(net: nn.Module, device: torch.device, images: Tensor) -> Tensor:
    return net(images.to(device))
