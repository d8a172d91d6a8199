"""Breaks a run whose network is over its budget, before the first step."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from smallnets.callbacks.record import RunRecord
from smallnets.errors import UserError
from smallnets.measure import Budget, Counts, count

_NAMES = ("parameters", "nonzero_parameters", "macs", "bytes", "activation_bytes")


class ParameterBudget(Callback):
    """Counts the network before the first optimizer step and breaks the run when a limit is exceeded.

    Counts are exact (`smallnets.measure.count`) and logged once a fit as `budget/parameters`,
    `budget/nonzero_parameters`, `budget/macs` (of one image) and `budget/bytes` (stored). Every rank counts its own
    copy, and so all ranks stop alike.

    The check is made when the first batch of a fit arrives: everything that other callbacks change at the start, in
    whatever order they stand, has been done by then, and on resuming the network has the widths of the checkpoint.
    Whoever changes the structure later calls `check`; while a callback says that the network will still lose channels
    in this fit (`changes_ahead` of `ChannelPruning`), the check waits for the first batch after it. While one says that
    masks will still remove weights (`masks_ahead` of `PruningSchedule` and `LotteryTicket`), the limit on nonzero
    parameters alone waits: for the last of these changes, or for the end of a fit that stops before it. Then the counts
    are logged again. A search's trial that its pruner stops is not checked at its end: it would have lost them later.

    Args:
        parameters: all trainable parameters; limits are numbers or strings such as "5M" (5,000,000) and "200k".
        nonzero_parameters: those that are not exactly 0.
        macs: multiply-accumulates of one image.
        bytes: of the stored network.
        activation_bytes: of the activations that one image's inference holds at once.

    Raises:
        UserError: no limit at all, or one that is not a number.
        BudgetExceeded: (a RunError) from `check`, with the count, the limit and the largest layers.
    """

    def __init__(
        self,
        parameters: int | str | None = None,
        nonzero_parameters: int | str | None = None,
        macs: int | str | None = None,
        bytes: int | str | None = None,
        activation_bytes: int | str | None = None,
    ) -> None:
        self.budget = Budget(parameters, nonzero_parameters, macs, bytes, activation_bytes)
        self._checked = self._checked_but_zeros = False

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule, masks_ahead: bool = False) -> Counts:
        """Count `pl_module.net` now, on images as the data module gives them, and hold it against the budget.

        With `masks_ahead` all limits but that on nonzero parameters.

        Raises:
            BudgetExceeded: a limit is exceeded.
            UserError: the trainer has no data module that tells `image_size` and `in_channels`.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "image_size") or not hasattr(data, "in_channels"):
            raise UserError("ParameterBudget needs a data module with image_size and in_channels to count MACs")
        net: Any = pl_module.net
        counts = count(net, image_size=data.image_size, in_channels=data.in_channels)
        limits = {k: v for k, v in self.budget.limits().items() if not (masks_ahead and k == "nonzero_parameters")}
        if limits:
            Budget(**limits).require(counts, type(net).__name__)
        return counts

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._checked = self._checked_but_zeros = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._checked or _any(trainer, "changes_ahead"):
            return
        waits = self.budget.nonzero_parameters is not None and _any(trainer, "masks_ahead")
        if not (waits and self._checked_but_zeros):
            self._check_and_log(trainer, pl_module, trainer.global_step, waits)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stopped = any(isinstance(each, RunRecord) and each.pruned for each in trainer.callbacks)  # type: ignore[attr-defined]
        if not self._checked and not stopped and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # In the row of the last step that was taken, as Lightning counts them from 0.
            self._check_and_log(trainer, pl_module, max(0, trainer.global_step - 1))

    def _check_and_log(self, trainer: L.Trainer, module: L.LightningModule, step: int, waits: bool = False) -> None:
        counts = self.check(trainer, module, masks_ahead=waits)
        self._checked, self._checked_but_zeros = not waits, True
        figures = {f"budget/{name}": getattr(counts, name) for name in _NAMES}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)


def check_budgets(trainer: Any, module: L.LightningModule) -> None:
    """To be called after the last change of structure or masks of a fit: breaks a run that is over its budget."""
    if not _any(trainer, "changes_ahead") and not _any(trainer, "masks_ahead"):
        for each in trainer.callbacks:
            if isinstance(each, ParameterBudget):
                each.check(trainer, module)


def _any(trainer: Any, attribute: str) -> bool:
    return any(getattr(each, attribute, False) for each in trainer.callbacks)
