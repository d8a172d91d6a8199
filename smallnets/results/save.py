"""`save`: a network that was made or changed outside a run, as a checkpoint that `load` and `fit` take."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import plain
from smallnets.results.entry import entry
from smallnets.results.load import CHECKPOINT_KEY, NET_PREFIX
from smallnets.surgery.fake_quantize import FakeQuantized


def save(net: nn.Module, path: str | Path, *, masks: Masks | None = None, about: dict[str, Any] | None = None) -> Path:
    """Writes `net` so that `smallnets.load(path)` gives it back from the file alone, its logits bitwise the same.

    For a network of one's own class that does not keep its constructor's arguments as attributes, `load` needs `net=`.
    `smallnets fit --model.init_from=PATH` trains it further, with its widths and masks. Written by rename.

    Args:
        masks: weights that further training must keep at 0.0.
        about: what is known of its data: `num_classes`, `image_size`, `in_channels`, `data`, `split_seed`, `mean`,
            `std`, `classes`, as in a run's checkpoint under "smallnets"; missing ones are read off the network where
            it has an attribute of the name.

    Raises:
        UserError: a mask of a layer that the network does not have, or has in another shape.
        RunError: a masked weight is not 0.0.
    """
    net = plain(net)
    record = net.record() if isinstance(net, FakeQuantized) else None
    net = net.net if isinstance(net, FakeQuantized) else net
    if masks is not None:
        masks.check(net)
    known = {name: getattr(net, name, None) for name in ("num_classes", "image_size", "in_channels")}
    state = {f"{NET_PREFIX}{name}": value.detach() for name, value in net.state_dict().items()}
    stored = entry(net, masks, {**known, **(about or {})})
    write_checkpoint({"state_dict": state, CHECKPOINT_KEY: {**stored, "quantization": record}}, path)
    return Path(path)


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Writes a checkpoint beside its place, flushes it to the disk and renames it.

    A process killed at any moment leaves the previous file or the new one, never a part under the final name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        # Half of it would stay on a disk that may be full.
        part.unlink(missing_ok=True)
        # torch raises an error of its own over the system's, which does not know its file either.
        if isinstance(cause := error.__context__ if isinstance(error, RuntimeError) else error, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    part.replace(path)
