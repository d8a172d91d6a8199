"""What the callbacks of a lottery share: the start of a round inside a fit, and its end, on disk and in figures."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from torch import nn

from smallnets.callbacks.checkpoint import forget_best
from smallnets.callbacks.ema import EMA, trained_weights
from smallnets.callbacks.health import Health
from smallnets.callbacks.masks import PruningSchedule
from smallnets.callbacks.structure import require_whole_weights
from smallnets.errors import UserError
from smallnets.pruning.lottery import LotteryPlan, Snapshot, restore_
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import plain
from smallnets.results.load import NET_PREFIX, read_checkpoint
from smallnets.training.restart import begin_epoch_at, restart_optimizers, shift_epochs

# The entry of a checkpoint: plan, round, rewind point, figures of the rounds that are over.
LOTTERY_KEY = "lottery"
# The constant of the stream that masks are drawn from.
STREAM_MASKS = 7


def refuse_what_disturbs_rounds(trainer: Any, who: str) -> None:
    """UserError for what would end a fit within a round or set masks of its own, and for what cannot have masks."""
    if not hasattr(trainer.lightning_module, "set_masks"):
        raise UserError(f"{who} sets the masks of a Classifier, not of a {type(trainer.lightning_module).__name__}")
    require_whole_weights(trainer, who)
    if sum(hasattr(type(each), "schedule_epochs") for each in trainer.callbacks) > 1:
        raise UserError("one lottery or control a fit: replace a config's LotteryTicket by --trainer.callbacks=...")
    if any(isinstance(each, PruningSchedule) for each in trainer.callbacks):
        raise UserError(f"{who} and PruningSchedule both set the masks of a fit: take one of them")
    if any(isinstance(each, EarlyStopping) for each in trainer.callbacks):
        raise UserError(f"EarlyStopping would end the fit, not a round: {who} trains rounds of a fixed length")
    if trainer.max_steps not in (-1, None) and trainer.max_steps >= 0 and not trainer.fast_dev_run:
        raise UserError(f"{who} counts epochs: leave --trainer.max_steps alone, got {trainer.max_steps}")


def read_round(path: str | Path) -> dict[str, Any]:
    """A checkpoint that a lottery's round has left; UserError for one of another run."""
    checkpoint = read_checkpoint(path)
    if LOTTERY_KEY not in checkpoint:
        raise UserError(f"{path} is not of a lottery: take checkpoints/round-<r>.ckpt of its run")
    return checkpoint


def take_over_dense(path: str, plan: LotteryPlan, steps: int, net: nn.Module) -> dict[str, Any]:
    """What a lottery's round 0 has stored, for rounds of another fit; `net` gets the weights of its end.

    Raises UserError for a checkpoint of a later round, or of another length, rewind point or network than `plan`'s with
    so many steps an epoch.
    """
    checkpoint = read_round(path)
    stored = checkpoint[LOTTERY_KEY]
    there, its_steps = LotteryPlan.from_plain(stored["plan"]), stored["steps_per_epoch"]
    for name, its, mine in (
        ("is of round", stored["round"], 0),
        ("has steps_per_epoch", its_steps, steps),
        ("has epochs_per_round", there.epochs, plan.epochs),
        ("rewinds to step", there.rewind_step(its_steps), plan.rewind_step(steps)),
    ):
        if its != mine:
            raise UserError(f"from_round: {path} {name} {its}, and {mine} is needed here")
    state = {
        name.removeprefix(NET_PREFIX): value
        for name, value in trained_weights(checkpoint).items()
        if name.startswith(NET_PREFIX)
    }
    now = {name: value.shape for name, value in plain(net).state_dict().items()}
    if now != {name: value.shape for name, value in state.items()}:
        raise UserError(f"from_round: {path} is of another network than this {type(plain(net)).__name__}")
    plain(net).load_state_dict(state)
    return stored


