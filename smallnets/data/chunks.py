"""Chunks of batches: what one `training_step` of the fast mode trains on."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from smallnets.data.loader import BatchLoader

# Of what Lightning takes a step, one part in fifty is left.
STEPS = 50


class Chunk:
    """Batches of an epoch that are fetched one by one as they are used, each once.

    Iterating yields (number of the batch in its epoch, batch).

    Attributes:
        images: images that have been used so far.
        last: whether it is the last chunk of its epoch.
    """

    def __init__(self, batches: Iterator[tuple[int, Any]], last: bool) -> None:
        self._batches = batches
        self.images = 0
        self.last = last

    def peek(self) -> Any:
        """The first batch, which stays to be used."""
        number, batch = next(self._batches)
        self._batches = itertools.chain([(number, batch)], self._batches)
        return batch

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for number, batch in self._batches:
            self.images += len(batch[0])
            yield number, batch


class ChunkedLoader:
    """A `BatchLoader` whose batches come in chunks of `size`, fetched one by one when they are used.

    The laws of order and interruption are those of the loader: a chunk begins at a multiple of `size` in its epoch, and
    between chunks the place is that of the next batch.

    Args:
        loader: the batches.
        size: batches a chunk; the last of an epoch has what is left.
        limit: use only so many batches of each epoch.
    """

    # Lightning asks whoever has a sampler for this too.
    batch_sampler = None

    def __init__(self, loader: BatchLoader, size: int, limit: int | None = None) -> None:
        self.loader, self.size = loader, size
        self.steps = len(loader) if limit is None else min(limit, len(loader))

    def __len__(self) -> int:
        """Chunks in an epoch."""
        return math.ceil(self.steps / self.size)

    @property
    def sampler(self) -> BatchLoader:
        """The loader: Lightning looks for `sampler.set_epoch`."""
        return self.loader

    def __iter__(self) -> Iterator[Chunk]:
        place = self.loader.state_dict()
        batches = iter(self.loader)
        start = place["batch"] if self.loader.resumed else 0
        numbered = zip(range(start, self.steps), batches, strict=False)
        for first in range(start, self.steps, self.size):
            stop = min(first + self.size, self.steps)
            yield Chunk(itertools.islice(numbered, stop - first), last=stop == self.steps)

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration begin at a stored place."""
        self.loader.load_state_dict(state)


def unchunked(loader: Any) -> Any:
    """The loader of single batches behind a training loader."""
    return loader.loader if isinstance(loader, ChunkedLoader) else loader


def first_batches(data: Any, number: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The first training batches of epoch 0 on `device`, as they come to the network, from a loader of their own.

    Args:
        data: a data module of smallnets; the place of a fit that it is in stays where it is.
    """
    loader = unchunked(data.train_dataloader())
    found = [batch for _, batch in zip(range(number), loader, strict=False)]
    return [data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0) for batch in found]
