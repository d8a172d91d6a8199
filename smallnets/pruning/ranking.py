"""The order in which channels of all groups go: one list of steps, of which every pruning removes a beginning."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from smallnets.errors import UserError
from smallnets.layers.arguments import whole
from smallnets.pruning.groups import Group

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Step:
    """The units that one group loses next; `after` is the share of its units that is then gone."""

    group: int
    units: tuple[int, ...]
    after: Fraction


def check_options(scope: Any, multiple: Any, floor: Any) -> None:
    """UserError for options that `ranking` would refuse whatever the network."""
    if scope not in get_args(Scope):
        raise UserError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
    whole("multiple", multiple)
    whole("floor", floor)


def ranking(
    groups: Sequence[Group], scores: Sequence[Tensor], scope: Scope = "global", multiple: int = 1, floor: int = 1
) -> list[Step]:
    """All that may be removed of `groups`, in the order in which it goes.

    In each group the units of lowest score go first, among equal ones the first. A step is one unit, or as many as lead
    to the next width that is a multiple of `multiple` channels; a group that loses nothing may have any width. None
    goes below `floor` units.

    The groups' steps are merged: with scope "layer" by the share of its group that is gone after a step, so that all
    groups become narrower alike; with scope "global" by score, where a group's scores are divided by their mean (and a
    step counts with the mean of its units), because norms of filters of different sizes cannot be compared. Among equal
    steps the earlier group's comes first.
    """
    check_options(scope, multiple, floor)
    keyed: list[tuple[Any, Step]] = []
    for number, (group, each) in enumerate(zip(groups, scores, strict=True)):
        order = torch.sort(each, stable=True).indices.tolist()
        mean = float(each.mean())
        relative = (each / mean if mean > 0 else each).tolist()
        stride = multiple // math.gcd(multiple, group.size)
        highest = -math.inf
        kept = group.width
        while (narrower := (kept - 1) // stride * stride) >= floor:
            units = tuple(order[group.width - kept : group.width - narrower])
            kept = narrower
            after = Fraction(group.width - kept, group.width)
            # Rounding of means must not turn a group's own order around.
            highest = max(highest, math.fsum(relative[unit] for unit in units) / len(units))
            keyed.append((after if scope == "layer" else highest, Step(number, units, after)))
    return [step for _, step in sorted(keyed, key=lambda pair: (pair[0], pair[1].group, pair[1].after))]


def removed_by(steps: Sequence[Step]) -> dict[int, list[int]]:
    """The units that each group has lost after `steps`, ascending."""
    removed: dict[int, list[int]] = {}
    for step in steps:
        removed.setdefault(step.group, []).extend(step.units)
    return {number: sorted(units) for number, units in sorted(removed.items())}


def steps_for_ratio(
    groups: Sequence[Group], steps: Sequence[Step], ratio: float, scope: Scope, multiple: int = 1, floor: int = 1
) -> list[Step]:
    """The beginning of `steps` that removes the share `ratio`, the decimal that is written, of all units.

    With scope "layer": of each group the most that is no more than its share. With scope "global": the longest
    beginning that removes no more than floor(ratio * all units). Where a step is one unit, the counts are exact.

    Raises UserError when `floor` and `multiple`, those that `steps` were made with, leave less than a "global" ratio
    asks for.
    """
    share = Fraction(str(ratio))
    if scope == "layer":
        return [step for step in steps if step.after <= share]
    wanted = math.floor(share * sum(group.width for group in groups))
    there = sum(len(step.units) for step in steps)
    if there < wanted:
        raise UserError(
            f"ratio {ratio} is {wanted:,} of {sum(group.width for group in groups):,} channels;"
            f" {what_lets_go(multiple, floor)} {there:,} go"
        )
    return longest_within(steps, wanted)


def what_lets_go(multiple: int, floor: int) -> str:
    """The beginning of the sentence "the floor of 4 lets 32 go"."""
    if multiple == 1:
        return f"the floor of {floor} lets"
    return f"widths in multiples of {multiple} and the floor of {floor} let"


def longest_within(steps: Sequence[Step], wanted: int) -> list[Step]:
    """The longest beginning of `steps` that removes no more than `wanted` units."""
    gone = itertools.accumulate(len(step.units) for step in steps)
    return list(steps[: bisect.bisect_right(list(gone), wanted)])