def require_validation(trainer: Any, epochs: int) -> None:
    """UserError where rounds of so many epochs may pass without a validation: they would have no figure."""
    every = trainer.check_val_every_n_epoch or 1
    if trainer.enable_validation and not trainer.fast_dev_run and every > epochs:
        raise UserError(f"--trainer.check_val_every_n_epoch={every}: a round of {epochs} epochs may have no validation")


def of_rank_0(trainer: Any, masks: Masks | None, weights: Snapshot | None) -> tuple[Masks | None, Snapshot | None]:
    """The masks and weights of rank 0, on every rank: running statistics differ, and with them choices could."""
    if trainer.world_size == 1:
        return masks, weights
    stored = None if weights is None else {name: value.cpu() for name, value in weights.items()}
    state, stored = trainer.strategy.broadcast((None if masks is None else masks.state_dict(), stored))
    return (None if state is None else Masks.from_state_dict(state)), stored


def start_round(
    trainer: Any,
    module: Any,
    *,
    masks: Masks | None,
    weights: Snapshot | None,
    standing: dict[str, Any] | None,
    constant: bool = False,
    epoch: int = 0,
    batch: int = 0,
) -> None:
    """Makes the epoch that is about to start (`on_train_epoch_start`) the first of a round.

    Law: the weights are mask x `weights` (those that are there, if None), every buffer is that of `weights`, the
    optimizer's state is empty, its rates and the schedule are `standing`'s, and the data are those of a plain fit from
    that batch of that epoch. Averages, the choice of a best checkpoint and the grace of `Health` start anew.

    Every rank must give the same.
    """
    if weights is not None:
        restore_(module.net, weights)
    module.set_masks(masks)
    restart_optimizers(trainer, standing, constant)
    shift_epochs(trainer, module, epoch - trainer.current_epoch)
    begin_epoch_at(trainer, batch)
    for callback in trainer.callbacks:
        if isinstance(callback, EMA):
            callback.begin_at(trainer.global_step)
        elif isinstance(callback, Health):
            callback.begin_again(trainer.current_epoch)
    forget_best(trainer)


class RoundEnd(Checkpoint):
    """Calls `close` at the end of an epoch when all of it is known, before any other checkpoint is written.

    Lightning calls checkpoints after the module's own `on_train_epoch_end`; `LotteryTicket` puts this one in.
    """

    def __init__(self, close: Any) -> None:
        self._close = close

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close(trainer, pl_module)


def checkpoint_folder(trainer: Any) -> Path | None:
    """Where the fit's checkpoints go; None if it keeps none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return Path(callback.dirpath)
    return None


class RoundFigures:
    """Seconds and validation figures of the round that runs; they travel in checkpoints."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new round."""
        self._before, self._since = 0.0, time.perf_counter()
        self._best: float | None = None
        self._validated_in: int | None = None

    def validated(self, trainer: L.Trainer) -> None:
        """To be called at every end of a validation."""
        value = trainer.callback_metrics.get("val/accuracy")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and value is not None:
            self._best = max(float(value), self._best if self._best is not None else 0.0)
            self._validated_in = trainer.current_epoch

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._since

    def of(self, trainer: L.Trainer) -> dict[str, Any]:
        """At the end of a round: figures of its last epoch, and the best validation accuracy of its epochs.

        Those of validation are None where the last epoch was not validated (`check_val_every_n_epoch`): Lightning keeps
        the figures of the epoch that was validated last, which may be an earlier round's.
        """
        validated = self._validated_in == trainer.current_epoch
        names = {"val/accuracy": validated, "val/loss": validated, "train/accuracy": True, "train/loss": True}
        last = {
            name.replace("/", "_"): trainer.callback_metrics.get(name) if known else None
            for name, known in names.items()
        }
        figures: dict[str, Any] = {k: None if v is None else round(float(v), 6) for k, v in last.items()}
        best = None if self._best is None else round(self._best, 6)
        return {**figures, "val_accuracy_best": best, "seconds": round(self.seconds, 3)}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "best": self._best, "validated_in": self._validated_in}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._best, self._since = state["seconds"], state["best"], time.perf_counter()
        self._validated_in = state.get("validated_in")
