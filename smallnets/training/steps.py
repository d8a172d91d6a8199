"""What happens at every optimizer step, in both modes of the `Classifier`."""

import math
from abc import ABC, abstractmethod
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from smallnets.data.chunks import ChunkedLoader
from smallnets.optim import Length


class StepCallback(Callback, ABC):
    """A callback that acts right after optimizer steps.

    Lightning's `on_train_batch_end` comes once for many steps in the fast mode (`--model.fast=true`), and before it in
    the default mode only if no gradients are accumulated. The `Classifier` calls `after_optimizer_step` after every
    step in both modes, and `on_before_optimizer_step`, Lightning's own hook, before it.
    """

    @abstractmethod
    def after_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """`step` optimizer steps have been taken in this fit and its earlier parts; masks have been applied."""


def steps_per_epoch(trainer: Any) -> int | float:
    """Optimizer steps in an epoch on each rank; infinite where the loader has no length. After the loaders' setup.

    `trainer.estimated_stepping_batches` would know too, but reading it makes Lightning lose the loader's place on
    resuming (2.6).
    """
    loader = trainer.train_dataloader
    if isinstance(loader, ChunkedLoader):
        return loader.steps
    batches = trainer.num_training_batches
    return math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else batches


def run_length(trainer: Any) -> Length | None:
    """How long the whole run is; None for a run without an end and for `fast_dev_run`."""
    found = steps_per_epoch(trainer)
    if trainer.fast_dev_run or not math.isfinite(found) or found < 1:
        return None
    per_epoch = int(found)
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    if trainer.max_steps >= 0:
        by_steps = math.ceil(trainer.max_steps / per_epoch)
        epochs = by_steps if epochs is None else min(epochs, by_steps)
    if epochs is None:
        return None
    steps = epochs * per_epoch
    return Length(epochs, min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps)


def schedule_length(trainer: Any) -> Length | None:
    """What the rate's schedule has to span: the run, or one round of it where a callback has `schedule_epochs`."""
    run = run_length(trainer)
    epochs = [getattr(callback, "schedule_epochs", None) for callback in trainer.callbacks]
    given = next((each for each in epochs if each), None)
    if run is None or given is None:
        return run
    return Length(given, given * int(steps_per_epoch(trainer)))
