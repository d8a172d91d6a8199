"""Groups of quaternion channels: what can be removed of a quaternion network, four real channels at a time.

A quaternion network is wired as the real network of the same widths, which the tracer knows. Its groups are found on
that one, and their places translated to the quaternion weights.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers import QuaternionBatchNorm2d, QuaternionConv2d, QuaternionLinear
from smallnets.pruning.groups import Group, Part, proven
from smallnets.surgery import Quaternion, fit_widths, to_quaternion
from smallnets.surgery.gray import real_network

_LAYERS = (QuaternionConv2d, QuaternionLinear)


def quaternion_groups(net: Quaternion, find: Callable[..., list[Group]], image_size: int | None = None) -> list[Group]:
    """The groups of quaternion channels of `net` that can be removed; `net` stays as it is.

    A unit of a group is a quaternion channel: four rows of every filter that makes it. `groups.remove`, `silence` and
    the scores of channels take them as any other groups. As for real networks, a group is there when removing its
    channels is shown, by numbers, to leave the network that has them at zero. Heads of attention and layers whose
    outputs are joined to others' (DenseNet) are left whole.

    Args:
        find: finds the groups of a real network, (net, image_size, in_channels) -> groups: `structured.channel_groups`.
        image_size: None is the network's own.

    Raises UserError for a network without such a group, or without a spec of the real one.
    """
    size = net.image_size if image_size is None else image_size
    channels = 4 if net.in_channels == 3 else net.in_channels
    head: Any = net.head
    with torch.random.fork_rng(devices=[]):  # what is built here draws nothing of the run's own
        real = real_twin(net)
        found = find(real, size, channels)
        # Shown on a quaternion network of these widths with BatchNorm: random numbers are no covariance to whiten by.
        plain = to_quaternion(real, head=head)
    there = [each for each in (_translated(group, plain) for group in found) if each is not None]
    images = torch.zeros(1, channels, size, size)
    names = {group.name for group in proven(plain, there, images)}
    groups = [_translated(group, net) for group in found if f"net.{group.name}" in names]
    if not groups:
        raise UserError(f"{type(net.net).__name__} has no quaternion channels that can be removed")
    return [group for group in groups if group is not None]


def real_twin(net: Quaternion) -> nn.Module:
    """The real network of the same widths, newly initialised."""
    if not hasattr(net, "of"):
        raise UserError(
            f"a {type(net.net).__name__} cannot be built from its attributes, so its channels are not known"
        )
    channels = 4 if net.in_channels == 3 else net.in_channels
    real = real_network(net.of, int(net.num_classes or 0), channels, net.image_size)
    shapes: dict[str, Tensor] = {}
    modules = dict(net.net.named_modules())
    for key, value in net.net.state_dict().items():
        layer, _, last = key.rpartition(".")
        module, shape = modules[layer], list(value.shape)
        if isinstance(module, _LAYERS) and last == "weight":
            shape[1] *= 4
        if isinstance(module, QuaternionBatchNorm2d):
            last = {"running_covariance": "running_var"}.get(last, last)
            shapes[f"{layer}.num_batches_tracked"] = torch.empty((), device="meta")
            key, shape = f"{layer}.{last}", [module.num_features]
        shapes[key] = torch.empty(shape, device="meta")
    return fit_widths(real, shapes)


def _translated(group: Group, net: Quaternion) -> Group | None:
    """A group of the real network's as one of quaternions; None where its channels are not the four of quaternions."""
    if group.size != 1 or group.width % 4:
        return None
    parts = []
    for part in group.parts:
        made = _part(part, net.net.get_submodule(part.layer), group.width // 4)
        if made is None:
            return None
        parts.append(made)
    layers = tuple(f"net.{layer}" for layer in group.layers)
    return Group(f"net.{group.name}", group.width // 4, layers, tuple(parts))


def _part(part: Part, module: Any, width: int) -> Part | None:
    """The same channels in the quaternion network's tensor; None where a quaternion's four lie in several units."""
    units, index, key = part.units % width, part.index, part.key
    inputs = isinstance(module, _LAYERS) and part.dim == 1
    table = isinstance(module, QuaternionBatchNorm2d) and key.endswith((".weight", ".running_var"))
    if inputs or table:
        quarter = module.weight.shape[1] if inputs else module.weight.shape[0]
        units, index = torch.stack([units, index % quarter]).unique(dim=1)
    else:
        quarter = _rows(module, part.dim) // 4
    # The four components of a quaternion stand a quarter apart, and must be of one unit.
    owners = torch.stack([units, index % quarter]).unique(dim=1)[1]
    if len(owners.unique()) != len(owners):
        return None
    if table:
        key = key.replace(".running_var", ".running_covariance")
    return replace(part, layer=f"net.{part.layer}", key=f"net.{key}", units=units, index=index)


def _rows(module: Any, dim: int) -> int:
    """Channels that a module has on its outputs (dim 0), or on the inputs of a real layer (dim 1)."""
    if isinstance(module, QuaternionBatchNorm2d):
        return module.num_features
    return module.weight.shape[dim]
