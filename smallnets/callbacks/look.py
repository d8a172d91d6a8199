"""What TensorBoard shows of a fit beside the curves: images, graph, speed, densities, norms, hyperparameters."""

import time
import warnings
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid

from smallnets.callbacks.board import board, draw_masks, drawn, layout
from smallnets.callbacks.checkpoint import BestCheckpoint
from smallnets.callbacks.masks import PruningSchedule
from smallnets.data.chunks import Chunk
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.pruning.masks import Masks
from smallnets.results.provenance import flatten
from smallnets.training.norms import gradient_norms, weight_norms


class TensorBoardLook(Callback):
    """Writes to the run's TensorBoard, on rank 0; nothing where a run has none.

    At the start of a run: `train/images`, the first augmented training images as the network gets them (drawn back to
    0..1), the graph, and which curves CUSTOM SCALARS draws into one chart. At every epoch's end:
    `speed/images_per_second` (training alone), and for masks that are new, unless they are a `PruningSchedule`'s, which
    does it itself, `density/total`, `density/LAYER` and the picture `layers/masks`, a bar for each layer. At its end:
    the hyperparameters with the final figures, for the HPARAMS tab (`final/...`, by the names of `row.json`, and
    `test/accuracy`).

    Law: weights, figures and all that is drawn are bitwise those of the run without it.

    Args:
        config: the resolved configuration; its model, data and seed settings become the hyperparameters. By default
            those that the module saved.
        images: how many images the grid holds; 0 for none.
        graph: whether to trace and write the graph.
        norms_every: write `weight_norm/...` and `gradient_norm/...` (before clipping) at every so many optimizer steps;
            by default never, since each waits for the device.

    Raises:
        UserError: `images` below 0, or `norms_every` below 1.
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        images: int = 64,
        graph: bool = True,
        norms_every: int | None = None,
    ) -> None:
        if images < 0:
            raise UserError(f"--look.images must be 0 (none) or more, got {images}")
        if norms_every is not None and norms_every < 1:
            raise UserError(f"--look.norms_every must be at least 1 optimizer step, got {norms_every}")
        self.config = config or {}
        self._images, self._graph, self._norms_every = images, graph, norms_every
        self._masks: Masks | None = None
        self._clock = _Clock()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._masks = None
        self._clock.begin()
        if (writer := board(trainer)) is not None:
            self._write_layout(writer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.begin()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx or (writer := board(trainer)) is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(batch, Chunk):
            batch = data.transfer_batch_to_device(batch.peek(), pl_module.device, 0)
            batch = data.on_after_batch_transfer(batch, 0)
        if self._images:
            writer.add_image("train/images", make_grid(drawn(batch[0][: self._images], data), nrow=8), 0)
        if self._graph:
            _write_graph(writer, cast(nn.Module, pl_module.net), batch[0][:1])
        self._clock.begin()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        step = trainer.global_step
        if self._norms_every is None or step % self._norms_every or (writer := board(trainer)) is None:
            return
        net = cast(nn.Module, pl_module.net)
        for group, values in (("weight_norm", weight_norms(net)), ("gradient_norm", gradient_norms(net))):
            _write_scalars(writer, group, {name.removesuffix(".weight"): v for name, v in values.items()}, step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._clock.images += (batch.images if isinstance(batch, Chunk) else len(batch[0])) * trainer.world_size

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.stop()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.go_on()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.stop()
        if (writer := board(trainer)) is None:
            return
        # Of the last step that was taken, as Lightning counts them from 0.
        step = max(0, trainer.global_step - 1)
        _write_scalars(writer, "speed", {"images_per_second": self._clock.images / self._clock.seconds}, step)
        masks = getattr(pl_module, "masks", None)
        if masks is not None and masks is not self._masks:
            if self._masks is None:
                self._write_layout(writer, pl_module)
            self._masks = masks
            callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            if not any(isinstance(each, PruningSchedule) for each in callbacks):
                layers = {each.name.removesuffix(".weight"): each.density for each in masks.layers}
                _write_scalars(writer, "density", {**layers, "total": masks.density}, step)
                draw_masks(trainer, masks, step)

    def _write_layout(self, writer: Any, module: Any) -> None:
        top5 = module.num_classes >= 20
        masks = getattr(module, "masks", None) is not None
        writer.add_custom_scalars(layout(top5=top5, masks=masks, norms=self._norms_every is not None))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (writer := board(trainer)) is None:
            return
        settings = {k: v for k, v in self.config.items() if k in ("model", "data", "seed_everything")}
        figures = _final(trainer, pl_module)
        # The test's figure comes later, if it does, into a column that is named now.
        columns = {f"final/{name}": value for name, value in figures.items()} | {"test/accuracy": 0.0}
        for summary in hparams(flatten(settings or dict(pl_module.hparams)), columns):
            writer.file_writer.add_summary(summary)
        _write_scalars(writer, "final", figures, max(0, trainer.global_step - 1))
        writer.flush()


class Rates(LearningRateMonitor):
    """Lightning's `LearningRateMonitor`, with the momentum of optimizers that have one."""

    def on_train_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self.log_momentum = any({"momentum", "betas"} & set(each.defaults) for each in trainer.optimizers)
        super().on_train_start(trainer, *args, **kwargs)


class _Clock:
    """Seconds and images of training in an epoch, without validation."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.images, self.seconds = 0, 0.0
        self.go_on()

    def go_on(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._since


def _write_scalars(writer: Any, group: str, values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(f"{group}/{name}", value, step)


def _write_graph(writer: Any, net: nn.Module, example: Tensor) -> None:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The tracer warns of every Python branch on a shape, and of its own deprecation; neither matters here.
            warnings.simplefilter("ignore")
            writer.add_graph(net, example, use_strict_trace=False)
    except RuntimeError as error:
        # A network that the tracer cannot follow trains all the same: only its picture is missing.
        rank_zero_info(f"no graph for TensorBoard: {str(error).splitlines()[0]}")
    finally:
        for module, training in modes.items():
            module.training = training


def _final(trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
    """The figures of a run that has ended, as `row.json` names them."""
    found = {name: trainer.callback_metrics.get(name) for name in ("val/accuracy", "val/loss", "train/loss")}
    figures = {f"{name.replace('/', '_')}_last": float(value) for name, value in found.items() if value is not None}
    best = [each.best_model_score for each in trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)]
    if best and best[0] is not None:
        figures = {"val_accuracy": float(best[0]), **figures}
    data: Any = getattr(trainer, "datamodule", None)
    if hasattr(data, "image_size") and hasattr(data, "in_channels"):
        counts = count(cast(nn.Module, module.net), image_size=data.image_size, in_channels=data.in_channels)
        figures |= {name: float(getattr(counts, name)) for name in ("parameters", "nonzero_parameters", "macs")}
    return figures
