"""`trainer`: Lightning's Trainer for a run with a folder, a record and checkpoints, from Python."""

import logging
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smallnets.callbacks.attach import run_callbacks, run_loggers
from smallnets.callbacks.bar import with_bar
from smallnets.callbacks.checkpoint import RenamedCheckpointIO
from smallnets.callbacks.health import Health
from smallnets.callbacks.look import TensorBoardLook
from smallnets.callbacks.record import unfinished_row
from smallnets.errors import UserError
from smallnets.results.run import RunFolder, check_name
from smallnets.results.test_ledger import begin_reading, end_reading, stored_figure

# As `smallnets fit` has them: see `verbs/trainer.py`.
_DEFAULTS: dict[str, Any] = {
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    # Nothing is logged by the step; Lightning would warn of epochs shorter than its interval.
    "log_every_n_steps": 1,
}
# What Lightning warns of where nothing is wrong (message, a regular expression).
_NOISE = (
    r".*isinstance\(treespec, LeafSpec\). is deprecated",  # Lightning 2.6 with torch 2.15
    r".*is called with Trainer configured with multiple .ModelCheckpoint. callbacks",  # the first is that of best.ckpt
)


def trainer(
    name: str,
    max_epochs: int,
    *,
    run: str | None = None,
    logs: str | Path = "lightning_logs",
    callbacks: Iterable[Callback] = (),
    health: Health | None = None,
    look: TensorBoardLook | None = None,
    checkpoint_every: int | None = None,
    lines: bool = True,
    quiet: bool = True,
    **options: Any,
) -> L.Trainer:
    """A Trainer whose fit leaves what `smallnets fit` leaves: a run folder that tables and figures are made of.

    `trainer.fit(Classifier(net), data)` writes TensorBoard's events, `metrics.csv`, `checkpoints/best.ckpt` and
    `last.ckpt`, and, last, `row.json` into `trainer.log_dir`, which is `logs/name/run`; but no `config.yaml`, for what
    was built in Python has none. `trainer.test(module, data, ckpt_path="best")` reads the test set, and the row counts
    it. `L.seed_everything(seed, verbose=False)`, before the network is built, is the run's seed.

    One fit each: a new run takes a new Trainer, and a new folder.

    Args:
        name: of the group of runs.
        max_epochs: of the fit.
        run: the run's folder; by default the next of run-1, run-2, ...
        logs: the folder of all runs.
        callbacks: in front of those that every run has.
        health: by default `Health()`.
        look: what TensorBoard shows beside the curves; by default the augmented images alone.
        checkpoint_every: write `last.ckpt` also after every so many optimizer steps.
        lines: print a line an epoch, away from a terminal (in a notebook); on one there is a bar that seldom moves,
            unless `enable_progress_bar=False`.
        quiet: from now on in this process Lightning's notes on devices and itself are not shown; its warnings are, but
            for two that mean nothing here.
        options: any other of Lightning's Trainer: `accelerator`, `devices`, `precision`, `enable_progress_bar`, ...

    Raises:
        UserError: a name that is no folder's, a run that exists, or `logger`, which would be a second one.
    """
    if "logger" in options:
        raise UserError("smallnets.trainer has its own loggers; with others use Lightning's Trainer")
    check_name("name", name)
    check_name("run", run)
    if quiet:
        for library in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(library).setLevel(logging.WARNING)
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
    if getattr(rank_zero_only, "rank", 0) == 0:
        folder = RunFolder.claim(Path(logs), name, run)
    else:
        # The folder of the first process is broadcast before anything is written.
        folder = RunFolder(Path(logs) / name / (run or "run"))
    own = run_callbacks(
        folder, health or Health(), look or TensorBoardLook(graph=False), checkpoint_every=checkpoint_every
    )
    options = {**_DEFAULTS, **options}
    bar = options.pop("enable_progress_bar", None)
    shown, bar = with_bar([*callbacks, *own, TestReading(folder)], bar, sys.stdout.isatty())
    plugins = [*_listed(options.pop("plugins", None)), RenamedCheckpointIO()]
    return L.Trainer(
        max_epochs=max_epochs,
        callbacks=shown,
        enable_progress_bar=bar,
        logger=run_loggers(folder, max_epochs, lines=lines),
        plugins=plugins,
        **options,
    )


class TestReading(Callback):
    """Counts each reading of the test set in the run's row before it begins, and stores what it gave.

    A reading is of a checkpoint (`ckpt_path="best"`), and of the same one if there are several: choosing between
    checkpoints by it would make the test set a second validation set.
    """

    __test__ = False  # not a class of tests

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is None:
            raise UserError('the test figure is that of a checkpoint: trainer.test(module, data, ckpt_path="best")')
        if trainer.is_global_zero:
            path, folder = Path(str(trainer.ckpt_path)), self._folder.path
            stored_figure(folder, path)
            data = getattr(trainer, "datamodule", None)
            begin_reading(folder, path, unfinished_row(folder, trainer, pl_module, data))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
            sizes: dict[str, int] = getattr(getattr(trainer, "datamodule", None), "split_sizes", {})
            end_reading(self._folder.path, figures, sizes.get("test", 0))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
