"""The entry "smallnets" of a checkpoint: what rebuilds its network from the file alone, and what its images were."""

from typing import Any

from torch import nn

from smallnets.models.spec import spec_of
from smallnets.pruning.masks import Masks

SCHEMA = 1
# What a checkpoint knows of its data, and what stands there where nothing is known.
ABOUT: dict[str, Any] = {
    "num_classes": None, "image_size": None, "in_channels": None, "data": None, "split_seed": None, "mean": [],
    "std": [], "classes": [],
}  # fmt: skip


def entry(net: nn.Module, masks: Masks | None, about: dict[str, Any]) -> dict[str, Any]:
    """The entry of a checkpoint of `net`, plain data and tensors; `about` says what is known of `ABOUT`."""
    stored = None if masks is None else masks.state_dict()
    return {**ABOUT, **about, "schema": SCHEMA, "net": spec_of(net), "masks": stored}


def about_data(data: Any) -> dict[str, Any]:
    """What a data module, or None, knows of `ABOUT`, as plain values."""
    return {
        "image_size": getattr(data, "image_size", None),
        "in_channels": getattr(data, "in_channels", None),
        "data": getattr(data, "name", None),
        "split_seed": getattr(data, "split_seed", None),
        "mean": [float(v) for v in getattr(data, "mean", None) or []],
        "std": [float(v) for v in getattr(data, "std", None) or []],
        "classes": [str(c) for c in getattr(data, "classes", None) or []],
    }
