"""What is exported: a checkpoint's network with all that its user must know."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from smallnets.models.name import name_of
from smallnets.results.load import CHECKPOINT_KEY, fake_quantized, network_of, read_checkpoint
from smallnets.results.predictions import named
from smallnets.results.row import read_row
from smallnets.results.run import RunFolder
from smallnets.surgery.fake_quantize import FakeQuantized


@dataclass(frozen=True)
class Subject:
    """A network and the images that it was trained for.

    Attributes:
        net: in eval mode on the CPU; a `FakeQuantized` where quantisation-aware training trained it.
        name: the network's.
        image_size, in_channels: of its images.
        mean, std: of each channel, for pixels in [0, 1]; empty where the checkpoint does not know its data.
        classes: names in the order of the logits; empty likewise.
        data, split_seed: the data set's name, and the seed of its split; None where they are not known.
        checkpoint: the file that it came from.
        row: the run's row; None where the checkpoint lies in no run that has ended.
    """

    net: nn.Module
    name: str
    image_size: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    data: str | None
    split_seed: int | None
    checkpoint: Path
    row: dict[str, Any] | None

    @property
    def stored(self) -> nn.Module:
        """The network whose weights are counted: of a `FakeQuantized`, with the weights that it computes with."""
        return self.net.snapped() if isinstance(self.net, FakeQuantized) else self.net

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, rows, columns) of one image."""
        return self.in_channels, self.image_size, self.image_size

    @property
    def logit_names(self) -> list[str]:
        """The classes, and "none" for every logit beyond them; empty where the classes are not known."""
        if not self.classes:
            return []
        with torch.no_grad():
            return named(self.classes, self.net(self.made_up_images(1)).shape[1])

    def with_row_of_now(self) -> "Subject":
        """The same with the run's row as it stands now."""
        folder = RunFolder.owning(self.checkpoint)
        return replace(self, row=read_row(folder.path) if folder else None)

    def made_up_images(self, number: int, seed: int = 0) -> Tensor:
        """`number` images of random pixels, normalised as the data are: for comparing logits without the data."""
        pixels = torch.rand(number, *self.shape, generator=Generator().manual_seed(seed))
        mean, std = ((torch.tensor(v or d).view(-1, 1, 1)) for v, d in ((self.mean, (0.5,)), (self.std, (0.25,))))
        return (pixels - mean) / std


def read_subject(path: str | Path, net: nn.Module | None = None) -> Subject:
    """The network of a checkpoint, rebuilt from the file alone, with what the file and its run say of it.

    Args:
        path: a checkpoint that a run wrote.
        net: a network to load into, for a class whose arguments cannot be read back (see `smallnets.load`).

    Raises:
        UserError: no such file, or not a checkpoint of smallnets.
        RunError: the file is cut short or damaged.
    """
    path = Path(path).expanduser()
    checkpoint = read_checkpoint(path)
    about = checkpoint[CHECKPOINT_KEY]
    loaded = network_of(checkpoint, path, net)
    folder = RunFolder.owning(path)
    return Subject(
        net=fake_quantized(checkpoint, loaded) or loaded,
        name=name_of(loaded),
        image_size=about["image_size"] or 32,
        in_channels=about["in_channels"] or 3,
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        classes=tuple(about["classes"]),
        data=about["data"],
        split_seed=about["split_seed"],
        checkpoint=path,
        row=read_row(folder.path) if folder else None,
    )
