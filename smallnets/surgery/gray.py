"""Networks of another one: what the wrappers share, and real networks that are given the gray channel as well."""

import inspect
from typing import Any

from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.quaternion_blocks import AppendGray
from smallnets.models.networks import expand
from smallnets.models.spec import build, find_class, spec_of

# The constructor's arguments that follow the data: a wrapper has them itself.
OF_THE_DATA = ("num_classes", "in_channels", "image_size")


class WithGray(nn.Module):
    """A real network on images and their gray: (N, 3, H, W) -> logits (N, num_classes).

    `of`, a name or {"class_path": ..., "init_args": {...}}, is built for 4 channels, and `layers.AppendGray` makes
    the fourth: what document 003 compares quaternion networks with (`smallnets fit --model.net=gray_resnet18`).
    Raises UserError for images of other than 3 channels and for networks without `in_channels`.
    """

    prefix = "gray_"

    def __init__(
        self,
        of: str | dict[str, Any] = "resnet18",
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        if in_channels != 3:
            raise UserError(f"a gray channel is made of 3 channels, red, green and blue; got in_channels {in_channels}")
        self.net = real_network(of, num_classes, 4, image_size)
        self.of = of_spec(self.net)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
        self.gray = AppendGray()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.gray(images))


def real_network(of: str | dict[str, Any], num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The network that `of` names, for such images, newly initialised; UserError when there is none."""
    spec: dict[str, Any] = {"class_path": of} if isinstance(of, str) else of
    path, init_args = spec.get("class_path"), dict(spec.get("init_args") or {})
    if isinstance(path, str) and path and "." not in path:
        named = expand(path)
        path, init_args = named["class_path"], {**named["init_args"], **init_args}
    if not isinstance(path, str) or not path:
        raise UserError(f"of must be a network's name or hold its class_path, got {of!r}")
    given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    takes = inspect.signature(find_class(path)).parameters
    if "in_channels" not in takes and in_channels == 4:
        raise UserError(f"{path} has no in_channels, and so cannot be built for images with gray")
    return build({"class_path": path, "init_args": {**init_args, **{k: v for k, v in given.items() if k in takes}}})


def of_spec(net: nn.Module) -> dict[str, Any] | None:
    """The spec of a network without what follows the data; None for one that has no spec."""
    spec = spec_of(net)
    if spec is not None:
        spec["init_args"] = {k: v for k, v in spec["init_args"].items() if k not in OF_THE_DATA}
    return spec
