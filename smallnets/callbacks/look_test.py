"""What TensorBoard shows of a test: the confusion matrix and the most confident mistakes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchmetrics.utilities.distributed import gather_all_tensors

from smallnets.callbacks.board import board, drawn, has_board
from smallnets.errors import UserError
from smallnets.results.pictures import captioned, confusion_picture
from smallnets.results.predictions import Predictions, named


class TensorBoardTest(Callback):
    """Writes `test/confusion` and `test/mistakes`, the most confident ones, with the names of their classes.

    They come from the logits that `test_step` returns: the test images are read by the test's own pass alone. Nothing
    is written, and nothing kept, where the trainer has no TensorBoard and no folder was given. Logits beyond the
    classes are one, "none".

    Args:
        mistakes: how many are shown.
        folder: of TensorBoard's events, for a trainer without loggers; then the figures of the test are written too.
        step: the optimizer step of the network that is tested; by default the trainer's.

    Raises:
        UserError: `mistakes` below 1.
    """

    def __init__(self, mistakes: int = 25, folder: str | Path | None = None, step: int | None = None) -> None:
        if mistakes < 1:
            raise UserError(f"TensorBoardTest mistakes must be 1 or more, got {mistakes}")
        self._mistakes, self._step = mistakes, step
        self._folder = None if folder is None else Path(folder)
        self._seen: Seen | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        wanted = self._folder is not None or has_board(trainer)
        self._seen = Seen(self._mistakes, len(_classes(trainer, pl_module)) or None) if wanted else None

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # A module of another kind may return something else.
        if self._seen is not None and isinstance(outputs, Tensor) and outputs.ndim == 2:
            images, labels = batch
            self._seen.add(images, outputs, labels)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seen, self._seen = self._seen, None
        if seen is None or seen.confusion is None:
            return
        seen = seen.gathered(trainer)
        assert seen.confusion is not None and seen.images is not None and seen.worst is not None
        with self._writer(trainer) as writer:
            if writer is None:
                return
            step = trainer.global_step if self._step is None else self._step
            data: Any = getattr(trainer, "datamodule", None)
            classes = _classes(trainer, pl_module) or [str(each) for each in range(len(seen.confusion))]
            images = seen.images if data is None else drawn(seen.images, data)
            writer.add_image(
                "test/confusion", confusion_picture(seen.confusion, named(classes, len(seen.confusion))), step
            )
            writer.add_image("test/mistakes", captioned(images, captions(seen.worst, classes)), step)

    @contextmanager
    def _writer(self, trainer: L.Trainer) -> Iterator[Any]:
        if self._folder is None or not trainer.is_global_zero:
            yield board(trainer)
            return
        writer = SummaryWriter(str(self._folder))
        try:
            for name, value in trainer.callback_metrics.items():
                writer.add_scalar(name, float(value), self._step)
            yield writer
        finally:
            writer.close()


def captions(worst: Predictions, classes: Sequence[str]) -> list[tuple[str, str, str]]:
    """Three lines an image: its class, what it was taken for, and with which probability.

    The probability has a line of its own: `captioned` cuts lines that are wider than their image. A logit beyond the
    classes is called "none".
    """
    names = named(classes, worst.logits.shape[1])
    rows = zip(worst.labels.tolist(), worst.predicted.tolist(), worst.confidence.tolist(), strict=True)
    return [(f"is {names[true]}", f"said {names[said]}", f"probability {sure:.3f}") for true, said, sure in rows]


class Seen:
    """Confusion counts of all images that were added, and the `most` most confident mistakes with their images.

    Law: `worst` are those that `Predictions.mistakes(most)` would choose among all images, in its order; only
    2 * `most` and a batch of images are ever held.

    Args:
        most: how many mistakes are kept.
        classes: C, by default the number of logits.

    Attributes:
        confusion: int64 (C, C), rows true, or (C + 1, C + 1) with more logits than classes (`Predictions.confusion`);
            None before the first batch.
        images, worst: (n, channels, height, width) and the predictions of these; None before the first batch.
    """

    def __init__(self, most: int, classes: int | None = None) -> None:
        self.most, self.classes = most, classes
        self.confusion: Tensor | None = None
        self.images: Tensor | None = None
        self.worst: Predictions | None = None

    def add(self, images: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: images, logits (N, C) and labels (N,)."""
        batch = Predictions(logits.detach().float().cpu(), labels.cpu())
        self.confusion = batch.confusion(self.classes) + (0 if self.confusion is None else self.confusion)
        self._keep(images, batch)

    def _keep(self, images: Tensor, batch: Predictions) -> None:
        chosen = batch.mistakes(self.most)
        images, batch = images.detach()[chosen.to(images.device)].cpu(), _at(batch, chosen)
        if self.images is not None and self.worst is not None:
            images = torch.cat([self.images, images])
            batch = Predictions(
                torch.cat([self.worst.logits, batch.logits]), torch.cat([self.worst.labels, batch.labels])
            )
            chosen = batch.mistakes(self.most)
            images, batch = images[chosen], _at(batch, chosen)
        self.images, self.worst = images, batch

    def gathered(self, trainer: Any) -> "Seen":
        """What all ranks have seen together, the same on each; every rank must call it, each having seen a batch."""
        if trainer.world_size == 1:
            return self
        assert self.confusion is not None and self.images is not None and self.worst is not None
        device, all_ranks = trainer.strategy.root_device, Seen(self.most, self.classes)
        all_ranks.confusion = trainer.strategy.reduce(self.confusion.to(device), reduce_op="sum").cpu()
        shares = [gather_all_tensors(value.to(device)) for value in (self.images, self.worst.logits, self.worst.labels)]
        for images, logits, labels in zip(*shares, strict=True):
            all_ranks._keep(images, Predictions(logits.cpu(), labels.cpu()))
        return all_ranks


def _classes(trainer: Any, module: Any) -> list[str]:
    """Names of the data's classes, or their numbers; empty where nobody knows how many there are."""
    data: Any = getattr(trainer, "datamodule", None)
    return [str(each) for each in getattr(data, "classes", None) or range(getattr(module, "num_classes", None) or 0)]


def _at(predictions: Predictions, places: Tensor) -> Predictions:
    return Predictions(predictions.logits[places], predictions.labels[places])
