"""`BatchLoader`: batches by index, in an order that is a function of (seed, epoch), with a place that can be kept."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smallnets.data.ahead import moved, pinned, read_ahead
from smallnets.data.seeds import STREAM_ORDER, mix, permutation
from smallnets.errors import UserError


class Place(NamedTuple):
    """Where in training a batch stands: its epoch, its number in the epoch, its rank of how many; all from 0."""

    epoch: int
    batch: int
    rank: int
    world_size: int


def batch_bounds(count: int, batch_size: int, world_size: int) -> list[int]:
    """Where the global batches of an epoch begin, and the end: `count` images in batches of batch_size * world_size.

    A tail of fewer than 2 * world_size images joins the batch before it, so that each rank has two images or more in
    each batch and no BatchNorm sees a single one (at a batch size of 1 nothing can be promised).

    Raises:
        UserError: a size below 1, or a global batch larger than the set.
    """
    if batch_size < 1 or world_size < 1:
        raise UserError(f"the batch size and the number of ranks are 1 or more, not {batch_size} and {world_size}")
    whole = batch_size * world_size
    if whole > count:
        ranks = f" x {world_size} ranks = {whole}" if world_size > 1 else ""
        raise UserError(f"--data.batch_size={batch_size}{ranks} is more than the {count} images of the set")
    bounds = [*range(0, count, whole), count]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] < 2 * world_size:
        del bounds[-2]
    return bounds


class BatchLoader:
    """Yields (images uint8 (B, C, H, W), labels int64 (B,), place) from tensors, without workers.

    The law of order: the order of an epoch's images is a function of (seed, epoch) alone. All ranks share one
    permutation; it is cut into global batches of batch_size * world_size, and each rank takes its contiguous share of
    each; the last, shorter one is divided as evenly as it can be (`batch_bounds` says what happens to a very short
    one). So over all ranks each image is seen exactly once an epoch, and every rank has the same number of batches.

    The law of interruption: `state_dict()` holds the epoch and the next batch, at an epoch's end (epoch + 1, 0).
    After `load_state_dict` the next iteration begins there, unless `set_epoch` names another epoch first. Any
    other iteration begins at the first batch.

    Lightning needs no more: it calls `sampler.set_epoch` before each epoch, saves and loads the state with its
    checkpoints, and fetches nothing in advance because the length is known.

    Args:
        images: uint8 (N, C, H, W), in memory, on a device, or mapped from a file.
        labels: int64 (N,), on the same device.
        indices: which of the images; None for all.
        batch_size: images a batch and *rank*, as under PyTorch's DDP.
        seed: of the order.
        shuffle: False keeps the order of `indices` (for evaluation), shared among the ranks in the same way.
        train: True yields a `Place` with each batch, which is what augmentation is drawn from; False yields None.
        rank, world_size: of this process.
        device: where batches go that a thread reads in advance, for images that stay in a file or in host memory; None
            where the images are on the device already, and a batch is an index into them.

    Raises:
        UserError: batch_size * world_size exceeds the number of images.
    """

    # Lightning asks whoever has a sampler for this too.
    batch_sampler = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: NDArray[np.int64] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        train: bool = True,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.indices = np.arange(len(labels)) if indices is None else np.asarray(indices, dtype=np.int64)
        self.batch_size, self.seed, self.shuffle, self.train = batch_size, seed, shuffle, train
        self.rank, self.world_size, self.device = rank, world_size, device
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} ranks")
        self._bounds = batch_bounds(len(self.indices), batch_size, world_size)
        self.epoch_shift = 0  # a fit that sees epochs again counts its own ones on
        self._epoch = 0
        self._next = 0
        self._resumed = False  # a state was loaded and no iteration has begun since

    def __len__(self) -> int:
        """Batches in an epoch; the same on every rank and in every epoch."""
        return len(self._bounds) - 1

    @property
    def sampler(self) -> "BatchLoader":
        """This loader itself: Lightning looks for `sampler.set_epoch`."""
        return self

    @property
    def resumed(self) -> bool:
        """Whether the next iteration begins at a place that was loaded."""
        return self._resumed

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration that of `epoch + epoch_shift`; a loaded place within this very epoch stays."""
        epoch += self.epoch_shift
        if epoch != self._epoch:
            self._epoch, self._next, self._resumed = epoch, 0, False

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The images of an epoch over all ranks, as indices into `images`, in their order."""
        if not self.shuffle:
            return self.indices
        return self.indices[permutation(mix(self.seed, STREAM_ORDER, epoch), len(self.indices))]

    def share(self, batch: int) -> slice:
        """This rank's part of a global batch, as positions in `order`."""
        start, stop = self._bounds[batch : batch + 2]
        size = stop - start
        return slice(start + size * self.rank // self.world_size, start + size * (self.rank + 1) // self.world_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Place | None]]:
        # A generator runs nothing before its first batch is asked for. Lightning asks for iterators that it never uses,
        # and makes the first one of a fit before it calls set_epoch.
        epoch, start = self._epoch, self._next if self._resumed else 0
        self._resumed = False
        order = torch.from_numpy(self.order(epoch)).to(self.images.device)  # once an epoch, not once a batch

        def read(batch: int) -> tuple[Tensor, Tensor]:
            chosen = order[self.share(batch)]
            # Whole images are copied; indexing with brackets would gather pixel by pixel, twenty times slower on a CPU.
            images, labels = self.images.index_select(0, chosen), self.labels.index_select(0, chosen)
            return (images, labels) if device is None else (pinned(images, device), pinned(labels, device))

        numbers, device = range(start, len(self)), self.device
        batches = map(read, numbers) if device is None else read_ahead(read, numbers)
        for batch, (images, labels) in zip(numbers, batches, strict=True):
            # The state is that of a loader whose batch has been used: a checkpoint is written after its step.
            self._epoch, self._next = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
            place = Place(epoch, batch, self.rank, self.world_size) if self.train else None
            if device is not None:
                images, labels = moved(images, device), moved(labels, device)
            yield images, labels, place

    def _signature(self) -> dict[str, int]:
        """What the meaning of a place within an epoch depends on."""
        return {
            "images": len(self.indices),
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """The place of the next batch, and what it means; plain integers, equal on all ranks."""
        return {"epoch": self._epoch, "batch": self._next, **self._signature()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration begin at a stored place.

        Raises:
            UserError: a place within an epoch that was counted in other batches, or in another order.
        """
        differing = [f"{k}={state[k]} (now {v})" for k, v in self._signature().items() if state.get(k, v) != v]
        if state["batch"] and differing:
            raise UserError(
                f"the checkpoint stands at batch {state['batch']} of epoch {state['epoch']}, counted with"
                f" {', '.join(differing)}; resume with the same values, or from the end of an epoch"
            )
        self._epoch, self._next, self._resumed = state["epoch"], state["batch"], True
