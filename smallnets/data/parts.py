"""`Parts`: the training, validation and test images of one data set, read when they are first needed."""

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from smallnets.data.arrays import Arrays, Statistics, channel_statistics, digest_of
from smallnets.data.seeds import mix
from smallnets.data.source import Source
from smallnets.data.split import stratified_split
from smallnets.errors import UserError

SHARES = (9, 1)  # training : validation, 45,000 : 5,000 of CIFAR's 50,000
_SUBSET = 1  # with the split's seed, chooses the images of a `train_size`


class Parts:
    """The images of a data set, and its split: stratified, 9 : 1, a pure function of `split_seed`.

    Each part is read when an attribute that needs it is first used; only `test` reads the test part.

    Args:
        name: of the data set, for messages.
        source: reads the parts; its training part holds the validation images too.
        split_seed: chooses the validation images.
        train_size: how many images of the training split to train on; None for all.
    """

    def __init__(self, name: str, source: Source, split_seed: int = 0, train_size: int | None = None) -> None:
        self._name, self._source, self._split_seed, self._train_size = name, source, split_seed, train_size

    @cached_property
    def train(self) -> Arrays:
        """The training part: training and validation images."""
        return self._source.read("train")

    @cached_property
    def test(self) -> Arrays:
        """The test part."""
        return self._source.read("test")

    @cached_property
    def _split(self) -> tuple[NDArray[np.int64], ...]:
        return stratified_split(self.train.labels.numpy(), SHARES, self._split_seed)

    @property
    def val_indices(self) -> NDArray[np.int64]:
        """The validation images, as sorted indices into `train`."""
        return self._split[1]

    @cached_property
    def train_indices(self) -> NDArray[np.int64]:
        """The images to train on, as sorted indices into `train`: the training split, or `train_size` images of it.

        Raises:
            UserError: `train_size` leaves a class without images, or exceeds the split.
        """
        train = self._split[0]
        if self._train_size in (None, len(train)):
            return train
        assert self._train_size is not None
        labels = self.train.labels.numpy()[train]
        classes = len(np.unique(labels))
        # A subset is one part of a split, whose other part has an image of each class too.
        if not classes <= self._train_size <= len(train) - classes:
            raise UserError(
                f"--data.train_size={self._train_size}: {self._name} has {len(train)} training images of {classes}"
                f" classes; allowed: {classes} .. {len(train) - classes}, or {len(train)}"
            )
        shares = (self._train_size, len(train) - self._train_size)
        return train[stratified_split(labels, shares, mix(self._split_seed, _SUBSET))[0]]

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and deviation of each channel over the whole training split, whatever `train_size` is."""

        def compute() -> list[list[float]]:
            return [*channel_statistics(self.train.images, self._split[0], self._name)]

        return Statistics(*self._source.remember(f"statistics split_seed={self._split_seed}", compute))

    @cached_property
    def digest(self) -> str:
        """sha256 of the pixels and labels that are trained on."""
        key = f"digest split_seed={self._split_seed} train_size={self._train_size}"
        return self._source.remember(key, lambda: digest_of(self.train, self.train_indices))

    @cached_property
    def split_digest(self) -> str:
        """sha256 of which images are trained on and which validate: their indices as int64, little end first."""
        digest = hashlib.sha256()
        for indices in (self.train_indices, self.val_indices):
            digest.update(len(indices).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(indices, dtype="<i8").tobytes())
        return digest.hexdigest()
