"""`Classifier`: the one LightningModule, which wraps any network that takes images and returns logits."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MetricCollection

from smallnets.data.seeds import global_seed, mix
from smallnets.errors import UserError
from smallnets.optim import in_foreach_form, param_groups, with_warmup
from smallnets.pruning.masks import Masks
from smallnets.results.entry import about_data, entry
from smallnets.results.load import CHECKPOINT_KEY, load, load_masks
from smallnets.surgery import FakeQuantized, fit_widths
from smallnets.training.distill import distillation_loss
from smallnets.training.fast import FastSteps
from smallnets.training.figures import figures
from smallnets.training.mixing import cutmix, mixup
from smallnets.training.precision import slow_precision
from smallnets.training.seeding import STREAM_MIX, seed_step
from smallnets.training.steps import StepCallback, steps_per_epoch
from smallnets.training.sums import Sums


def _sgd(params: Any) -> Optimizer:
    return SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4)


class Classifier(L.LightningModule):
    """Trains, validates and tests `net` on (images, labels) batches.

    Logged at every epoch's end: `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`, and under `test` the same
    with `test/`; with 20 or more classes also the top-5 accuracy, `val/accuracy_top5`. Accuracies are shares of 1.

    Optimizer and schedule are factories: they are built anew whenever a fit starts, so that no momentum and no
    position in a schedule leaks from one fit into the next.

    Law of masks: once `set_masks` was called, each masked weight is exactly 0.0 after every optimizer step, whatever
    the optimizer, its momentum and its weight decay; checked at every epoch's end. The masks are in every checkpoint.

    Law of quantisation: once `set_fake_quantized` was called, training, validation, test and prediction see the rounded
    network; its ranges are in every checkpoint, and a checkpoint that has them brings it back.

    Args:
        net: takes float images (N, channels, height, width) and returns logits (N, classes). A `FakeQuantized`, as
            `smallnets.load` gives one, stands for its network (`set_fake_quantized`).
        optimizer: parameters -> optimizer. Default: SGD, lr 0.1, momentum 0.9, weight decay 5e-4.
        scheduler: optimizer -> learning-rate schedule; None keeps the rate constant.
        interval: what the schedule counts, and `warmup` too: epochs or optimizer steps.
        warmup: so many epochs or steps of linear warm-up come before the schedule.
        label_smoothing: Szegedy et al. 2016; the validation loss is never smoothed.
        spare_norm_and_bias: leave normalisation layers and biases out of weight decay.
        mixup: alpha of mixup (Zhang et al. 2018); 0 is off.
        cutmix: alpha of CutMix (Yun et al. 2019); 0 is off. With both on, a fair coin chooses for each batch.
        teacher: checkpoint of a trained network to distil from (Hinton et al. 2015).
        distill_weight: share of the teacher's term in the loss.
        temperature: of the teacher's and the student's softened outputs.
        init_from: checkpoint whose network, with its widths, weights and masks, replaces `net` before training
            (fine-tuning).
        channels_last: keep weights and images in channels-last memory format, which convolutions may be faster in
            (`smallnets bench --only fit` measures it); off by default, because logits differ in their last bits, and
            code that takes `weight.view(-1)`, such as Lightning's ModelPruning, fails on it.
        compile: run the network through `torch.compile`, also within the fast mode: less time a step, after a minute or
            so of compiling; worth it on a GPU. Checkpoints are those of the network itself.
        fast: many optimizer steps in one `training_step` (`FastSteps`): the same results in less time, a CUDA graph on
            a GPU; callbacks that act on single batches see one in fifty.
        check_masks: when it is checked that masked weights are 0.0: at every epoch's end, or after every step.

    Raises:
        UserError: `init_from` or `teacher` holds a network for another number of classes.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = _sgd,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
        warmup: int = 0,
        label_smoothing: float = 0.0,
        spare_norm_and_bias: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        teacher: str | None = None,
        distill_weight: float = 0.9,
        temperature: float = 4.0,
        init_from: str | None = None,
        channels_last: bool = False,
        compile: bool = False,
        fast: bool = False,
        check_masks: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        _check_ranges(
            label_smoothing=label_smoothing, mixup=mixup, cutmix=cutmix, warmup=warmup, distill_weight=distill_weight
        )
        # Plain values only: the checkpoint must load with weights_only=True. The network has its own record.
        self.save_hyperparameters(ignore=["net", "optimizer", "scheduler"])
        rounded = net if isinstance(net, FakeQuantized) and not init_from else None
        net = net.net if isinstance(net, FakeQuantized) else net
        self.net = load(init_from, like=net, rounded=False) if init_from else net
        if not any(part.training for part in self.net.modules()):
            # As `smallnets.load` gives it: Lightning would train it with frozen statistics and without dropout. Single
            # parts that are in eval mode were put there by somebody, and stay.
            self.net.train()
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.interval = interval
        self.warmup = warmup
        self.label_smoothing = label_smoothing
        self.spare_norm_and_bias = spare_norm_and_bias
        self.mixup, self.cutmix = mixup, cutmix
        self.distill_weight, self.temperature = distill_weight, temperature
        self.channels_last = channels_last
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
        # Tuples keep these two out of the module tree, and so out of the state dict and of the optimizer.
        self._teacher = (load(teacher).eval().requires_grad_(False),) if teacher else ()
        self._compiled = (torch.compile(self.net),) if compile else ()
        self._masks = load_masks(init_from) if init_from else None
        self._fake: tuple[FakeQuantized, ...] = () if rounded is None else (rounded,)
        self._stored_quantization: dict[str, Any] | None = None
        self.check_masks = check_masks
        self.automatic_optimization = not fast
        self._fast = FastSteps(self) if fast else None
        self._step_callbacks: list[StepCallback] = []
        self.epoch_shift = 0  # see training.restart.shift_epochs
        self.train_sums = Sums()
        self.num_classes = 0
        self.val_predicted = torch.zeros(0, dtype=torch.int64)
        self.val_metrics: MetricCollection | None = None
        self.test_metrics: MetricCollection | None = None

    # -- what the run is about ---------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Takes the number of classes from the data and builds the metrics for it."""
        data = getattr(self.trainer, "datamodule", None)
        self.num_classes = int(getattr(data, "num_classes", None) or getattr(self.net, "num_classes", None) or 0)
        if not self.num_classes:
            raise UserError(
                f"the number of classes is not known: neither the data nor {type(self.net).__name__} has `num_classes`"
            )
        if self.val_metrics is None:
            self.val_metrics = figures(self.num_classes, "val/")
            self.test_metrics = figures(self.num_classes, "test/")
        self._seed = global_seed()
        if stage == "fit" and self._fast:
            self._fast.check()
        slow = slow_precision(self.trainer.strategy.root_device, str(self.trainer.precision))
        if stage == "fit" and slow:
            rank_zero_warn(slow)

    def make_optimizer(self) -> Optimizer:
        """A new optimizer over the network's parameters, with empty state; its step over lists of tensors."""
        try:
            optimizer = self.optimizer_factory(param_groups(self.net, spare_norm_and_bias=self.spare_norm_and_bias))
        except ValueError as error:
            raise UserError(f"--model.optimizer: {error}") from error
        return in_foreach_form(optimizer)

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler | ReduceLROnPlateau | None:
        """A new schedule on `optimizer`, at its start; None for a constant rate."""
        return with_warmup(optimizer, self.scheduler_factory, self.warmup)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        schedule = self.make_schedule(optimizer)
        if schedule is None:
            return optimizer
        entry: dict[str, Any] = {"scheduler": schedule, "interval": self.interval}
        if isinstance(schedule, ReduceLROnPlateau):
            if self.interval != "epoch":
                raise UserError("ReduceLROnPlateau watches an epoch's figure: it goes with --model.interval=epoch")
            entry["monitor"] = _monitor(schedule)
        # Under manual optimisation Lightning only keeps the schedule and warns of anything that is said about it.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule} if self._fast else entry}

    # -- steps -------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self._fake:
            if self._fake[0].bounds.device != images.device:
                self._fake[0].to(images.device)  # Lightning moved only the network
            return self._fake[0](images)
        net = self._compiled[0] if self._compiled else self.net
        return net(images)

    def on_fit_start(self) -> None:
        if self._masks is not None:
            self._masks.apply_(self.net)  # raises if those of a checkpoint are not of this network

    def on_train_start(self) -> None:
        # Not at the epoch's start: that hook is not called for an epoch that is resumed in its middle.
        self.train_sums.to(self.device)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        self._step_callbacks = [each for each in callbacks if isinstance(each, StepCallback)]
        if self._fast:
            self._fast.start()
            self._fast.check_length(int(steps_per_epoch(self.trainer)))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._fast:
            self._fast.share_statistics()
        else:
            self.seed_step(batch_idx)

    @property
    def drawn_epoch(self) -> int:
        """The epoch whose random draws are made: another than the current one where a fit sees epochs again."""
        return self.current_epoch + self.epoch_shift

    def seed_step(self, batch_idx: int) -> None:
        """Seeds what the step on batch `batch_idx` of the current epoch draws, so that a resumed run draws the same."""
        seed_step(self.device, self._seed, self.drawn_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if self._fast:
            self._fast.run(batch)
            return None
        images, labels = batch
        images, targets = self.mixed(images, labels, batch_idx)
        return self.loss_of(images, labels, targets)

    def loss_of(self, images: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, after it was added, with the correct predictions, to the epoch's sums."""
        logits = self(images)
        loss = self._loss(images, logits, targets)
        self.train_sums.add(loss, (logits.detach().argmax(1) == labels).sum(), len(labels))
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_optimizer_step(self.trainer.global_step + 1)

    def after_optimizer_step(self, step: int) -> None:
        """Masks, and the callbacks that act on steps, of which `step` have been taken."""
        if self._masks is not None:
            self._masks.apply_(self.net)
            if self.check_masks == "step":
                self._masks.check(self.net)
        if self._fake:
            self._fake[0].update_ranges(self._largest_over_ranks if self.trainer.world_size > 1 else None)
        for callback in self._step_callbacks:
            callback.after_optimizer_step(self.trainer, self, step)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # A masked weight moves nothing, but its gradient would count in the norm that clipping divides by.
        if self._masks is not None and self.trainer.gradient_clip_val:
            self._masks.apply_to_gradients_(self.net)

    def mixed(self, images: Tensor, labels: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix of batch `batch_idx` of the current epoch: (images, targets); labels where both are off."""
        if not (self.mixup or self.cutmix):
            return images, labels
        generator = torch.Generator(device=images.device)
        generator.manual_seed(mix(self._seed, STREAM_MIX, self.drawn_epoch, batch_idx, self.global_rank))
        use_mixup = bool(self.mixup)
        if self.mixup and self.cutmix:
            # The coin is thrown on the host: a function of the place, and no wait for the device.
            use_mixup = mix(self._seed, STREAM_MIX, self.drawn_epoch, batch_idx) % 2 == 0
        targets = F.one_hot(labels, self.num_classes).to(images.dtype)  # `_loss` widens them to the logits
        if use_mixup:
            return mixup(images, targets, self.mixup, generator)
        return cutmix(images, targets, self.cutmix, generator)

    def _loss(self, images: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 2 and (surplus := logits.shape[1] - targets.shape[1]) > 0:
            targets = F.pad(targets, (0, surplus))  # a logit beyond the classes has no share in any image
        if not self._teacher:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        teacher = self._teacher[0]
        with torch.no_grad():
            teacher_logits = teacher.to(images.device)(images)
        return distillation_loss(
            logits, teacher_logits, targets, self.temperature, self.distill_weight, self.label_smoothing
        )

    def on_train_epoch_end(self) -> None:
        loss, correct, count = self.train_sums.reduced(self._sum_over_ranks)
        # The values are already those of all ranks, and reset here rather than at the next start: what a checkpoint
        # at the epoch's end holds is an empty sum.
        self.log_dict({"train/loss": loss / count, "train/accuracy": correct / count}, prog_bar=True, sync_dist=True)
        self.train_sums.reset(self.device)
        if self._masks is not None:
            self._masks.check(self.net)
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                monitor = _monitor(config.scheduler)
                if monitor not in self.trainer.callback_metrics:
                    known = ", ".join(sorted(self.trainer.callback_metrics))
                    raise UserError(f"--model.scheduler.monitor={monitor} is not among {known}")
                config.scheduler.step(self.trainer.callback_metrics[monitor])

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        # Lightning steps a plateau schedule after the epoch's checkpoint was written, and not at all at the end of an
        # epoch that was resumed; so it is stepped above, where the checkpoint holds what the next epoch needs.
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: MetricCollection | None) -> Tensor:
        assert metrics is not None, "setup() builds the metrics"
        images, labels = batch
        logits = self(images)
        # One forward feeds all: the mean of per-image losses and the accuracies.
        for name, metric in metrics.items(keep_base=True):
            if name == "loss":
                metric.update(F.cross_entropy(logits, labels, reduction="none"))
            else:
                metric.update(logits, labels)
        return logits

    def on_validation_epoch_start(self) -> None:
        self.val_predicted = torch.zeros(self.num_classes, dtype=torch.int64, device=self.device)
        if self._fast:
            self._fast.share_statistics()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self._evaluate(batch, self.val_metrics)
        # Indices over the class count can only come from a head that is too wide; Health names it before training.
        predicted = logits.argmax(1).clamp(max=self.num_classes - 1)
        self.val_predicted += torch.bincount(predicted, minlength=self.num_classes)

    def on_validation_epoch_end(self) -> None:
        assert self.val_metrics is not None
        self.val_predicted = self._sum_over_ranks(self.val_predicted)
        self.log_dict(self.val_metrics.compute(), prog_bar=True, sync_dist=True)
        self.val_metrics.reset()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the logits (N, classes), for callbacks: the test images are read once."""
        return self._evaluate(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        assert self.test_metrics is not None
        self.log_dict(self.test_metrics.compute(), sync_dist=True)
        self.test_metrics.reset()

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """(probabilities (N, classes), labels (N,), -1 where a label is not known)."""
        images, labels = batch
        return self(images).float().softmax(1), labels

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        # Lightning's reduce divides for "mean" only; on one process it returns the value itself.
        return self.trainer.strategy.reduce(value.clone(), reduce_op="sum")

    # -- masks -------------------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Masks | None:
        """The masks in force; None for a dense network."""
        return self._masks

    def set_masks(self, masks: Masks | None) -> None:
        """Removes what `masks` remove, now and after every optimizer step from now on; None ends that.

        Under DDP every rank must set the same. An average of the weights (`EMA`) follows.

        Raises:
            UserError: a mask of a layer that the network does not have, or has in another shape.
        """
        if masks is not None:
            masks.apply_(self.net)
        self._masks = masks

    # -- quantisation ------------------------------------------------------------------------------------------------

    @property
    def fake_quantized(self) -> FakeQuantized | None:
        """The rounded network that stands in for `net`; None where nothing is rounded."""
        return self._fake[0] if self._fake else None

    def set_fake_quantized(self, fake: FakeQuantized | None) -> None:
        """Trains and evaluates `net` through `fake`, which shares its tensors; None ends that.

        Ranges move after every optimizer step. Under DDP every rank must set the same.
        """
        self._fake = () if fake is None else (fake,)
        if self._fast:
            self._fast.forget()

    def _largest_over_ranks(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value.clone(), reduce_op="max")

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the network from the file alone, and the sums of a half-finished epoch."""
        data = getattr(self._trainer, "datamodule", None) if self._trainer else None
        checkpoint[CHECKPOINT_KEY] = {
            **entry(self.net, self._masks, {**about_data(data), "num_classes": self.num_classes}),
            "train_sums": list(self.train_sums.reduced(self._sum_over_ranks)),
            "quantization": self._fake[0].record() if self._fake else None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state after giving `net` its widths: the network of a resumed run may have lost channels.

        Lightning restores a module before DDP wraps it and before its optimizers are built. Raises UserError when the
        state is of another network.
        """
        state = {key.removeprefix("net."): value for key, value in state_dict.items() if key.startswith("net.")}
        fit_widths(self.net, state, strict)
        done = super().load_state_dict(state_dict, strict, assign)
        if self._stored_quantization is not None:
            self.set_fake_quantized(FakeQuantized(self.net, record=self._stored_quantization))
            self._stored_quantization = None
        return done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get(CHECKPOINT_KEY, {})
        self._masks = Masks.from_state_dict(stored["masks"]) if stored.get("masks") else None
        self.set_fake_quantized(None)
        self._stored_quantization = stored.get("quantization")  # once its weights are there
        sums = stored.get("train_sums")
        # The stored sums are those of all ranks: one rank takes them, or they would be counted once a rank.
        if sums and self.global_rank == 0:
            self.train_sums.load(*sums)


def _monitor(schedule: ReduceLROnPlateau) -> str:
    return getattr(schedule, "monitor", "val/loss")


def _check_ranges(**values: float) -> None:
    for name in ("label_smoothing", "distill_weight"):
        if not 0 <= values[name] <= 1:
            raise UserError(f"--model.{name} must lie in 0..1, got {values[name]}")
    for name in ("mixup", "cutmix", "warmup"):
        if values[name] < 0:
            raise UserError(f"--model.{name} must be 0 (off) or more, got {values[name]}")
