"""What a command's run has, from its options."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from smallnets.callbacks.attach import run_callbacks, run_loggers
from smallnets.results.run import RunFolder


def fit_callbacks(options: Namespace, folder: RunFolder | None, config: dict[str, Any]) -> list[Callback]:
    """Health always; with a folder the record and, unless switched off, TensorBoard's images and the checkpoints."""
    if folder is None:
        return [options.health]
    options.look.config = config
    look = options.look if options.trainer.logger is not False else None
    checkpoints = options.trainer.enable_checkpointing is not False
    return run_callbacks(folder, options.health, look, config, checkpoints, options.checkpoint_every)


def fit_loggers(trainer: Namespace, folder: RunFolder, resumed_step: int | None) -> list[Logger]:
    """Those of every run; see `run_loggers`."""
    return run_loggers(folder, trainer.max_epochs if trainer.max_steps == -1 else None, resumed_step)
