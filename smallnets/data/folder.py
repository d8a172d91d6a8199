"""A user's own images: one folder for each class, decoded by Pillow to one size."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from smallnets.data.arrays import Arrays, Part
from smallnets.data.files import FileState
from smallnets.data.source import Source
from smallnets.data.split import stratified_split
from smallnets.errors import RunError, UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SHARES = (50, 10)  # training (and validation) : test, where the folder has no test part of its own


def decode(paths: list[Path], image_size: int, in_channels: int) -> torch.Tensor:
    """The images, uint8 (N, in_channels, image_size, image_size); one channel is Pillow's grey, three are RGB.

    The shorter side is resized to `image_size` (Pillow's antialiased bilinear, in integers) and the middle is cut out.

    Raises:
        RunError: a file cannot be decoded; it is named.
    """
    images = np.empty((len(paths), image_size, image_size, in_channels), dtype=np.uint8)
    for path, target in zip(paths, images, strict=True):
        try:
            with Image.open(path) as image:
                picture = image.convert("L" if in_channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise RunError(f"ImageFolder: {path} cannot be read as an image: {error}") from error
        scale = image_size / min(picture.size)
        width, height = (max(image_size, round(side * scale)) for side in picture.size)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        resized = picture.resize((width, height), Image.Resampling.BILINEAR)
        cut = resized.crop((left, top, left + image_size, top + image_size))
        target[:] = np.asarray(cut).reshape(image_size, image_size, in_channels)
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def list_images(folder: Path) -> list[Path]:
    """All image files under a folder, by suffix, sorted by path; hidden ones are left out."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES
        and p.is_file()
        and not any(name.startswith(".") for name in p.relative_to(folder).parts)
    )


@final
@dataclass(frozen=True)
class Tree(Source):
    """`root`/train/<class>/* with or without `root`/test/<class>/*, or `root`/<class>/* alone.

    Without a test folder, one sixth of the images is the test part, chosen by `split_seed` (with the validation split
    45 : 5 : 10 in all). No file of the test part is opened before the test part is read. Other folders in `root`, as
    `val`, are not read where there is a `train`: the validation split is taken from the training images.
    """

    root: Path
    split_seed: int
    image_size: int
    in_channels: int

    @cached_property
    def classes(self) -> list[str]:
        """The names of the class folders, sorted.

        Raises:
            RunError: there is no such folder.
            UserError: fewer than two classes, or a class without images.
        """
        if not self.root.is_dir():
            raise RunError(f"ImageFolder: there is no folder {self.root}; set --data.root to one with a folder a class")
        names = self._names(self._base)
        if len(names) < 2:
            found = f"only {names[0]!r}" if names else "none"
            raise UserError(f"ImageFolder: {self._base} needs a folder for each of two or more classes; found {found}")
        return names

    def files(self, part: Part) -> tuple[list[Path], NDArray[np.int64]]:
        """The image files of a part, and their labels."""
        if not self._has_test:
            paths, labels = self._listing(self._base)
            chosen = stratified_split(labels, SHARES, self.split_seed)[0 if part == "train" else 1]
            return [paths[i] for i in chosen], labels[chosen]
        return self._listing(self._base if part == "train" else self.root / "test")

    def read(self, part: Part) -> Arrays:
        """The images of a part, decoded (see `decode`)."""
        paths, labels = self.files(part)
        return Arrays(decode(paths, self.image_size, self.in_channels), torch.from_numpy(labels), self.classes)

    def verify(self) -> list[FileState]:
        """Every image file with its state, by decoding it."""
        folders = [self._base, self.root / "test"] if self._has_test else [self._base]
        return [_state(p) for folder in folders for name in self.classes for p in list_images(folder / name)]

    @property
    def _base(self) -> Path:
        return self.root / "train" if (self.root / "train").is_dir() else self.root

    @property
    def _has_test(self) -> bool:
        return self._base != self.root and (self.root / "test").is_dir()

    @staticmethod
    def _names(folder: Path) -> list[str]:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    def _listing(self, folder: Path) -> tuple[list[Path], NDArray[np.int64]]:
        unknown = sorted(set(self._names(folder)) - set(self.classes))
        if unknown:
            raise UserError(f"ImageFolder: {folder} has classes that {self._base} has not: {', '.join(unknown)}")
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.classes):
            found = list_images(folder / name)
            if not found and folder == self._base:
                raise UserError(f"ImageFolder: {folder / name} has no images ({' '.join(SUFFIXES)})")
            paths += found
            labels += [label] * len(found)
        return paths, np.asarray(labels, dtype=np.int64)


def _state(path: Path) -> FileState:
    try:
        decode([path], 1, 3)
    except RunError as error:
        return FileState(path, "damaged", str(error.__cause__))
    return FileState(path, "ok")
