"""What every run has: callbacks that watch and record it, and loggers that write into its folder."""

import sys
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from smallnets.callbacks.checkpoint import run_checkpoints
from smallnets.callbacks.record import RunRecord
from smallnets.results.run import RunFolder
from smallnets.training.csv_log import MetricsCSV
from smallnets.training.epoch_lines import EpochLines


def fit_callbacks(options: Namespace, folder: RunFolder | None, config: dict[str, Any]) -> list[Callback]:
    """Health always; with a folder the record and, unless switched off, TensorBoard's images and the checkpoints."""
    callbacks: list[Callback] = [options.health]
    if folder is None:
        return callbacks
    if options.trainer.logger is not False:
        options.look.config = config
        callbacks += [LearningRateMonitor(logging_interval="epoch"), options.look]
    callbacks.append(RunRecord(folder.path, config))
    if options.trainer.enable_checkpointing is not False:
        callbacks += run_checkpoints(folder.checkpoints, options.checkpoint_every)
    return callbacks


def fit_loggers(trainer: Namespace, folder: RunFolder, resumed_step: int | None) -> list[Logger]:
    """TensorBoard, `metrics.csv` and, away from a terminal, a line an epoch.

    `resumed_step` is the optimizer step that a resumed run stands at: what was logged after it is logged anew.
    """
    path = folder.path
    loggers: list[Logger] = [
        TensorBoardLogger(
            path.parent.parent,
            name=path.parent.name,
            version=path.name,
            default_hp_metric=False,
            purge_step=resumed_step,
        ),
        MetricsCSV(path, resumed_step),
    ]
    if not sys.stdout.isatty():
        loggers.append(EpochLines(trainer.max_epochs if trainer.max_steps == -1 else None))
    return loggers
