"""Pruning to a budget: the largest network along one ranking of the channels that keeps every limit."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.measure import Budget, Counts, count
from smallnets.pruning.channel_scores import ChannelCriterion, channel_scores, check_criterion
from smallnets.pruning.channels import chosen_groups
from smallnets.pruning.criteria import Batches, Loss
from smallnets.pruning.groups import Group, Removed, kept_entries, without
from smallnets.pruning.prunable import plain
from smallnets.pruning.ranking import Scope, check_options, ranking, removed_by
from smallnets.pruning.trial import NoEffectWarning, checked_removal
from smallnets.surgery.widths import fit_widths


def prune_to(
    net: nn.Module,
    budget: Budget,
    *,
    criterion: ChannelCriterion = "l1",
    scope: Scope = "global",
    exclude: Sequence[str] = (),
    multiple: int = 1,
    floor: int = 1,
    image_size: int = 32,
    in_channels: int = 3,
    seed: int = 0,
    batches: Batches | None = None,
    loss: Loss | None = None,
) -> nn.Module:
    """Removes as few channels of `net`, in place, as bring it within `budget`; returns `net`.

    The channels of all groups are ranked once (`ranking.ranking`: steps of one channel, or to the next `multiple`;
    scope "layer" narrows all groups alike, scope "global" takes the lowest scores of all). A beginning of that list is
    removed, the shortest that fits, found by bisection; counting is done on shapes, and channels are removed once, at
    the end.

    Laws:
        - The network is within every limit of the budget, and with one step fewer it would not be.
        - What else `prune_channels` promises. A network already within its budget loses nothing.

    Args:
        budget: upper limits; MACs are those of one image of (in_channels, image_size, image_size).
        others: as in `prune_channels`.

    Raises:
        UserError: a budget below the smallest network that `floor`, `multiple` and `exclude` leave, with that one's
            counts, or what `prune_channels` refuses; `net` is then as it was.

    Warns:
        NoEffectWarning: the network is within the budget as it is.
    """
    if not isinstance(budget, Budget):
        raise UserError(f"prune_to needs a Budget, such as Budget(parameters='1M'), got {budget!r}")
    check_options(scope, multiple, floor)
    check_criterion(criterion, batches, loss)
    image: dict[str, Any] = {"image_size": image_size, "in_channels": in_channels}
    dense = count(net, **image)
    if not budget.over(dense):
        limits = ", ".join(f"{name} {limit:,}" for name, limit in budget.limits().items())
        warnings.warn(f"{type(net).__name__} is within its budget ({limits}): nothing removed", NoEffectWarning, 2)
        return net
    original = plain(net)  # where torch.compile has wrapped it, names have a prefix
    groups = chosen_groups(original, exclude, **image)
    scores = channel_scores(original, groups, criterion, seed=seed, batches=batches, loss=loss)
    steps = ranking(groups, scores, scope, multiple, floor)
    counts_without = counter(original, groups, dense, budget, **image)

    def fits(length: int) -> bool:
        return not budget.over(counts_without(removed_by(steps[:length])))

    if not fits(len(steps)):
        least = counts_without(removed_by(steps))
        have = ", ".join(f"{name} {getattr(least, name):,}" for name in budget.limits())
        raise UserError(
            f"{type(net).__name__} cannot be pruned to its budget: the smallest network of floor {floor} and multiple"
            f" {multiple} has {have}; {'; '.join(budget.check(least))}"
        )
    low, high = 0, len(steps)  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return checked_removal(net, groups, removed_by(steps[:high]), **image)


def counter(
    net: nn.Module, groups: Sequence[Group], dense: Counts, budget: Budget, image_size: int, in_channels: int
) -> Callable[[Removed], Counts]:
    """What counts `net` would have without some units, exactly, without removing them; `layers` stays empty.

    Only the counts that `budget` limits are sure to be taken. The MACs of a convolution or a linear layer go with the
    entries of its weight, because the side of its map does not change; where other modules have MACs (attention), and
    for bytes of activations, a copy without values is counted.
    """
    state = net.state_dict(keep_vars=True)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    limits = budget.limits()
    modules = dict(net.named_modules())
    weights = {f"{layer.name}.weight" if layer.name else "weight": layer.macs for layer in dense.layers if layer.macs}
    direct = limits.keys().isdisjoint({"macs", "activation_bytes"}) or (
        "activation_bytes" not in limits
        and all(
            isinstance(modules[layer.name], (nn.Linear, nn.modules.conv._ConvNd))
            for layer in dense.layers
            if layer.macs
        )
    )
    bare = net if direct else copy.deepcopy(net).to("meta")
    stored = list({id(value): key for key, value in reversed(state.items())}.values())  # of a shared tensor the first
    trained = [key for key in stored if state[key].requires_grad]

    def narrowed(removed: Removed) -> dict[str, tuple[int, ...]]:
        sizes = {key: list(shape) for key, shape in shapes.items()}
        for (key, dim), stays in kept_entries(shapes, groups, removed).items():
            sizes[key][dim] = int(stays.count_nonzero())
        return {key: tuple(shape) for key, shape in sizes.items()}

    def counts(removed: Removed) -> Counts:
        sizes = narrowed(removed)
        found = dense
        if not direct:
            empty = {key: torch.empty(size, device="meta") for key, size in sizes.items()}
            found = count(fit_widths(bare, empty), image_size, in_channels)
        elif "macs" in limits:
            macs = sum(each * math.prod(sizes[key]) // math.prod(shapes[key]) for key, each in weights.items())
            found = replace(dense, macs=macs)
        nonzero = 0
        if "nonzero_parameters" in limits:
            left = without({key: value.detach() for key, value in state.items()}, groups, removed)
            nonzero = sum(int(left[key].count_nonzero()) for key in trained)
        return replace(
            found,
            parameters=sum(math.prod(sizes[key]) for key in trained),
            nonzero_parameters=nonzero,
            bytes=sum(math.prod(sizes[key]) * state[key].element_size() for key in stored),
            layers=(),
        )

    return counts
