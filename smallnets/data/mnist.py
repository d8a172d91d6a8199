"""MNIST (LeCun et al. 1998): 70,000 grey digits of 28 x 28, 60,000 of them for training; read through torchvision."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar, final

import torch
import torchvision

from smallnets.data.arrays import Arrays, Part
from smallnets.data.files import FileState, downloading, require
from smallnets.data.source import Source

_STEMS = {"train": "train", "test": "t10k"}
_KINDS = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}  # a file's name and how many dimensions it has


@final
@dataclass(frozen=True)
class Mnist(Source):
    """The set in `root`/MNIST/raw, in torchvision's form."""

    fetchable: ClassVar[bool] = True
    root: str | Path

    def read(self, part: Part) -> Arrays:
        """The 60,000 training or the 10,000 test images, uint8 (N, 1, 28, 28)."""
        states = self.verify()
        require("MNIST", self.root, [s for s in states if s.state == "missing" or s.path.name.startswith(_STEMS[part])])
        data = torchvision.datasets.MNIST(str(self.root), train=part == "train", download=False)
        return Arrays(data.data.unsqueeze(1), data.targets.to(torch.int64), [c.split()[0] for c in data.classes])

    def fetch(self) -> None:
        """Downloads the four packed files, whose md5 sums torchvision checks, unless all files are there."""
        if any(s.state == "missing" for s in self.verify()):
            with downloading("MNIST", self.root, "MNIST/raw/*-ubyte.gz"):
                torchvision.datasets.MNIST(str(self.root), download=True)

    def verify(self) -> list[FileState]:
        """Each unpacked file with its state. The published md5 sums are those of the packed files, so what is checked
        here is that a file is as long as its header says."""
        return [
            _state(Path(self.root) / "MNIST" / "raw" / f"{stem}-{kind}", dimensions)
            for stem in _STEMS.values()
            for kind, dimensions in _KINDS.items()
        ]


def _state(path: Path, dimensions: int) -> FileState:
    if not path.is_file():
        return FileState(path, "missing")
    with path.open("rb") as file:
        header = file.read(4 + 4 * dimensions)
    # The idx form: 0, 0, type (8 is uint8), dimensions, then one big-endian 32-bit size for each dimension.
    if header[:4] != bytes([0, 0, 8, dimensions]) or len(header) != 4 + 4 * dimensions:
        return FileState(path, "damaged", "it does not begin with the idx header")
    sizes = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
    expected, found = len(header) + prod(sizes), path.stat().st_size
    return (
        FileState(path, "ok")
        if found == expected
        else FileState(path, "damaged", f"it has {found} bytes, and {expected} by its header")
    )
