"""Groups of coupled channels as values: where each channel of a network is stored, and the network without some."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from smallnets.models.vit import Attention
from smallnets.surgery.widths import fit_widths

Role = Literal["filter", "norm", "input"]
Removed = Mapping[int, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Part:
    """One tensor in which channels of a group are stored: entry `index[i]` of dimension `dim` belongs to `units[i]`.

    `role` tells a filter that makes the channel (weight and bias), a norm that scales it, and an input weight that
    reads it. `key` is the tensor's name in the state dict, `layer` the module's.
    """

    layer: str
    key: str
    dim: int
    role: Role
    units: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that can only be removed together with those of every layer that is coupled to it.

    A unit is a channel, or an attention head (`size` channels of each of q, k and v); `width` is the number of units.
    `layers` are those whose filters make the units, and `name` is the first of them.
    """

    name: str
    width: int
    layers: tuple[str, ...]
    parts: tuple[Part, ...]
    size: int = 1


def head_groups(net: nn.Module) -> Iterator[Group]:
    """The heads of every attention of this package, each layer a group; those of one head only have none."""
    for name, module in net.named_modules():
        if not isinstance(module, Attention) or not isinstance(module.qkv, nn.Linear) or module.heads < 2:
            continue
        heads, size = module.heads, module.head_width
        channels = torch.arange(heads * size)
        rows = torch.cat([channels + i * heads * size for i in range(3)])
        layer = f"{name}.qkv"
        parts = [Part(layer, f"{layer}.weight", 0, "filter", (channels // size).repeat(3), rows)]
        if module.qkv.bias is not None:
            parts.append(Part(layer, f"{layer}.bias", 0, "filter", (channels // size).repeat(3), rows))
        project = f"{name}.project"
        parts.append(Part(project, f"{project}.weight", 1, "input", channels // size, channels))
        yield Group(layer, heads, (layer,), tuple(parts), size)


def kept_entries(
    shapes: Mapping[str, Sequence[int]], groups: Sequence[Group], removed: Removed
) -> dict[tuple[str, int], Tensor]:
    """(key, dim) -> bool tensor of what stays of that dimension, for each that loses something.

    `removed` maps the number of a group to the units that it loses.
    """
    kept: dict[tuple[str, int], Tensor] = {}
    for number, units in removed.items():
        if not len(units):
            continue
        gone = torch.zeros(groups[number].width, dtype=torch.bool)
        gone[list(units)] = True
        for part in groups[number].parts:
            where = part.key, part.dim
            if where not in kept:
                kept[where] = torch.ones(shapes[part.key][part.dim], dtype=torch.bool)
            kept[where][part.index[gone[part.units]]] = False
    return kept


def without(state: Mapping[str, Tensor], groups: Sequence[Group], removed: Removed) -> dict[str, Tensor]:
    """The state dict of the network without the units in `removed`; values of what stays are those of `state`."""
    narrow = dict(state)
    shapes = {key: value.shape for key, value in state.items()}
    for (key, dim), stays in kept_entries(shapes, groups, removed).items():
        narrow[key] = narrow[key].index_select(dim, stays.nonzero().squeeze(1).to(narrow[key].device))
    return narrow


def remove(net: nn.Module, groups: Sequence[Group], removed: Removed) -> nn.Module:
    """Removes units of `net`, physically and in place; returns `net`."""
    state = without(net.state_dict(), groups, removed)
    fit_widths(net, state).load_state_dict(state)
    return net


@torch.no_grad()
def silence(net: nn.Module, groups: Sequence[Group], removed: Removed) -> nn.Module:
    """Sets to 0 all that makes, scales or reads the units in `removed`, in place; returns `net`."""
    state = net.state_dict()
    for number, units in removed.items():
        gone = torch.zeros(groups[number].width, dtype=torch.bool)
        gone[list(units)] = True
        for part in groups[number].parts:
            # A variance of 0 is divided by; with a scale of 0 its value does not matter.
            if not part.key.endswith("running_var"):
                index = part.index[gone[part.units]].to(state[part.key].device)
                state[part.key].index_fill_(part.dim, index, 0.0)
    return net


def proven(net: nn.Module, groups: Sequence[Group], images: Tensor) -> list[Group]:
    """Those of `groups` for which removing units of a copy of `net` gives the logits that silencing them gives.

    A tracer takes operations that it does not know for elementwise ones: an attention of another package, channels
    that are normalised together. Numbers tell, whatever the operation. The copy has random weights, so that nothing
    that training or initialisation set to 0 hides a difference; half of the units of every group go at once, and
    group by group only where that shows a difference.
    """
    shaken = _shaken(copy.deepcopy(net))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *images.shape[1:], generator=generator).to(images.device)
    halves = {
        number: torch.randperm(group.width, generator=generator)[: group.width // 2].tolist()
        for number, group in enumerate(groups)
    }

    def agrees(numbers: Iterable[int]) -> bool:
        removed = {number: halves[number] for number in numbers}
        try:
            with torch.no_grad():
                narrow = remove(copy.deepcopy(shaken), groups, removed)(images)
                full = silence(copy.deepcopy(shaken), groups, removed)(images)
        except Exception:  # whatever the code of a user's network raises on widths that it cannot take
            return False
        # Far above rounding, far below what a wrong channel changes.
        return full.shape == narrow.shape and bool((narrow - full).abs().max() <= 1e-2 * full.abs().max())

    numbers = list(range(len(groups)))
    if agrees(numbers):
        return list(groups)
    numbers = [number for number in numbers if agrees([number])]
    return [groups[number] for number in numbers] if agrees(numbers) else []


@torch.no_grad()
def _shaken(net: nn.Module) -> nn.Module:
    """The network in evaluation mode and single precision, with random values of a usual size."""
    generator = torch.Generator().manual_seed(0)
    net = net.float().eval()
    for value in [*net.parameters(), *net.buffers()]:
        if value.is_floating_point():
            if value.dim() > 1:
                drawn = torch.randn(value.shape, generator=generator) * (len(value) / value.numel()) ** 0.5
            else:
                drawn = torch.rand(value.shape, generator=generator) + 0.5
            value.copy_(drawn)
    return net
