"""Names of converted networks: `quaternion_resnet18`, `gray_resnet18`."""

from typing import Any

from torch import nn

from smallnets.models import networks
from smallnets.models.spec import class_path
from smallnets.surgery.gray import WithGray
from smallnets.surgery.quaternion import Quaternion, to_quaternion

CONVERSIONS: dict[str, type[Quaternion] | type[WithGray]] = {cls.prefix: cls for cls in (Quaternion, WithGray)}


def split_name(name: str) -> tuple[type[nn.Module] | None, str]:
    """The conversion that a name begins with (None for a real network), and the name of the real network."""
    for prefix, cls in CONVERSIONS.items():
        if name.startswith(prefix):
            return cls, name.removeprefix(prefix)
    return None, name


def expand(name: str) -> dict[str, Any]:
    """As `models.expand`, also for converted networks and the two classes that convert."""
    cls, real = split_name(name)
    if cls is None:
        own = next((each for each in CONVERSIONS.values() if each.__name__ == name), None)
        return {"class_path": class_path(own), "init_args": {}} if own else networks.expand(name)
    networks.network(real)
    return {"class_path": class_path(cls), "init_args": {"of": real}}


def make(name: str, num_classes: int | None = None) -> nn.Module:
    """The named network, converted if its name says so, newly initialised. UserError for an unknown name."""
    cls, real = split_name(name)
    net = networks.make(real, num_classes)
    if cls is WithGray:
        return WithGray(real, net.num_classes)  # type: ignore[arg-type]
    return net if cls is None else to_quaternion(net)
