"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 images of 32 x 32 in colour, 50,000 of them for training.

torchvision holds the list of files with their md5 sums, downloads them and reads them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

import torch
import torchvision
from torchvision.datasets.utils import check_integrity

from smallnets.data.arrays import Arrays, Part
from smallnets.data.files import FileState, downloading, require, unpickling
from smallnets.data.source import Source

Name = Literal["CIFAR10", "CIFAR100"]


@final
@dataclass(frozen=True)
class Cifar(Source):
    """One of the two sets, in `root`'s folder in torchvision's form."""

    fetchable: ClassVar[bool] = True
    name: Name
    root: str | Path

    def read(self, part: Part) -> Arrays:
        """The 50,000 training or the 10,000 test images, uint8 (N, 3, 32, 32).

        All files must be there; md5 sums are checked, and images read, of the files of this part alone.
        """
        published = _published(self.name)
        own = published.train_list if part == "train" else published.test_list
        require(self.name, self.root, self._states({file for file, _ in own} | {published.meta["filename"]}))
        with unpickling():
            data = _checked(published)(str(self.root), train=part == "train", download=False)
        # torchvision keeps (N, height, width, channels), a view of what the files hold.
        images = torch.from_numpy(data.data.transpose(0, 3, 1, 2).copy())
        return Arrays(images, torch.tensor(data.targets, dtype=torch.int64), list(data.classes))

    def fetch(self) -> None:
        """Downloads and unpacks the archive unless all files are there."""
        if any(s.state != "ok" for s in self._states(set())):
            published = _published(self.name)
            with downloading(self.name, self.root, published.filename):
                published(str(self.root), download=True)

    def verify(self) -> list[FileState]:
        """Each file of the set with its state, by md5."""
        return self._states(None)

    def _states(self, hashed: set[str] | None) -> list[FileState]:
        """The state of each file; md5 sums of the files in `hashed` only, or of all where it is None."""
        published = _published(self.name)
        meta = [published.meta["filename"], published.meta["md5"]]
        states = []
        for file, md5 in [*published.train_list, *published.test_list, meta]:
            path = Path(self.root) / published.base_folder / file
            if not path.is_file():
                states.append(FileState(path, "missing"))
            elif (hashed is None or file in hashed) and not check_integrity(path, md5):
                states.append(FileState(path, "damaged", f"its md5 differs from the published {md5}"))
            else:
                states.append(FileState(path, "ok"))
        return states


def _published(name: Name) -> type[torchvision.datasets.CIFAR10]:
    return {"CIFAR10": torchvision.datasets.CIFAR10, "CIFAR100": torchvision.datasets.CIFAR100}[name]


def _checked(published: type[torchvision.datasets.CIFAR10]) -> type[torchvision.datasets.CIFAR10]:
    """torchvision's reader without its own check, which hashes all seven files for each part and names none."""
    return type(published.__name__, (published,), {"_check_integrity": lambda self: True})
