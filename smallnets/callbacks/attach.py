"""What every run has, started by a command or by `smallnets.trainer`: what watches and records it, loggers."""

import sys
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from smallnets.callbacks.checkpoint import run_checkpoints
from smallnets.callbacks.health import Health
from smallnets.callbacks.look import Rates, TensorBoardLook
from smallnets.callbacks.look_test import TensorBoardTest
from smallnets.callbacks.record import RunRecord
from smallnets.results.run import RunFolder
from smallnets.training.csv_log import MetricsCSV
from smallnets.training.epoch_lines import EpochLines


def run_callbacks(
    folder: RunFolder,
    health: Health,
    look: TensorBoardLook | None,
    config: dict[str, Any] | None = None,
    checkpoints: bool = True,
    checkpoint_every: int | None = None,
) -> list[Callback]:
    """Health and the record; TensorBoard's pictures and the checkpoints unless they are switched off."""
    callbacks: list[Callback] = [health]
    if look is not None:
        callbacks += [Rates(logging_interval="epoch"), look, TensorBoardTest()]
    callbacks.append(RunRecord(folder.path, config))
    if checkpoints:
        callbacks += run_checkpoints(folder.checkpoints, checkpoint_every)
    return callbacks


def run_loggers(
    folder: RunFolder, epochs: int | None, resumed_step: int | None = None, lines: bool = True
) -> list[Logger]:
    """TensorBoard, `metrics.csv` and, with `lines` and away from a terminal, a line an epoch.

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
    if lines and not sys.stdout.isatty():
        loggers.append(EpochLines(epochs))
    return loggers
