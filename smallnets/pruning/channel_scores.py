"""Criteria for whole channels: one score for each unit of a group, of which the higher are kept.

A layer's score of a channel is taken over the filter that makes it (a row of the weight, without its bias; for an
attention head its rows of q, k and v); the score of a group of coupled layers is the mean of its layers' scores.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.pruning.criteria import Batches, Loss, taylor
from smallnets.pruning.groups import Group, Part
from smallnets.pruning.masks import Masks

ChannelCriterion = Literal["l1", "l2", "random", "bn_scale", "taylor", "fpgm"]
# Those that need nothing but the filters themselves.
FilterCriterion = Literal["l1", "l2", "random", "fpgm"]


def check_criterion(criterion: str, batches: Batches | None = None, loss: Loss | None = None) -> None:
    """UserError for a criterion that there is not, or one without the data that it needs."""
    if criterion not in get_args(ChannelCriterion):
        raise UserError(f"criterion must be one of {', '.join(get_args(ChannelCriterion))}, got {criterion!r}")
    if criterion == "taylor" and (batches is None or loss is None):
        raise UserError("criterion 'taylor' needs batches of (images, targets) and a loss")


def channel_scores(
    net: nn.Module,
    groups: Sequence[Group],
    criterion: ChannelCriterion = "l1",
    *,
    seed: int = 0,
    batches: Batches | None = None,
    loss: Loss | None = None,
) -> list[Tensor]:
    """For each group its units' scores, float64 on the CPU; `net` stays as it is.

    - "l1", "l2": norm of the filter (Li et al. 2017).
    - "random": uniform in [0, 1), a function of the seed and the groups' widths alone.
    - "bn_scale": |scale| of the batch norms that the channel goes through (Liu et al. 2017), averaged where there are
      several.
    - "taylor": sum of |w dL/dw| over the filter (Molchanov et al. 2019, there squared), for the mean of
      `loss(logits, targets)` over all images of `batches`.
    - "fpgm": sum of the distances to the layer's other filters (He et al. 2019, filter pruning via geometric median):
      filters near the geometric median can be replaced by the others.

    Raises:
        UserError: an unknown criterion, "taylor" without data, "bn_scale" for a group without a scaled batch norm,
            scores that are not finite.
    """
    check_criterion(criterion, batches, loss)
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(group.width, generator=generator, dtype=torch.float64) for group in groups]
    state = net.state_dict()
    if criterion == "taylor":
        assert batches is not None and loss is not None
        keys = list(dict.fromkeys(part.key for group in groups for part in _weights(group)))
        state = taylor(net, batches, loss, Masks.dense(net, include=keys)) if keys else {}
    found = []
    for group in groups:
        if criterion == "bn_scale":
            parts = [part for part in group.parts if part.role == "norm" and part.key.endswith(".weight")]
            if not parts:
                raise UserError(
                    f"criterion 'bn_scale': {group.name} has no batch norm with a scale behind it; exclude it, or take"
                    " another criterion"
                )
        else:
            parts = _weights(group)
        each = [_of_units(state[part.key], part, group.width, criterion) for part in parts]
        found.append(torch.stack(each).mean(0))
    for group, scores in zip(groups, found, strict=True):
        if not scores.isfinite().all():
            raise UserError(f"criterion {criterion!r}: the scores of {group.name} are not finite numbers")
    return found


def filter_scores(weight: Tensor, criterion: FilterCriterion, generator: torch.Generator) -> Tensor:
    """The scores of one layer's filters, `weight` of (channels, ...): float64 on the CPU."""
    if criterion == "random":
        return torch.rand(len(weight), generator=generator, dtype=torch.float64)
    return _scored(weight.detach().double().flatten(1), criterion)


def _weights(group: Group) -> list[Part]:
    return [part for part in group.parts if part.role == "filter" and part.key.endswith(".weight")]


def _of_units(tensor: Tensor, part: Part, width: int, criterion: str) -> Tensor:
    """Scores of a group's units by one layer; rows of one unit are put side by side."""
    rows = tensor.detach().double().index_select(part.dim, part.index.to(tensor.device))
    order = torch.sort(part.units, stable=True).indices.to(tensor.device)
    return _scored(rows[order].reshape(width, -1), criterion)


def _scored(filters: Tensor, criterion: str) -> Tensor:
    """Scores of (channels, weights of one)."""
    if criterion == "l2":
        return filters.square().sum(1).sqrt().cpu()
    if criterion == "fpgm":
        # By differences: distances through products would set equal filters apart by rounding.
        return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1).cpu()
    return filters.abs().sum(1).cpu()
