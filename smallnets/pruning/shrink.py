"""Physical removal of channels that masks, or weights at zero, have made dead."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.pruning.channels import chosen_groups
from smallnets.pruning.groups import Group, Part, remove, silence
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import plain
from smallnets.pruning.trial import bare_copy


def shrink(
    net: nn.Module,
    masks: Masks | None = None,
    *,
    exclude: Sequence[str] = (),
    image_size: int = 32,
    in_channels: int = 3,
) -> nn.Module:
    """Removes the channels of `net` that contribute nothing to its logits, in place; returns `net`.

    A channel (of a group of coupled ones, or an attention head) goes when for every layer that reads it

    - all weights with which the layer reads it are 0, or
    - it arrives there as exactly 0, whatever the image: all filters that make it are 0, and what bias, BatchNorm and
      activation make of that 0 in evaluation mode is 0. A filter of zeros whose BatchNorm leaves a constant above 0
      behind the ReLU is not dead; it stays.

    What goes may leave other channels without a reader; they go too. A group keeps at least one.

    Law: the logits in evaluation mode are the same, up to the order in which the products of a sum are added: only
    terms that are exactly 0 are left out. This is tried on random images before `net` is touched.

    Args:
        masks: applied to the weights first, so that they end as mask x weight. They do not fit the network afterwards;
            unless kept weights are 0, `Masks({name: weight != 0})` of what is left does.
        exclude: patterns of layers whose channels stay, as in `prune_channels`.

    Raises:
        UserError: masks of another network, what `prune_channels` refuses of a network or pattern, or a network in
            which something else than convolutions and linear layers reads a dead channel; `net` is then as it was.
    """
    original = plain(net)
    work = bare_copy(original)
    if masks is not None:
        masks.apply_(work)
    image: dict[str, Any] = {"image_size": image_size, "in_channels": in_channels}
    groups = chosen_groups(work, exclude, **image)
    removed = _dead(copy.deepcopy(work), groups, **image)
    _require_same_logits(work, groups, removed, **image)
    if masks is not None:
        masks.apply_(original)
    remove(original, groups, removed)
    return net


def _dead(net: nn.Module, groups: Sequence[Group], image_size: int, in_channels: int) -> dict[int, list[int]]:
    """The dead units of each group of `net`, which is changed: what is found is silenced, and may kill others."""
    removed: dict[int, list[int]] = {number: [] for number in range(len(groups))}
    while True:
        state = net.state_dict()
        arriving = _arriving(net, groups, image_size, in_channels)
        found = {}
        for number, group in enumerate(groups):
            filters = [part for part in group.parts if part.role == "filter" and part.key.endswith(".weight")]
            made = ~_zero(state, filters, group.width)
            dead = torch.ones(group.width, dtype=torch.bool)
            for part in group.parts:
                if part.role == "input":
                    unread = _zero(state, [part], group.width)
                    silent = torch.zeros_like(dead)
                    if part.key in arriving:
                        silent = ~_any(arriving[part.key][part.index], part, group.width)
                    dead &= unread | (silent & ~made)
            dead[removed[number]] = False
            units = dead.nonzero().flatten().tolist()
            if len(units) + len(removed[number]) == group.width:
                units = units[1:]
            if units:
                found[number] = units
        if not found:
            return {number: sorted(units) for number, units in removed.items()}
        silence(net, groups, found)
        for number, units in found.items():
            removed[number] += units


def _any(flags: Tensor, part: Part, width: int) -> Tensor:
    """Which units have at least one of the part's entries set."""
    return torch.zeros(width, dtype=torch.long).index_add_(0, part.units, flags.cpu().long()) > 0


def _zero(state: dict[str, Tensor], parts: Sequence[Part], width: int) -> Tensor:
    """The units all of whose entries in `parts` are 0."""
    used = torch.zeros(width, dtype=torch.bool)
    for part in parts:
        each = (state[part.key] != 0).movedim(part.dim, 0).flatten(1).any(1).cpu()
        used |= _any(each[part.index], part, width)
    return ~used


def _arriving(net: nn.Module, groups: Sequence[Group], image_size: int, in_channels: int) -> dict[str, Tensor]:
    """Key of an input weight -> which of its layer's input channels are anywhere not 0, for one random image."""
    modules = dict(net.named_modules())
    seen: dict[str, Tensor] = {}
    handles = []

    def watch(key: str, linear: bool) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].movedim(-1 if linear else 1, 0).flatten(1)
            now = (values != 0).any(1)
            # A layer may be called several times.
            seen[key] = now | seen[key] if key in seen else now

        return hook

    for key, layer in {
        part.key: part.layer for group in groups for part in group.parts if part.role == "input"
    }.items():
        handles.append(modules[layer].register_forward_pre_hook(watch(key, isinstance(modules[layer], nn.Linear))))
    try:
        with torch.no_grad():
            net(_random_images(net, 2, image_size, in_channels))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _random_images(net: nn.Module, number: int, image_size: int, in_channels: int) -> Tensor:
    like = next(net.parameters())
    images = torch.randn(number, in_channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return images.to(device=like.device, dtype=like.dtype)


def _require_same_logits(
    net: nn.Module, groups: Sequence[Group], removed: dict[int, list[int]], image_size: int, in_channels: int
) -> None:
    """UserError unless a copy of `net` without `removed` gives the logits of `net`, on random images."""
    images = _random_images(net, 4, image_size, in_channels)
    with torch.no_grad():
        before = net(images)
        after = remove(copy.deepcopy(net), groups, removed)(images)
    # Half of the digits: sums are added in another order.
    allowed = torch.finfo(before.dtype).eps ** 0.5 * before.abs().max()
    if not bool((after - before).abs().max() <= allowed):
        names = ", ".join(groups[number].name for number, units in removed.items() if units)
        raise UserError(
            f"{type(net).__name__} does not give the same logits without its dead channels (of {names}): something else"
            " than a layer's weights reads them; leave them whole with exclude"
        )
