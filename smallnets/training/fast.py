"""The fast mode: many optimizer steps in one `training_step`, so that Lightning's own time is paid once for them."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from smallnets.data.chunks import Chunk
from smallnets.errors import UserError
from smallnets.training.captured import CapturedStep

# The hooks that lie within forward and backward, and all of a step's.
_WITHIN = ("on_before_zero_grad", "on_before_backward")
_HOOKS = (*_WITHIN, "on_after_backward", "on_before_optimizer_step")


class FastSteps:
    """Trains a `Classifier` on chunks of batches, under manual optimisation.

    Law: weights, buffers, optimizer and schedule, `trainer.global_step`, the sums of the epoch and what is logged equal
    those of the default mode, bitwise on a CPU. Every step calls, in order: the seeds of its place, the forward pass,
    `on_before_zero_grad`, `on_before_backward`, the backward pass, `on_after_backward` and `on_before_optimizer_step`
    of the callbacks and the module, the optimizer, masks and `StepCallback`s, the schedule if it counts steps.
    Lightning's hooks for batches come once a chunk.

    Under DDP a chunk is one batch: DDP sends the running statistics of rank 0 to the others at a `training_step`.

    On a GPU forward and backward are captured once as a CUDA graph and replayed for every batch of that shape; the
    optimizer's few operations on lists of tensors (`in_foreach_form`) stay outside, so that every optimizer and every
    change of rate works. The two hooks that would come between forward and backward are refused there.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._captured: CapturedStep | None = None

    def check(self) -> None:
        """UserError for a trainer's setting that needs single batches."""
        trainer, loader = self.module.trainer, "--model.fast=true trains in chunks of batches"
        if not hasattr(trainer.datamodule, "on_after_batch_transfer"):
            raise UserError("--model.fast=true needs a data module of smallnets")
        if trainer.val_check_interval not in (None, 1.0):
            raise UserError(f"{loader}: --trainer.val_check_interval must stay 1.0, got {trainer.val_check_interval}")
        if isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches != 1.0:
            raise UserError(f"{loader}: give --trainer.limit_train_batches as a number of batches")
        if str(trainer.precision) in ("16-mixed", "16-true"):
            raise UserError(f"--model.fast=true does not scale losses: bf16-mixed instead of {trainer.precision}")
        if self._captures():
            for hook in _WITHIN:
                for owner in (*_callbacks_with(trainer, hook), *([self.module] if _has(self.module, hook) else [])):
                    raise UserError(
                        f"--model.fast=true on a GPU runs forward and backward as one: {type(owner).__name__}.{hook},"
                        " which comes between them, would not be called; leave out one of the two"
                    )

    def check_length(self, steps: int) -> None:
        """UserError if `max_steps` ends within an epoch of `steps`: a chunk is not left half used."""
        most = self.module.trainer.max_steps
        if most > 0 and most % steps:
            raise UserError(
                f"--model.fast=true trains whole epochs of {steps} steps: --trainer.max_steps={most} ends within one"
            )

    def share_statistics(self) -> None:
        """Lets DDP share the statistics of rank 0 at the next forward, be it of training or of validation.

        Under manual optimisation Lightning (2.6) leaves it switched off after the first.
        """
        model = self.module.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = True

    def run(self, chunk: Chunk) -> None:
        """Trains on the batches of a chunk."""
        module = self.module
        trainer, data = module.trainer, module.trainer.datamodule
        optimizer, schedule = module.optimizers(use_pl_optimizer=False), module.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule = None  # it is stepped when the epoch has been validated
        loop = trainer.fit_loop.epoch_loop
        counter, taken = loop.manual_optimization.optim_step_progress, 0
        if self._captured is not None and not self._captured.valid():
            self._captured = None  # the network has got other tensors since
        for number, batch in chunk:
            if batch[0].device != module.device:
                batch = data.transfer_batch_to_device(batch, module.device, 0)
            images, labels = data.on_after_batch_transfer(batch, 0)
            module.seed_step(number)
            images, targets = module.mixed(images, labels, number)
            self._forward_backward(number, optimizer, images, labels, targets)
            self._call("on_before_optimizer_step", optimizer)
            counter.increment_ready()
            optimizer.step()
            counter.increment_completed()
            taken += 1
            module.after_optimizer_step(counter.total.completed)
            if schedule is not None and module.interval == "step":
                schedule.step()
        if schedule is not None and module.interval == "epoch" and chunk.last:
            schedule.step()
        # The step that loggers write beside their figures; Lightning adds one a training_step.
        loop._batches_that_stepped += taken - 1

    def start(self) -> None:
        """To be called when a fit starts: which callbacks look at gradients, and a new capture."""
        self._watching = {hook: _callbacks_with(self.module.trainer, hook) for hook in _HOOKS}
        self.forget()

    def forget(self) -> None:
        """Makes the next capture a new one: the network computes something else from now on."""
        self._captured = None

    def _captures(self) -> bool:
        trainer = self.module.trainer
        return trainer.strategy.root_device.type == "cuda" and trainer.world_size == 1

    def _call(self, hook: str, *arguments: Any) -> None:
        """As Lightning calls it in the default mode: the callbacks, then the module."""
        for callback in self._watching[hook]:
            getattr(callback, hook)(self.module.trainer, self.module, *arguments)
        getattr(self.module, hook)(*arguments)

    def _forward_backward(self, number: int, optimizer: Any, images: Tensor, labels: Tensor, targets: Tensor) -> None:
        module = self.module
        if self._captures():
            if self._captured is None:
                self._captured = CapturedStep(module, optimizer, images, labels, targets)
                if module.fake_quantized is not None:
                    module.fake_quantized.forget_seen()
                module.seed_step(number)  # capturing has drawn from the generator
            # An epoch's last batch is often smaller; it is not worth a graph of its own.
            if self._captured.fits(images, targets):
                self._captured.replay(images, labels, targets)
                self._call("on_after_backward")
                return
        loss = module.loss_of(images, labels, targets)
        self._call("on_before_zero_grad", optimizer)
        optimizer.zero_grad()
        if module.trainer.world_size > 1:
            module.manual_backward(loss)  # makes DDP ready for the backward pass, and calls the hooks around it
            return
        self._call("on_before_backward", loss)
        loss.backward()
        self._call("on_after_backward")


def _callbacks_with(trainer: Any, hook: str) -> list[Any]:
    return [each for each in trainer.callbacks if _has(each, hook)]


def _has(owner: Any, hook: str) -> bool:
    """Whether a callback or module does something in a hook, be it that of its class or, as LambdaCallback's, its own.

    Lightning's own modules and callbacks have empty ones, which are not worth a call a step.
    """
    base = L.LightningModule if isinstance(owner, L.LightningModule) else Callback
    return getattr(getattr(owner, hook), "__func__", None) is not getattr(base, hook)
