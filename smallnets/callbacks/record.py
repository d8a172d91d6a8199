"""`RunRecord`: writes a run's `config.yaml` when it starts and its `row.json` when it ends."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from smallnets.callbacks.checkpoint import BestCheckpoint
from smallnets.callbacks.describe import describe, device_clock
from smallnets.callbacks.health import Health
from smallnets.data.chunks import Chunk
from smallnets.errors import UserError
from smallnets.results.provenance import config_digest, git_state, versions
from smallnets.results.row import read_row, update_row, write_row, write_text
from smallnets.results.test_ledger import file_digest


class RunRecord(Callback):
    """Keeps a run's account: seconds, images a second, counts, figures, seeds, status.

    `row.json` is written last, by rename, so a folder with a row is a run that has ended; `status` says how:
    `finished`, `failed` (with `error`), `interrupted`, or `pruned`, of a search's trial that its pruner has stopped:
    what it reached is no figure of a full training. Seconds and images are carried through checkpoints: those of
    a resumed run include the time before the interruption, up to its last checkpoint. `seconds` are those of the wall;
    `device_seconds` those of all ranks' devices: on a CPU the time of this process on its cores, on a GPU the wall's,
    and that times the number of ranks.

    Args:
        folder: the run's folder; None for the trainer's log folder.
        config: the resolved configuration as plain data, written to `config.yaml`; its digest goes into the row.
    """

    def __init__(self, folder: str | Path | None = None, config: dict[str, Any] | None = None) -> None:
        self._folder = Path(folder) if folder else None
        self._config = config or {}
        self._seconds_before = self._device_before = 0.0
        self._train_seconds = 0.0
        self._device = torch.device("cpu")
        self._images = 0
        self._metrics: dict[str, float] = {}
        self._pruned = False
        self._git: dict[str, Any] = {"revision": None, "dirty": None}
        self._start = self._epoch_start = time.perf_counter()
        self._device_start = device_clock(self._device)

    def prune(self) -> None:
        """Says that the run is being stopped as one that is not worth its further epochs."""
        self._pruned = True

    @property
    def pruned(self) -> bool:
        """Whether `prune` was called in this fit."""
        return self._pruned

    # -- the run's clock ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self._seconds_before + time.perf_counter() - self._start,
            "device_seconds": self._device_seconds(),
            # With what has passed of an epoch that is saved in its middle.
            "train_seconds": self._train_seconds + time.perf_counter() - self._epoch_start,
            "images": self._images,
            "metrics": self._metrics,
        }

    def _device_seconds(self) -> float:
        return self._device_before + device_clock(self._device) - self._device_start

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]
        # A checkpoint of an earlier version does not say.
        self._device_before = state_dict.get("device_seconds", 0.0)
        self._train_seconds = state_dict["train_seconds"]
        self._images = state_dict["images"]
        self._metrics = state_dict["metrics"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # A second fit is a run of its own; a resumed one gets these from its checkpoint, after this.
        self._seconds_before = self._device_before = self._train_seconds = 0.0
        self._images, self._metrics, self._pruned = 0, {}, False
        self._start = self._epoch_start = time.perf_counter()
        self._device = trainer.strategy.root_device
        self._device_start = device_clock(self._device)
        folder = self._folder or (Path(trainer.log_dir) if trainer.log_dir else None)
        # Rank 0 chose the folder; the others would have taken the next number.
        self._folder = trainer.strategy.broadcast(folder)
        if trainer.is_global_zero and self._folder and not _dev_run(trainer):
            # Asked now: the files may be others when the run ends, and it has loaded those of its start.
            self._git = git_state()
        if trainer.is_global_zero and self._folder and self._config and not _dev_run(trainer):
            self._folder.mkdir(parents=True, exist_ok=True)
            if read_row(self._folder) is not None:
                # A run that had ended is trained on: until it ends again, nobody may take its row for the end.
                update_row(self._folder, status="running", error=None)
            write_text(self._folder / "config.yaml", yaml.safe_dump(self._config, sort_keys=False))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += (batch.images if isinstance(batch, Chunk) else len(batch[0])) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._train_seconds += time.perf_counter() - self._epoch_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Training may go on in this epoch (val_check_interval); then its clock runs again from here.
        self._epoch_start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._train_seconds += time.perf_counter() - self._epoch_start
        self._epoch_start = time.perf_counter()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # A run killed between its last checkpoint and its row must still be able to write the row.
        self._metrics = {k: round(float(v), 6) for k, v in trainer.callback_metrics.items()}
        # A resumed run takes the curves up to here from the files, so these may not be older than the checkpoint.
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()

    # -- the row -----------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, "pruned" if self._pruned else "finished")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != "fit":
            return
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            self._write(trainer, pl_module, "interrupted")
        else:
            # Of data that cannot be read, or on a full disk, there can be no row; what is told is the failure itself.
            with suppress(UserError, OSError):
                self._write(trainer, pl_module, "failed", f"{type(exception).__name__}: {exception}")

    def _write(self, trainer: L.Trainer, module: L.LightningModule, status: str, error: str | None = None) -> None:
        if not trainer.is_global_zero or self._folder is None or _dev_run(trainer):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        row = {
            "name": self._folder.parent.name,
            "run": self._folder.name,
            "status": status,
            "error": error,
            **describe(trainer, module, getattr(trainer, "datamodule", None)),
            **self._figures(trainer),
            "config": self._config,
            "config_digest": config_digest(self._config),
            "git": self._git,
            "versions": versions(),
        }
        # A run that was tested and is then trained on keeps the count of its test readings.
        tested = read_row(self._folder) or {}
        row.update({k: tested.get(k, d) for k, d in _UNTESTED.items()})
        best = self._folder / "checkpoints" / "best.ckpt"
        if row["test_checkpoint"] and best.is_file() and row["test_checkpoint"] != file_digest(best):
            # The figure is of a network that is no longer the run's; that the set was read stays on record.
            row.update(test_accuracy=None, test_loss=None)
        write_row(self._folder, row)

    def _figures(self, trainer: L.Trainer) -> dict[str, Any]:
        now = {k: round(float(v), 6) for k, v in trainer.callback_metrics.items()}
        metrics = {**self._metrics, **now}
        best = [
            c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor == "val/accuracy"
        ]
        best_score = best[0].best_model_score if best else None
        last = metrics.get("val/accuracy")
        health = [c for c in trainer.callbacks if isinstance(c, Health)]  # type: ignore[attr-defined]
        return {
            # The figure of the checkpoint that validation chose, which is the one that `test` reads.
            "val_accuracy": round(float(best_score), 6) if best_score is not None else last,
            "selection": _selection(best),
            "val_accuracy_last": last,
            "val_loss_last": metrics.get("val/loss"),
            "train_accuracy_last": metrics.get("train/accuracy"),
            "train_loss_last": metrics.get("train/loss"),
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "seconds": round(self._seconds_before + time.perf_counter() - self._start, 3),
            "device_seconds": round(self._device_seconds() * trainer.world_size, 3),
            "images_per_second": round(self._images / self._train_seconds, 1) if self._train_seconds else None,
            "health": health[0].findings if health else [],
            "pruning": _records(trainer.callbacks),  # type: ignore[attr-defined]
        }


def _selection(best: list[ModelCheckpoint]) -> str:
    """The rule by which the network was chosen whose figures these are."""
    if not best:
        return "the last epoch"
    rule = {"max": "the highest", "min": "the lowest"}[best[0].mode]
    return f"{rule} val_accuracy{', the latest of equals' if isinstance(best[0], BestCheckpoint) else ''}"


def _records(callbacks: list[Callback]) -> list[dict[str, Any]]:
    """What callbacks that changed the network say of it (their `record`), in their order."""
    found = [(type(each).__name__, getattr(each, "record", None)) for each in callbacks]
    return [{"callback": name, **record} for name, record in found if record and isinstance(record, dict)]


def _dev_run(trainer: L.Trainer) -> bool:
    """`fast_dev_run` tries the code out and leaves nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


_UNTESTED: dict[str, Any] = {
    "test_accuracy": None, "test_loss": None, "test_reads": 0, "test_checkpoint": None, "test_size": None,
}  # fmt: skip


_UNTRAINED: dict[str, Any] = {
    "val_accuracy": None,
    "selection": None,
    "seconds": None,
    "device_seconds": None,
    "images_per_second": None,
    "epochs": None,
    "steps": None,
    "pruning": None,
}


def unfinished_row(folder: Path, trainer: L.Trainer, module: L.LightningModule, data: Any) -> dict[str, Any]:
    """The row of a checkpoint whose run left none: its training was cut off, or it was brought here alone."""
    about = {"name": folder.parent.name, "run": folder.name, "status": "unfinished", "error": None}
    where = {"config": None, "config_digest": None, "git": git_state(), "versions": versions()}
    return {**about, **_UNTRAINED, **_UNTESTED, **describe(trainer, module, data), **where}
