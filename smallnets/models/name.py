"""The name that a network goes by in rows and tables."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from smallnets.models.networks import NETWORKS
from smallnets.models.spec import class_path, spec_of

# These follow the data set and do not make it another network.
_OF_THE_DATA = ("num_classes", "in_channels", "image_size")


def name_of(net: nn.Module) -> str:
    """`resnet20` for a network with the numbers of that name, whatever its classes; else its class's name.

    A network that wraps another one says with which `prefix` and `of` which spec: `quaternion_resnet20`, as long as its
    other arguments are the defaults.
    """
    spec, cls = spec_of(net), type(net)
    if spec is not None and isinstance(prefix := getattr(cls, "prefix", None), str):
        of = spec["init_args"].get("of")
        if isinstance(of, dict) and _numbers(cls, {"of": of}) == _kept(spec["init_args"]) and (name := _known(of)):
            return prefix + name
    return _known(spec) or cls.__name__


def _known(spec: Mapping[str, Any] | None) -> str | None:
    """The name of a spec's network in the table, if it has one."""
    for name, entry in NETWORKS.items():
        if spec is not None and class_path(entry.cls) == spec["class_path"]:
            numbers = _numbers(entry.cls, entry.numbers)
            if numbers == _kept(_numbers(entry.cls, spec["init_args"])):
                return name
    return None


def _numbers(cls: type[nn.Module], given: Any) -> dict[str, Any]:
    """All constructor arguments of a named network: its own numbers over the defaults."""
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    return _kept({**defaults, **given})


def _kept(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: _lists(v) for k, v in arguments.items() if k not in _OF_THE_DATA}


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
