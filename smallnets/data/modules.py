"""`ImageData`: a data set with its split, its loaders, and what is done to a batch on the device."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from smallnets.data import chunks
from smallnets.data.arrays import Arrays
from smallnets.data.augment import apply_all, normalise, parse
from smallnets.data.folder import SUFFIXES, decode, list_images
from smallnets.data.loader import BatchLoader, batch_bounds
from smallnets.data.parts import Parts
from smallnets.data.seeds import STREAM_AUGMENT, global_seed, mix
from smallnets.data.source import Source
from smallnets.errors import UserError

Specs = Sequence[str | dict[str, dict[str, Any] | None]]


class ImageData(L.LightningDataModule, ABC):
    """What all data sets share: split, order, augmentation and normalisation, by the laws of this package.

    *Split.* The part that is not the test part is divided 9 : 1 into training and validation, stratified, a pure
    function of `split_seed`. Test images are read by `test`, by `export` to hold a file against its network, and by
    nothing else. Validation and test images are never augmented.

    *Order.* The images of an epoch, their order and their augmentation are a function of (seed, epoch, rank, world
    size); see `BatchLoader`.

    A set that fits lives on the training device as one uint8 tensor, and a batch is an index into it.

    Args:
        root: the folder that holds the data set's own folder.
        batch_size: training images a batch and rank.
        eval_batch_size: images a batch and rank in evaluation; by default the larger of `batch_size` and 512. Never
            more than there are.
        augment: augmentations of the training images, in order: names, or {name: {parameter: value}}; see
            `smallnets.data.augment`.
        split_seed: chooses the validation images.
        order_seed: of the order; by default the run's seed.
        augment_seed: of the augmentation; by default the run's seed.
        download: get missing files where that is possible.
        train_size: train on so many images of the training split only, chosen by class and `split_seed`. Validation,
            and the statistics for normalisation, stay those of the whole split.
        mean: of each channel, for pixels in [0, 1]; by default that of the training split.
        std: standard deviation of each channel; by default that of the training split.
        predict_from: a folder of images for `predict`; by default it takes the validation split.

    Attributes:
        num_classes, in_channels, image_size, name: known from the start.
        split_sizes: images in `train`, `val` and `test`, as far as `setup` has read them.
        predict_files: the files of `predict_from`, in the order of the predictions.

    Raises:
        UserError: a setting out of its range.
        RunError: (from `prepare_data` and `setup`) missing or damaged files, and what to do about them.
    """

    num_classes: int
    in_channels: int = 3
    image_size: int = 32

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        augment: Specs = (),
        split_seed: int = 0,
        order_seed: int | None = None,
        augment_seed: int | None = None,
        download: bool = True,
        train_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        predict_from: str | None = None,
    ) -> None:
        super().__init__()
        self.name = type(self).__name__
        for option, value in {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "train_size": train_size,
        }.items():
            if value is not None and value < 1:
                raise UserError(f"--data.{option} is 1 or more, not {value}")
        for option, values in {"mean": mean, "std": std}.items():
            if values is not None and len(values) != self.in_channels:
                raise UserError(f"--data.{option} has one value for each of {self.in_channels} channels, not {values}")
        if std is not None and min(std) <= 0:
            raise UserError(f"--data.std is above 0 for each channel, not {std}")
        self._augmentations = parse(augment)  # a mistake in it is told before anything is read
        # A shell leaves the ~ of --data.root=~/images as it is.
        self.root, self.batch_size, self.augment = str(Path(root).expanduser()), batch_size, list(augment)
        self.eval_batch_size = eval_batch_size or max(batch_size, 512)
        self.split_seed, self.order_seed, self.augment_seed = split_seed, order_seed, augment_seed
        self.download, self.train_size, self.predict_from = download, train_size, predict_from
        self._given = (mean, std)
        self.split_sizes: dict[str, int] = {}
        self.predict_files: list[Path] = []
        self._to_predict: Arrays | None = None
        self.source = self.make_source()
        self._parts = Parts(type(self).__name__, self.source, split_seed, train_size)
        self._on_devices: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def make_source(self) -> Source:
        """Where the images come from; called at the end of construction."""

    # -- what is known of it -----------------------------------------------------------------------------------------

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return self._parts.train.classes

    @property
    def true_mean(self) -> list[float]:
        """Of each channel over the training split, pixels in [0, 1]; exact, the same bits on every machine."""
        return self._parts.statistics.mean

    @property
    def true_std(self) -> list[float]:
        """Standard deviation of each channel over the training split, likewise."""
        return self._parts.statistics.std

    @property
    def mean(self) -> list[float]:
        """What is subtracted from each channel of pixels in [0, 1]: as given, else `true_mean`."""
        return self._given[0] or self.true_mean

    @property
    def std(self) -> list[float]:
        """What each channel is then divided by: as given, else `true_std`."""
        return self._given[1] or self.true_std

    @property
    def digest(self) -> str:
        """sha256 of the pixels and labels that are trained on."""
        return self._parts.digest

    @property
    def split_digest(self) -> str:
        """sha256 of which images are trained on and which validate."""
        return self._parts.split_digest

    def labels(self, split: Literal["train", "val", "test"]) -> Tensor:
        """The labels of a split, int64; those of `test` read the test part."""
        if split == "test":
            return self._parts.test.labels
        indices = self._parts.train_indices if split == "train" else self._parts.val_indices
        return self._parts.train.labels[indices]

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches in an epoch on each of `world_size` ranks."""
        return len(batch_bounds(len(self._parts.train_indices), self.batch_size, world_size)) - 1

    # -- a look at it ------------------------------------------------------------------------------------------------

    def batches(self, split: Literal["train", "val"] = "val") -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (N, channels, height, width) and labels (N,) of a split, in its order, never augmented.

        Raises:
            UserError: for the test split, whose images are read by `test` alone.
        """
        if split not in ("train", "val"):
            raise UserError(f"batches are of train or val, not {split!r}: the test images are read by `test` alone")
        indices = self._parts.train_indices if split == "train" else self._parts.val_indices
        for batch in self._evaluation_loader(self._parts.train, indices):
            yield self.on_after_batch_transfer(batch, 0)

    def augmented(self, number: int = 64, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """The first training images of an epoch as the network gets them, drawn back to `pixels`, and labels (N,)."""
        if not 1 <= number <= len(self._parts.train_indices):
            raise UserError(f"augmented images: 1 to {len(self._parts.train_indices)}, not {number}")
        self._augmentations = parse(self.augment, [round(255 * m) for m in self.mean])
        loader = self._loader(self._parts.train, self._parts.train_indices, number, shuffle=True, train=True)
        loader.set_epoch(epoch)
        images, labels = self.on_after_batch_transfer(next(iter(loader)), 0)
        return self.pixels(images), labels.cpu()

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images (N, channels, height, width) back to pixels in [0, 1], float32, on the CPU."""
        mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images.detach().float() * std + mean).clamp(0, 1).cpu()

    # -- Lightning's hooks -------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        if self.download:
            self.source.fetch()
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Reads what a stage needs: `test` the test part, and the training part for its statistics only."""
        if stage == "test":
            self.split_sizes["test"] = len(self._parts.test)
        elif stage == "predict" and self.predict_from is not None:
            self.predict_files = list_images(Path(self.predict_from))
            if not self.predict_files:
                raise UserError(f"--data.predict_from={self.predict_from}: no images ({' '.join(SUFFIXES)}) there")
            images = decode(self.predict_files, self.image_size, self.in_channels)
            self._to_predict = Arrays(images, torch.full((len(images),), -1), [])
        else:
            self.split_sizes |= {"train": len(self._parts.train_indices), "val": len(self._parts.val_indices)}
        # Cutout covers with the mean pixel, which is not known before the data are.
        self._augmentations = parse(self.augment, [round(255 * m) for m in self.mean])

    def train_dataloader(self) -> BatchLoader | chunks.ChunkedLoader:
        """Batches; chunks of them where the trainer's module takes these (`--model.fast=true`)."""
        trainer: Any = self.trainer
        # A run that overfits some batches wants these same batches in every epoch.
        shuffle = not getattr(trainer, "overfit_batches", 0)
        parts = self._parts
        loader = self._loader(parts.train, parts.train_indices, self.batch_size, shuffle=shuffle, train=True)
        if trainer is None or getattr(trainer.lightning_module, "automatic_optimization", True):
            return loader
        limit = trainer.limit_train_batches
        size = chunks.STEPS if trainer.world_size == 1 else 1  # see FastSteps
        return chunks.ChunkedLoader(loader, size, limit=limit if isinstance(limit, int) else None)

    def val_dataloader(self) -> BatchLoader:
        return self._evaluation_loader(self._parts.train, self._parts.val_indices)

    def test_dataloader(self) -> BatchLoader:
        if "test" not in self.split_sizes:
            raise UserError("the test images are read in the stage 'test' alone; call setup('test') first")
        return self._evaluation_loader(self._parts.test, np.arange(len(self._parts.test)))

    def predict_dataloader(self) -> BatchLoader:
        """The images of `predict_from` with labels -1, else the validation split; never the test images."""
        if self._to_predict is None:
            return self.val_dataloader()
        return self._evaluation_loader(self._to_predict, np.arange(len(self._to_predict)))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """(images uint8, labels, place) -> (images float32, labels): augmented where there is a place; normalised.

        A chunk passes: its batches come here one by one when they are used.
        """
        if isinstance(batch, chunks.Chunk):
            return batch
        images, labels, place = batch
        device = images.device
        if place is not None and self._augmentations:
            seed = global_seed() if self.augment_seed is None else self.augment_seed
            generator = Generator(device).manual_seed(mix(seed, STREAM_AUGMENT, *place))
            images = apply_all(self._augmentations, images, generator)
        if device not in self._constants:
            self._constants[device] = (torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device))
        images = normalise(images, *self._constants[device])
        if self.trainer is not None:
            # Lightning converts inputs for bf16-true and 64-true runs before the transfer, when these were bytes.
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    # -- loaders -----------------------------------------------------------------------------------------------------

    def _evaluation_loader(self, data: Arrays, indices: NDArray[np.int64]) -> BatchLoader:
        at_most = max(1, len(indices) // (self.trainer.world_size if self.trainer else 1))
        return self._loader(data, indices, min(self.eval_batch_size, at_most), shuffle=False, train=False)

    def _loader(
        self, data: Arrays, indices: NDArray[np.int64], batch_size: int, *, shuffle: bool, train: bool
    ) -> BatchLoader:
        images, labels = self._placed(data)
        device = self._device()
        return BatchLoader(
            images,
            labels,
            indices,
            batch_size=batch_size,
            seed=global_seed() if self.order_seed is None else self.order_seed,
            shuffle=shuffle,
            train=train,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            device=device if data.mapped or images.device != device else None,
        )

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _placed(self, data: Arrays) -> tuple[Tensor, Tensor]:
        """Images and labels on the trainer's device, moved once; those of a mapped or too large set stay."""
        device = self._device()
        key = (id(data), device)
        if key not in self._on_devices:
            stays = data.mapped or not _fits(data.images, device)
            home = torch.device("cpu") if stays else device
            self._on_devices[key] = (data.images.to(home), data.labels.to(home))
        return self._on_devices[key]


def _fits(images: Tensor, device: torch.device) -> bool:
    """Half of the free memory is left to the network."""
    return device.type != "cuda" or images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
