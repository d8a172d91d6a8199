"""The name that a network goes by in rows and tables."""

import inspect
from typing import Any

from torch import nn

from smallnets.models.networks import NETWORKS
from smallnets.models.spec import spec_of

# These follow the data set and do not make it another network.
_OF_THE_DATA = ("num_classes", "in_channels", "image_size")


def name_of(net: nn.Module) -> str:
    """`resnet20` for a network with the numbers of that name, whatever its classes; else its class's name."""
    spec = spec_of(net)
    for name, entry in NETWORKS.items():
        if (
            spec is not None
            and entry.cls is type(net)
            and _numbers(entry.cls, entry.numbers) == _kept(spec["init_args"])
        ):
            return name
    return type(net).__name__


def _numbers(cls: type[nn.Module], given: Any) -> dict[str, Any]:
    """All constructor arguments of a named network: its own numbers over the defaults."""
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    return _kept({**defaults, **given})


def _kept(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: _lists(v) for k, v in arguments.items() if k not in _OF_THE_DATA}


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
