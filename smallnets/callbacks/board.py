"""What the callbacks that write to TensorBoard share: its writer, images drawn back, charts of several curves."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from smallnets.callbacks.layer_bars import layer_bars
from smallnets.pruning.masks import Masks

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
        charts["pruning"] = {
            "density": ["density/total$", "lottery/density$"],
            "density of layers": ["density/(?!total$)"],
        }
    if norms:
        charts["norms"] = {"weights": ["weight_norm/"], "gradients": ["gradient_norm/"]}
    charts["speed"] = {"images per second": ["speed/"]}
    return {group: {name: ["Multiline", tags] for name, tags in each.items()} for group, each in charts.items()}


def draw_layers(trainer: Any, tag: str, layers: Mapping[str, tuple[int, int]], step: int) -> None:
    """The picture `layers/TAG` of (kept, total) by layer, where the run is logged to TensorBoard."""
    if (writer := board(trainer)) is not None:
        writer.add_image(f"layers/{tag}", layer_bars(layers), step, dataformats="HWC")


def draw_masks(trainer: Any, masks: Masks, step: int) -> None:
    """What masks keep of each layer, as `layers/masks`."""
    layers = {each.name.removesuffix(".weight"): (each.kept, each.total) for each in masks.layers}
    draw_layers(trainer, "masks", layers, step)


def drawn(images: Tensor, data: Any) -> Tensor:
    """Normalised images back in 0..1, on the CPU; as they are where `data` has no `mean` and `std`."""
    images = images.detach().float().cpu()
    if hasattr(data, "mean") and hasattr(data, "std"):
        images = images * torch.tensor(data.std).view(1, -1, 1, 1) + torch.tensor(data.mean).view(1, -1, 1, 1)
    return images.clamp(0, 1)
