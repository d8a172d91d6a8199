"""Says so when a run goes wrong (design: "Health"): Lightning's hooks onto `training.health` and `optim.plan`."""

import math
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from smallnets.errors import RunError, UserError
from smallnets.optim import plan_findings, rate_far_from_reference
from smallnets.training import health
from smallnets.training.steps import schedule_length


class HealthWarning(UserWarning):
    """Something in a run is, or will be, wrong."""


class Health(Callback):
    """Checks a run before it starts and while it runs.

    Before the first step: the learning rate against a reference at the global batch size (`rate_far_from_reference`);
    the schedule against the run's length (`schedule_...`); modules that the forward does not use (`unused_module`); the
    number of logits (`superfluous_head`, too few stop the run); the normalisation against the training split's own
    statistics (`strange_statistics`).

    While training: NaN or infinity in the sums of the training loss stops the run; accuracy at chance, one predicted
    class and a loss of ln C or more, from `grace_epochs` completed epochs on (`accuracy_at_chance`,
    `one_class_predicted`, `loss_at_chance`); layers all of whose weights are exactly 0 (`dead_layer`).

    Every finding is a warning (`HealthWarning`) on rank 0 and an entry of `findings`, once a run; a resumed run does
    not repeat what it has said. All ranks decide alike, on values summed over the ranks.

    Args:
        check_every: optimizer steps between two looks for NaN, each of which waits for the device once. The end of
            an epoch is always looked at.
        grace_epochs: completed epochs, of a fit or of a round within it, before accuracy and loss are judged.
        on_chance: what a network at chance does: `warn`, or `stop` the run.

    Attributes:
        findings: plain dicts with `kind`, `epoch`, `step` (both as of the finding) and `message`, for a run's row.

    Raises:
        UserError: `check_every` below 1 or `grace_epochs` below 0.
        RunError: during a fit, what stops the run.
    """

    def __init__(
        self, check_every: int = 100, grace_epochs: int = 2, on_chance: Literal["warn", "stop"] = "warn"
    ) -> None:
        if check_every < 1:
            raise UserError(f"Health check_every must be at least 1 optimizer step, got {check_every}")
        if grace_epochs < 0:
            raise UserError(f"Health grace_epochs must be 0 or more, got {grace_epochs}")
        if on_chance not in ("warn", "stop"):
            raise UserError(f"Health on_chance must be warn or stop, got {on_chance!r}")
        self.check_every, self.grace_epochs, self.on_chance = check_every, grace_epochs, on_chance
        self.findings: list[dict[str, Any]] = []
        self._looked_at = 0
        self._validated = False
        self._since = 0  # the epoch that the grace is counted from

    # -- findings ----------------------------------------------------------------------------------------------------

    def _find(self, trainer: L.Trainer, kind: str, message: str) -> None:
        if any(f["kind"] == kind and f["message"] == message for f in self.findings):
            return
        self.findings.append(
            {"kind": kind, "epoch": trainer.current_epoch, "step": trainer.global_step, "message": message}
        )
        rank_zero_warn(message, category=HealthWarning)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Before a checkpoint brings the findings of the run that is resumed.
        if stage == "fit":
            self.findings, self._since = [], 0

    def state_dict(self) -> dict[str, Any]:
        return {"findings": [dict(f) for f in self.findings], "since": self._since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.findings = [dict(f) for f in state_dict["findings"]]
        self._since = state_dict.get("since", 0)

    def begin_again(self, epoch: int) -> None:
        """Training begins anew with this epoch, as a round of a lottery does: its grace is counted from here."""
        self._since = epoch

    # -- before the first step ---------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Network and data: before Lightning's sanity check, which a wrong head would break less clearly."""
        self._validated = False
        data = getattr(trainer, "datamodule", None)
        if data is None:
            return
        net: Any = pl_module.net
        found = health.probe(net, data.in_channels, data.image_size)
        message = health.superfluous_head(found, data.num_classes)
        if message:
            self._find(trainer, "superfluous_head", message)
        for name in found.unused:
            kind = type(net.get_submodule(name)).__name__
            self._find(trainer, "unused_module", f"{name} ({kind}) is never called in the network's forward")
        message = health.strange_statistics(data.mean, data.std, data.true_mean, data.true_std)
        if message:
            self._find(trainer, "strange_statistics", message)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Schedule and learning rate: the number of batches is known only now."""
        module: Any = pl_module
        self._looked_at = trainer.global_step

        # Throw-away instances: nothing is stepped that trains.
        def make_optimizer(_: object) -> Optimizer:
            return module.make_optimizer()

        optimizer = make_optimizer(None)
        rate = float(optimizer.param_groups[0]["lr"])
        run = schedule_length(trainer)
        if run is not None:
            found, rate = plan_findings(make_optimizer, module.make_schedule, module.interval, run)
            for kind, message in found:
                self._find(trainer, kind, message)
        batch = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        if batch:
            images = batch * trainer.world_size * trainer.accumulate_grad_batches
            sentence = rate_far_from_reference(optimizer, rate, images)
            if sentence:
                self._find(trainer, "rate_far_from_reference", sentence)

    # -- while training ----------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step - self._looked_at >= self.check_every:
            self._looked_at = trainer.global_step
            self._mean_loss(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = self._mean_loss(trainer, pl_module)
        for name in health.dead_layers(pl_module.net):  # type: ignore[arg-type]
            self._find(trainer, "dead_layer", f"every weight of {name or 'the network'} is exactly 0")
        if trainer.current_epoch + 1 - self._since >= self.grace_epochs:
            self._judge(trainer, pl_module, loss)
        self._validated = False

    def _mean_loss(self, trainer: L.Trainer, pl_module: Any) -> float | None:
        """The epoch's mean training loss so far, over all ranks; None before the first batch.

        Raises:
            RunError: it is not finite.
        """
        sums = pl_module.train_sums
        loss = trainer.strategy.reduce(sums.loss.detach().clone(), reduce_op="sum")
        count = trainer.strategy.reduce(sums.count.detach().clone(), reduce_op="sum")
        mean = torch.as_tensor(loss / count).item()  # the one wait for the device
        if math.isfinite(mean):
            return mean
        if not int(count):
            return None
        name = health.first_non_finite(pl_module.net)
        where = f"first in {name!r}" if name else "all parameters are still finite: the loss itself overflowed"
        raise RunError(
            f"NaN or infinity in the training loss by step {trainer.global_step} (epoch {trainer.current_epoch});"
            f" {where}. Usual causes: a learning rate too high, or 16-bit precision."
        )

    def _judge(self, trainer: L.Trainer, pl_module: Any, loss: float | None) -> None:
        accuracy, predicted, images = None, None, 0
        if self._validated:
            value = trainer.callback_metrics.get("val/accuracy")
            accuracy = None if value is None else float(value)
            # Summed over the ranks already; an incomplete validation has fewer images than the split.
            predicted = [int(n) for n in pl_module.val_predicted.tolist()]
            images = sum(predicted)
        for kind, message in health.chance_findings(pl_module.num_classes, loss, accuracy, predicted, images):
            if any(f["kind"] == kind for f in self.findings):
                continue
            message = f"epoch {trainer.current_epoch}: {message}"
            if self.on_chance == "stop":
                raise RunError(f"stopped, as Health on_chance=stop asks: {message}")
            self._find(trainer, kind, message)
