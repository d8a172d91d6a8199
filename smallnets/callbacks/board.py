"""What the callbacks that write to TensorBoard share: its writer, images drawn back, charts of several curves."""

from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

_PARTS = ("train", "val", "test")


def has_board(trainer: Any) -> bool:
    """Whether the run is logged to TensorBoard; the same on every rank."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers) and not trainer.fast_dev_run


@rank_zero_only
def board(trainer: Any) -> Any:
    """TensorBoard's writer on rank 0; None on the others and where the run is not logged to TensorBoard."""
    if not has_board(trainer):
        return None
    return next(logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def layout(*, top5: bool, masks: bool, norms: bool) -> dict[str, dict[str, list[Any]]]:
    """Charts of CUSTOM SCALARS: group -> chart -> what it draws, tags as regular expressions."""
    curves = ["loss", "accuracy", *(["accuracy_top5"] if top5 else [])]
    charts = {"curves": {name: [f"{part}/{name}$" for part in _PARTS] for name in curves}}
    charts["optimizer"] = {"learning rate": [r"lr-(?!.*-momentum$)"], "momentum": [r"lr-.*-momentum$"]}
    if masks:
        charts["pruning"] = {"density": ["density/total$", "lottery/density$"], "sparsity of layers": ["sparsity/"]}
    if norms:
        charts["norms"] = {"weights": ["weight_norm/"], "gradients": ["gradient_norm/"]}
    charts["speed"] = {"images per second": ["speed/"]}
    return {group: {name: ["Multiline", tags] for name, tags in each.items()} for group, each in charts.items()}


def drawn(images: Tensor, data: Any) -> Tensor:
    """Normalised images back in 0..1, on the CPU; as they are where `data` has no `mean` and `std`."""
    images = images.detach().float().cpu()
    if hasattr(data, "mean") and hasattr(data, "std"):
        images = images * torch.tensor(data.std).view(1, -1, 1, 1) + torch.tensor(data.mean).view(1, -1, 1, 1)
    return images.clamp(0, 1)
