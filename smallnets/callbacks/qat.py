"""`QuantAwareTraining`: trains with the numbers that the int8 file will have."""

import math
from typing import Any, cast

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from smallnets.callbacks.checkpoint import forget_best
from smallnets.callbacks.lottery import LotteryTicket
from smallnets.callbacks.lottery_control import LotteryControl
from smallnets.callbacks.masks import criterion_batches, criterion_loader
from smallnets.callbacks.pruning import ChannelPruning
from smallnets.callbacks.structure import require_whole_weights
from smallnets.errors import UserError
from smallnets.pruning.schedules import Time
from smallnets.surgery.fake_quantize import FakeQuantized, check_decay
from smallnets.training.steps import StepCallback, run_length, steps_per_epoch


class QuantAwareTraining(StepCallback):
    """Trains a `Classifier` through `surgery.FakeQuantized` (Jacob et al. 2018), from `start` on.

    Laws:
        - From `start` on training and validation see the rounded network, whose first ranges are those of `calibration`
          training batches. `smallnets.load`, `validate`, `test`, `predict` and `export` of a checkpoint see the same,
          with or without this callback. Its weights are the float ones, under the dense network's names.
        - What masks remove is 0 in every forward pass and in the integers.
        - A run resumed from any checkpoint ends bitwise where the uninterrupted one ends (CPU); with another start,
          decay or calibration than the checkpoint's it is refused.
        - Under DDP ranges begin as those of rank 0 and are moved by the smallest and largest values of all ranks, so
          that all ranks hold the same.
        - With `EMA` validation sees, and the checkpoint holds, the averaged weights with these ranges.
        - A checkpoint that is chosen by a monitored figure is chosen among those from `start` on.

    Args:
        start: when rounding begins: `0it` from the first step, `500it`, `2ep`.
        decay: of the moving average of ranges.
        calibration: training batches, not augmented, that give the first ranges; at most an epoch.

    Raises:
        UserError: a number out of its range; before the first step of a fit: a start that the run does not reach, a
            network that `FakeQuantized` refuses, a precision other than 32-true, `--model.compile`, ChannelPruning, a
            lottery, data that are not a data module of smallnets, a strategy that shards parameters.
    """

    def __init__(self, start: str = "0it", decay: float = 0.99, calibration: int = 4) -> None:
        check_decay(decay)
        if calibration < 1:
            raise UserError(f"QuantAwareTraining calibration must be 1 or more, got {calibration}")
        self._start = Time.parse(start)
        self.settings: dict[str, Any] = {"start": start, "decay": decay, "calibration": calibration}
        self._start_step = 0

    @property
    def record(self) -> dict[str, Any]:
        return dict(self.settings)

    # -- before the first step ---------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_weights(trainer, "QuantAwareTraining")
        if not hasattr(pl_module, "set_fake_quantized"):
            raise UserError(f"QuantAwareTraining trains a Classifier, not a {type(pl_module).__name__}")
        if str(trainer.precision) not in ("32-true", "32"):
            raise UserError(
                f"QuantAwareTraining rounds float32 numbers, --trainer.precision={trainer.precision} has rounded them"
                " already: use 32-true"
            )
        module = cast(Any, pl_module)
        if module.hparams.get("compile"):
            raise UserError("QuantAwareTraining replaces the network's forward: --model.compile must be false")
        for each in cast(Any, trainer).callbacks:
            if isinstance(each, (ChannelPruning, LotteryTicket, LotteryControl)):
                raise UserError(
                    f"QuantAwareTraining and {type(each).__name__} exclude each other in one run: quantise its network"
                    " in a new one, --model.init_from=CHECKPOINT"
                )
        FakeQuantized(module.net, self.settings["decay"])  # raises where it cannot be had
        if trainer.global_step == 0:  # a run of its own; a resumed one has read its checkpoint's after this
            module.set_fake_quantized(None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plan(trainer)
        step, begun = trainer.global_step, cast(Any, pl_module).fake_quantized is not None
        if step > 0 and begun != (step >= self._start_step):
            raise UserError(
                f"the run stands at step {step:,} and was not trained with QuantAwareTraining from {self._start} on;"
                " quantise it in a new run: --model.init_from=CHECKPOINT instead of --ckpt_path"
            )
        if step == 0:
            self.after_optimizer_step(trainer, pl_module, 0)

    def _plan(self, trainer: L.Trainer) -> None:
        found = steps_per_epoch(trainer)
        self._start_step = self._start.steps(int(found) if math.isfinite(found) else None)
        length = run_length(trainer)
        if length is not None and length.steps <= self._start_step:
            raise UserError(f"QuantAwareTraining start={self._start} is after the run's {length.steps:,} steps")
        if criterion_loader(trainer) is None:
            raise UserError("QuantAwareTraining needs training images from a data module of smallnets")

    # -- the start ---------------------------------------------------------------------------------------------------

    def after_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        module = cast(Any, pl_module)
        if step != self._start_step or module.fake_quantized is not None:
            return
        fake = FakeQuantized(cast(nn.Module, module.net), self.settings["decay"])
        fake.calibrate(images for images, _ in criterion_batches(trainer, self.settings["calibration"], step))
        fake.bounds.copy_(trainer.strategy.broadcast(fake.bounds))
        module.set_fake_quantized(fake)
        forget_best(trainer)
        trainer.print(f"QuantAwareTraining: after step {step:,} {len(fake.points)} values and all weights in 8 bits")

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        before = checkpoint["callbacks"].get(self.state_key, {}).get("settings", {})
        changed = [name for name, value in self.settings.items() if before.get(name) != value]
        if changed:
            shown = ", ".join(f"{n} was {before.get(n)}, now {self.settings[n]}" for n in changed)
            raise UserError(
                f"a resumed run keeps its QuantAwareTraining: {shown if before else 'the checkpoint has none'}; for"
                " another start a new run: --model.init_from=CHECKPOINT"
            )
