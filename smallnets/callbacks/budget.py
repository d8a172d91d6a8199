"""Breaks a run whose network is over its budget, before the first step."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from smallnets.errors import UserError
from smallnets.measure import Budget, Counts, count


class ParameterBudget(Callback):
    """Counts the network before the first optimizer step and breaks the run when a limit is exceeded.

    Counts are exact (`smallnets.measure.count`) and logged once a fit as `budget/parameters`,
    `budget/nonzero_parameters`, `budget/macs` (of one image) and `budget/bytes` (stored). Every rank counts its own
    copy, and so all ranks stop alike.

    The check is made when the first batch of a fit arrives: everything that other callbacks change at the start, in
    whatever order they stand, has been done by then, and on resuming the network has the widths of the checkpoint.
    Whoever changes the structure later calls `check`; while a callback says that the network will still lose channels
    in this fit (`changes_ahead` of `ChannelPruning`), the check waits for the first batch after it.

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
        self._checked = False

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Counts:
        """Count `pl_module.net` now, on images as the data module gives them, and hold it against the budget.

        Raises:
            BudgetExceeded: a limit is exceeded.
            UserError: the trainer has no data module that tells `image_size` and `in_channels`.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "image_size") or not hasattr(data, "in_channels"):
            raise UserError("ParameterBudget needs a data module with image_size and in_channels to count MACs")
        net: Any = pl_module.net
        counts = count(net, image_size=data.image_size, in_channels=data.in_channels)
        self.budget.require(counts, type(net).__name__)
        return counts

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._checked = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if self._checked or any(getattr(each, "changes_ahead", False) for each in callbacks):
            return
        counts = self.check(trainer, pl_module)
        self._checked = True
        names = ("parameters", "nonzero_parameters", "macs", "bytes", "activation_bytes")
        for logger in trainer.loggers:
            logger.log_metrics({f"budget/{name}": getattr(counts, name) for name in names}, step=trainer.global_step)
