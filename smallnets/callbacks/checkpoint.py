"""Which checkpoints a run keeps, and how they reach the disk."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from smallnets.results.save import write_checkpoint


class RenamedCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk and renames it.

    Lightning's own way writes to the temporary folder, which may be another disk, and then moves.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, path)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the highest validation accuracy; among equal ones the latest.

    A small validation set ties often, and the later of two networks has learned with a smaller rate. Only an epoch that
    was validated is judged: Lightning keeps the last known figure for the epochs between.
    """

    _validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = trainer.state.fn == "fit"
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._validated:
            self._validated = False
            super().on_train_epoch_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        equal = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        return equal or super().check_monitor_top_k(trainer, current)


class EpochCheckpoint(ModelCheckpoint):
    """`last.ckpt` at the end of every epoch, and at the last step of a run that `max_steps` ends within an epoch.

    Lightning treats such a run as if its epoch had ended there: resumed with more steps, it would leave out the rest
    of the epoch's images. The checkpoint of the step itself, taken before, goes on with the next batch.
    """

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if _cut_short(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not _cut_short(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class StepCheckpoint(ModelCheckpoint):
    """`last.ckpt` after every `steps` optimizer steps; in the fast mode at the end of the chunk in which they fall.

    Not at an epoch's last batch, where `EpochCheckpoint` follows: resumed from there, Lightning (2.6) leaves out the
    epoch's validation and what comes with its end.
    """

    def __init__(self, steps: int, options: dict[str, Any]) -> None:
        super().__init__(every_n_train_steps=steps, **options)
        self._steps = steps
        self._saved_at = 0

    def state_dict(self) -> dict[str, Any]:
        return {}  # nothing to keep: with any, Lightning would warn a resume without `--checkpoint_every`

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        # Lightning's own asks for a remainder of 0, which the end of a chunk may never have.
        due = trainer.global_step // self._steps > self._saved_at // self._steps
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if due and not last and not self._should_skip_saving_checkpoint(trainer):
            self._saved_at = trainer.global_step
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def _cut_short(trainer: L.Trainer) -> bool:
    """Whether the run is at its last step with images of the epoch left."""
    within = not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return within and 0 < trainer.max_steps <= trainer.global_step


def forget_best(trainer: L.Trainer) -> None:
    """Makes what watches a figure begin anew, checkpoints and EarlyStopping: the networks before had another density.

    The file of the best so far stays until the next one is written in its place.
    """
    for each in trainer.checkpoint_callbacks:
        if isinstance(each, ModelCheckpoint) and each.monitor is not None:
            each.best_k_models, each.kth_best_model_path = {}, ""
            each.best_model_path, each.best_model_score, each.current_score = "", None, None
    for stopping in trainer.early_stopping_callbacks:
        if isinstance(stopping, EarlyStopping):
            worst = torch.tensor(torch.inf if stopping.monitor_op == torch.lt else -torch.inf)
            stopping.wait_count, stopping.best_score = 0, worst


def run_checkpoints(folder: Path, every_n_train_steps: int | None = None) -> list[ModelCheckpoint]:
    """The checkpoints of a run: `best.ckpt` (highest validation accuracy) and `last.ckpt` (every epoch's end).

    Both are written at the end of the training epoch, after validation and the schedule's step, so that either can be
    resumed exactly. With `every_n_train_steps`, `last.ckpt` is also written after every so many optimizer steps.
    """
    common: dict[str, Any] = {
        "dirpath": folder,
        "save_top_k": 1,
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
        "save_weights_only": False,
    }
    last: dict[str, Any] = {"filename": "last", **common}
    callbacks = [
        BestCheckpoint(
            filename="best", monitor="val/accuracy", mode="max", save_on_train_epoch_end=True, verbose=False, **common
        ),
        EpochCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **last),
    ]
    if every_n_train_steps:
        callbacks.append(StepCheckpoint(every_n_train_steps, last))
    return callbacks
