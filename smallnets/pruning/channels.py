"""Removal of a share of the channels of all groups."""

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from smallnets.errors import UserError
from smallnets.layers import QuaternionConv2d, QuaternionLinear
from smallnets.pruning.channel_scores import ChannelCriterion, channel_scores, check_criterion
from smallnets.pruning.criteria import Batches, Loss
from smallnets.pruning.groups import Group
from smallnets.pruning.prunable import plain
from smallnets.pruning.ranking import Scope, check_options, ranking, removed_by, steps_for_ratio
from smallnets.pruning.structured import channel_groups
from smallnets.pruning.trial import NoEffectWarning, checked_removal


def prune_channels(
    net: nn.Module,
    ratio: float,
    *,
    scope: Scope = "global",
    criterion: ChannelCriterion = "l1",
    exclude: Sequence[str] = (),
    multiple: int = 1,
    floor: int = 1,
    image_size: int = 32,
    in_channels: int = 3,
    seed: int = 0,
    batches: Batches | None = None,
    loss: Loss | None = None,
) -> nn.Module:
    """Removes the share `ratio` of the channels of `net`, in place; returns `net`.

    Channels that are coupled (layers whose outputs are added) are one, and go once: `structured.channel_groups` says
    which there are and what is left whole. Attention loses whole heads, each of which counts as one channel here.

    Laws:
        - scope "layer": each group loses exactly floor(ratio * its channels); scope "global": all groups together lose
          exactly floor(ratio * all their channels), those of lowest score, a group's scores being divided by their
          mean; among equal scores the earlier group and channel go. `ratio` is the decimal that is written.
        - A group that loses channels has at least `floor` left ("global": others give way; "layer": it loses
          fewer), and a multiple of `multiple` channels: counts to remove are rounded down to that.
        - The network is physically smaller. It gives the logits that it gave before when all that was removed was
          zero. Modes, `requires_grad` and hooks stay; layers that change have new parameters: build the optimizer
          afterwards. When an error is raised the network is as it was.

    Args:
        net: takes images (N, in_channels, image_size, image_size).
        ratio: from 0 to below 1.
        criterion: of `channel_scores`, whose `seed`, `batches` and `loss` these are.
        exclude: names or patterns of layers (`stages.0.*`); a group that has one of them as a layer that makes its
            channels stays whole.
        multiple: such as 8, for kernels that are fast at multiples.
        floor: least number of channels (heads) of a group.

    Raises:
        UserError: a number out of range, an unknown scope or criterion, a pattern that matches no layer, a ratio that
            the floors do not leave, no channels that can be removed, or what `channel_scores` and `channel_groups`
            refuse.

    Warns:
        NoEffectWarning: a ratio above 0 removes nothing.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise UserError(f"ratio must be a number from 0 to below 1, got {ratio!r}")
    check_options(scope, multiple, floor)
    check_criterion(criterion, batches, loss)
    image: dict[str, Any] = {"image_size": image_size, "in_channels": in_channels}
    original = plain(net)  # where torch.compile has wrapped it, names have a prefix
    groups = chosen_groups(original, exclude, **image)
    if not ratio:
        return net
    scores = channel_scores(original, groups, criterion, seed=seed, batches=batches, loss=loss)
    steps = steps_for_ratio(groups, ranking(groups, scores, scope, multiple, floor), ratio, scope, multiple, floor)
    if not steps:
        warnings.warn(f"ratio {ratio} removes no channel of {type(net).__name__}", NoEffectWarning, 2)
        return net
    return checked_removal(net, groups, removed_by(steps), **image)


def chosen_groups(net: nn.Module, exclude: Sequence[str], image_size: int, in_channels: int) -> list[Group]:
    """The groups of `net` without those that have a layer which a pattern of `exclude` matches.

    UserError for a pattern that matches no convolution or linear layer, or when no group is left.
    """
    if isinstance(exclude, str):
        raise UserError(f"exclude takes a list of patterns, got the string {exclude!r}")
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, QuaternionConv2d, QuaternionLinear)
    layers = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    for pattern in exclude:
        if not any(_fits(name, pattern) for name in layers):
            raise UserError(
                f"exclude: {pattern!r} matches none of the {len(layers)} convolutions and linear layers of"
                f" {type(net).__name__} ({', '.join(layers[:3])}, ...)"
            )
    groups = channel_groups(net, image_size, in_channels)
    left = [group for group in groups if not any(_fits(name, each) for name in group.layers for each in exclude)]
    if not left:
        raise UserError(f"exclude={list(exclude)} leaves none of the {len(groups)} groups of channels")
    return left


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
