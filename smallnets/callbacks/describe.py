"""`describe`: what a row says of a run's network, data, seeds and machine."""

import time
from typing import Any, cast

import lightning as L
import torch
from torch import nn

from smallnets.data.loader import BatchLoader, batch_bounds
from smallnets.data.seeds import global_seed
from smallnets.measure import count
from smallnets.models.name import name_of


def describe(trainer: L.Trainer, module: L.LightningModule, data: Any) -> dict[str, Any]:
    """What a row says of the network, the data, the seeds and the machine; null where it is not known."""
    net = cast(nn.Module, module.net)
    # In a script of one's own the images may come without a data module; then the network says what it was built for.
    image_size = int(getattr(data, "image_size", None) or getattr(net, "image_size", None) or 32)
    in_channels = int(getattr(data, "in_channels", None) or getattr(net, "in_channels", None) or 3)
    counts = count(net, image_size=image_size, in_channels=in_channels)
    device = module.device
    return {
        "net": name_of(net),
        "parameters": counts.parameters,
        "nonzero_parameters": counts.nonzero_parameters,
        "macs": counts.macs,
        "bytes": counts.bytes,
        "data": getattr(data, "name", None),
        "data_digest": getattr(data, "digest", None),
        "split_digest": getattr(data, "split_digest", None),
        "num_classes": getattr(data, "num_classes", None) or getattr(net, "num_classes", None),
        "train_size": getattr(data, "split_sizes", {}).get("train"),
        "val_size": _val_size(trainer, data),
        "batch_size": getattr(data, "batch_size", None),
        "seed": global_seed(),
        "split_seed": getattr(data, "split_seed", None),
        "seeds": seeds(trainer, data),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
    }


def seeds(trainer: L.Trainer, data: Any) -> dict[str, int | None]:
    """The seed of each thing that is drawn: `split`, `init`, `order`, `augment` and `mask`.

    `init` is the run's own, from which dropout and mixing draw too; the others are the same unless they were given.
    `mask` is that of masks, or weights, which a callback draws at random.
    """
    run = global_seed()
    given = [getattr(each, "mask_seed", None) for each in trainer.callbacks]  # type: ignore[attr-defined]
    found = {name: getattr(data, f"{name}_seed", None) for name in ("order", "augment")}
    found["mask"] = next((seed for seed in given if seed is not None), None)
    apart = {name: run if seed is None else int(seed) for name, seed in found.items()}
    return {"split": getattr(data, "split_seed", None), "init": run, **apart}


def device_clock(device: torch.device) -> float:
    """Seconds of which differences say how long the device was taken: CPU time of this process, or the wall's."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _val_size(trainer: L.Trainer, data: Any) -> int | None:
    """How many images an epoch's validation has read: fewer than there are under `limit_val_batches`."""
    size = getattr(data, "split_sizes", {}).get("val")
    loader = trainer.val_dataloaders
    if size is None or not isinstance(loader, BatchLoader):
        return size
    bounds = batch_bounds(size, loader.batch_size, loader.world_size)
    return bounds[min(int(sum(trainer.num_val_batches)), len(bounds) - 1)]
