"""Ctrl-C ends a fit between two steps, with a checkpoint, instead of somewhere within one."""

import os
import signal
import threading
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from smallnets.callbacks.checkpoint import EpochCheckpoint

_SAID = b"\nsmallnets: stopping after this step (in validation: after it); Ctrl-C again stops at once\n"


class Interrupt(Checkpoint):
    """Writes `last.ckpt` after the step in which Ctrl-C came, and ends the fit as Ctrl-C does.

    Law: a run that is resumed from there ends bitwise where the uninterrupted one ends (CPU).

    Within an epoch's last step or its validation the fit goes on to the epoch's end, whose checkpoint follows anyway. A
    second Ctrl-C ends it at once, from anywhere, with the checkpoints that there are; so does the first on several
    processes, which hear it in different steps, and outside the main thread.
    """

    def __init__(self) -> None:
        self._asked = False
        self._step = 0
        self._before: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._asked = False
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not by print: the signal may have come while something is being printed.
        os.write(2, _SAID)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Where gradients are accumulated, a checkpoint holds none of them: only after an optimizer step.
        stepped = trainer.global_step > self._step
        if not self._asked or not stepped or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        for each in trainer.checkpoint_callbacks:
            if isinstance(each, EpochCheckpoint) and not each._should_skip_saving_checkpoint(trainer):
                each._save_topk_checkpoint(trainer, each._monitor_candidates(trainer))
        raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Of the epoch before: its checkpoint and its figures have been written.
        if self._asked:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # After Ctrl-C Lightning shuts down undisturbed.
        if not isinstance(exception, KeyboardInterrupt):
            self._give_back()

    def _give_back(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
