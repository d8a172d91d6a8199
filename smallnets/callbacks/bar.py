"""A progress bar that costs a step nothing."""

import time
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar


class SeldomBar(RichProgressBar):
    """Lightning's bar, moved at most every `seconds` and at the last batch of each pass.

    Lightning's own reads every logged figure after every batch, for which a GPU has to be waited for, and draws up to a
    hundred times a second.

    Args:
        seconds: between two movements.
        options: Lightning's, `leave` and `theme` among them.
    """

    def __init__(self, seconds: float = 0.5, **options: Any) -> None:
        super().__init__(refresh_rate=max(1, round(1 / seconds)), **options)
        self._seconds, self._moved = seconds, float("-inf")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._due(batch_idx, self.total_train_batches):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self._due(batch_idx, self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self._due(batch_idx, self.total_test_batches_current_dataloader):
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        if self._due(batch_idx, self.total_predict_batches_current_dataloader):
            super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def _due(self, batch_idx: int, total: float) -> bool:
        now = time.monotonic()
        due = batch_idx + 1 == total or now - self._moved >= self._seconds
        if due:
            self._moved = now
        return due


def with_bar(callbacks: Sequence[Callback], wanted: bool | None, terminal: bool) -> tuple[list[Callback], bool]:
    """A trainer's callbacks and its `enable_progress_bar`.

    A bar among `callbacks` is kept, on a terminal and elsewhere, unless `wanted` is False, which Lightning refuses.
    Without one a `SeldomBar` is added where it is wanted; None wants it on a terminal.
    """
    own = any(isinstance(each, ProgressBar) for each in callbacks)
    shown = (terminal or own) if wanted is None else wanted
    return [*callbacks, *([SeldomBar()] if shown and not own else [])], shown
