"""What TensorBoard shows beside the curves: augmented images, the graph, hyperparameters with the final figures."""

import warnings
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid

from smallnets.data.chunks import Chunk
from smallnets.results.provenance import flatten


class TensorBoardLook(Callback):
    """Writes to the run's TensorBoard, on rank 0.

    At the start of a run: `images/train`, the first augmented training images as the network gets them (drawn back to
    0..1), and the graph. At its end: the hyperparameters with the final validation figures, for the HPARAMS tab.

    Args:
        config: the resolved configuration; its model, data and seed settings become the hyperparameters.
        images: how many images the grid holds; 0 for none.
        graph: whether to trace and write the graph (seconds for a deep network).
    """

    def __init__(self, config: dict[str, Any] | None = None, images: int = 64, graph: bool = True) -> None:
        self.config = config or {}
        self._images = images
        self._graph = graph

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx:
            return
        writer = _writer(trainer)
        if writer is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(batch, Chunk):
            batch = data.transfer_batch_to_device(batch.peek(), pl_module.device, 0)
            batch = data.on_after_batch_transfer(batch, 0)
        if self._images:
            writer.add_image("images/train", make_grid(_drawn(batch[0][: self._images], data), nrow=8), 0)
        if self._graph:
            self._write_graph(writer, pl_module, batch[0][:1])

    @staticmethod
    def _write_graph(writer: Any, module: L.LightningModule, example: Tensor) -> None:
        training = module.training
        module.eval()
        with warnings.catch_warnings(), torch.no_grad():
            # The tracer warns of every Python branch on a shape, and of its own deprecation; neither matters here.
            warnings.simplefilter("ignore")
            try:
                writer.add_graph(module.net, example, use_strict_trace=False)
            except RuntimeError as error:
                # A network that the tracer cannot follow trains all the same: only its picture is missing.
                L.pytorch.utilities.rank_zero.rank_zero_info(f"no graph for TensorBoard: {str(error).splitlines()[0]}")
        module.train(training)

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        settings = {k: v for k, v in self.config.items() if k in ("model", "data", "seed_everything")}
        figures = {
            f"final/{k.removeprefix('val/')}": float(v) for k, v in trainer.callback_metrics.items() if "val/" in k
        }
        loggers[0].log_hyperparams(flatten(settings), figures)
        loggers[0].save()


@rank_zero_only
def _writer(trainer: L.Trainer) -> Any:
    """TensorBoard's own writer, or None where the run has none."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    return None


def _drawn(images: Tensor, data: Any) -> Tensor:
    """Normalised images back in 0..1."""
    mean = torch.tensor(data.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(data.std, device=images.device).view(1, -1, 1, 1)
    return (images.detach().float() * std + mean).clamp(0, 1).cpu()
