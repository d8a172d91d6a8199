"""An exponential moving average of the weights, which validation and checkpoints use."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from smallnets.errors import UserError
from smallnets.pruning.masks import Masks
from smallnets.training.steps import StepCallback

# The keys of Lightning's own WeightAveraging; its checkpoints can be read here.
_TRAINED, _STATE = "current_model_state", "averaging_state"


class EMA(StepCallback):
    """average <- decay * average + (1 - decay) * weights, after optimizer steps (Polyak and Juditsky 1992).

    Laws:
        - Validation during a fit sees the average, and so do the monitored figures; a checkpoint's `state_dict` is the
          average (what `smallnets.load` gives), the trained weights stand beside it; after the fit the network holds
          the average. Before the first update the average is the network as it is.
        - A run resumed from any checkpoint, also in the middle of an epoch, ends bitwise where the uninterrupted one
          ends (CPU).
        - A second fit starts from nothing: its average knows only its own steps.
        - What the masks of a `Classifier` remove is 0.0 in the average too, from the moment that they are set.

    Floating-point buffers (running statistics) are averaged like weights; counters are copied. The average has the
    weights' own precision, on their device; an update is one fused operation for each dtype, and never waits for the
    device. Checkpoints saved with `save_weights_only=True` do not pass through callbacks: they hold trained weights.

    Why not Lightning's EMAWeightAveraging (2.6.6), in which was found: its count of steps survives into a second fit,
    which then averages nothing until it has taken more steps than the first; `test(ckpt_path=...)` after a fit in one
    process loads the trained weights, not the averaged ones; with a later first step, validation until then sees the
    initial weights; it copies the whole module before that is moved, so that on a GPU the average stays in host memory
    and every step waits for a transfer; batch counters are averaged to a standstill; loading outside a fit warns.

    Args:
        decay: 0 (no averaging) to below 1.
        every_n_steps: update after every so many optimizer steps.
        start_step: the first so many optimizer steps are not averaged.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1, start_step: int = 0) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"EMA decay must be at least 0 and below 1, got {decay}")
        if every_n_steps < 1:
            raise UserError(f"EMA every_n_steps must be at least 1, got {every_n_steps}")
        if start_step < 0:
            raise UserError(f"EMA start_step must be 0 or more, got {start_step}")
        self.decay, self.every_n_steps, self.start_step = decay, every_n_steps, start_step
        self.restart()
        self._last_step = self._first_step = 0

    def begin_at(self, step: int) -> None:
        """Forget the average, and count `start_step` and `every_n_steps` from optimizer step `step` on: a new round."""
        self.restart()
        self._first_step = step

    def restart(self) -> None:
        """Forget the average; the next update begins a new one with the weights of that moment.

        For whoever changes the network's structure, masks it or rewinds it during a fit: the average would bring back
        what was removed.
        """
        self._average: dict[str, Tensor] | None = None
        self._trained: dict[str, Tensor] | None = None  # put aside while the network holds the average
        self._masks: Masks | None = None  # those that the average has had

    # -- following the weights ---------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.restart()
            self._last_step = self._first_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A resumed average was read before the module moved to its device.
        if self._average is not None:
            self._average = {name: value.to(pl_module.device) for name, value in self._average.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A trainer that goes on counts its steps on; the step before this fit is not to be averaged.
        if self._average is None:
            self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # For modules other than `Classifier`, which gives no sign of single steps.
        self.after_optimizer_step(trainer, pl_module, trainer.global_step)

    def after_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        # Batches that only accumulate gradients take no step.
        averaged = step - self._first_step - self.start_step
        if step == self._last_step or averaged <= 0 or averaged % self.every_n_steps:
            return
        self._last_step = step
        self._update(pl_module)

    @torch.no_grad()
    def _mask_average(self, pl_module: L.LightningModule) -> None:
        """Weights that were removed since the last update have still their past in the average."""
        masks = getattr(pl_module, "masks", None)
        if isinstance(masks, Masks) and masks is not self._masks and self._average is not None:
            masks.apply_to_values_({name: self._average[f"net.{name}"] for name in masks})
            self._masks = masks

    @torch.no_grad()
    def _update(self, pl_module: L.LightningModule) -> None:
        self._mask_average(pl_module)
        now = pl_module.state_dict()
        if self._average is None:
            self._average = _clones(now)
            return
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, value in now.items():
            average = self._average[name]
            if value.is_floating_point():
                pair = groups.setdefault(value.dtype, ([], []))
                pair[0].append(average)
                pair[1].append(value)
            else:
                average.copy_(value)
        for averages, values in groups.values():
            torch._foreach_lerp_(averages, values, 1 - self.decay)

    # -- the average in the network's place --------------------------------------------------------------------------

    def _show_average(self, pl_module: L.LightningModule) -> None:
        self._mask_average(pl_module)
        if self._average is not None and self._trained is None:
            self._trained = _clones(pl_module.state_dict())
            _copy_into(pl_module, self._average)

    def _show_trained(self, pl_module: L.LightningModule) -> None:
        if self._trained is not None:
            _copy_into(pl_module, self._trained)
            self._trained = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._show_average(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._show_trained(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Interrupted in the middle of a validation; a checkpoint written now must not take one for the other.
        self._show_trained(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The trained weights stay aside, for checkpoints that are saved from here on.
        self._show_average(pl_module)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step, "first_step": self._first_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step, self._first_step = int(state_dict["last_step"]), int(state_dict.get("first_step", 0))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._mask_average(pl_module)
        if self._average is None:
            return
        checkpoint[_TRAINED] = checkpoint["state_dict"] if self._trained is None else self._trained
        checkpoint["state_dict"] = type(checkpoint["state_dict"])(self._average)
        checkpoint[_STATE] = self._settings()

    def _settings(self) -> dict[str, Any]:
        return {"decay": self.decay, "every_n_steps": self.every_n_steps, "start_step": self.start_step}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Outside a fit the network keeps what Lightning has just loaded: the average.
        if trainer.state.fn == TrainerFn.FITTING and _TRAINED in checkpoint:
            before, now = checkpoint.get(_STATE, {}), self._settings()
            if differing := [f"{k} was {before[k]}, now {v}" for k, v in now.items() if before.get(k, v) != v]:
                raise UserError(f"a resumed run keeps its EMA: {', '.join(differing)}")
            self._average = _clones(checkpoint["state_dict"])
            pl_module.load_state_dict(checkpoint[_TRAINED])


def trained_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state that a checkpoint's run was training: beside the average where there is one, else the only one."""
    return dict(checkpoint.get(_TRAINED, checkpoint["state_dict"]))


def _clones(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@torch.no_grad()
def _copy_into(pl_module: L.LightningModule, values: dict[str, Tensor]) -> None:
    for name, current in pl_module.state_dict().items():
        current.copy_(values[name])
