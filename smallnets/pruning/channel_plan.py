"""Removing channels in rounds: how far each round goes, in anybody's training loop.

    plan = ChannelPlan(ratio=0.5, rounds=3)
    whole = plan.measure(net)                     # of the network before the first round: plain data
    for number in (1, 2, 3):
        train(net)
        plan.prune(net, number, whole)            # build the optimizer anew

The last round ends exactly where one removal of that ratio, or to that budget, ends.
"""

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, cast, get_args

from torch import nn

from smallnets.errors import UserError
from smallnets.layers.arguments import whole as check_whole
from smallnets.measure import Budget, count
from smallnets.models.spec import build, spec_of
from smallnets.pruning.channel_scores import ChannelCriterion, FilterCriterion, channel_scores, check_criterion
from smallnets.pruning.channels import chosen_groups
from smallnets.pruning.criteria import Batches, Loss
from smallnets.pruning.groups import Group
from smallnets.pruning.narrow import fresh_like, narrow
from smallnets.pruning.prunable import plain
from smallnets.pruning.ranking import Scope, Step, check_options, longest_within, ranking, removed_by, what_lets_go
from smallnets.pruning.structured import check_request, prune_layers
from smallnets.pruning.to_budget import prune_to
from smallnets.pruning.trial import NoEffectWarning, checked_removal
from smallnets.surgery.widths import fit_widths

Curve = Literal["linear", "geometric"]
Control = Literal["scratch", "narrow"]
# The network before the first round: units of each group, or the counts that the budget limits.
Whole = Mapping[str, int]


@dataclass(frozen=True)
class ChannelPlan:
    """What a network loses, and how much of it in each of `rounds` rounds.

    One of three requests: `ratios` (layer by layer, `prune_layers`; one round), `ratio` (`prune_channels`) or `budget`
    (`prune_to`). After round k of n, with x = k / n:

    - ratio, linear: the share ratio * x of the channels that the whole network had is gone; geometric:
      1 - (1 - ratio)^x, so that each round removes the same share of what is left.
    - budget, for each limit, which the whole network's count is over: linear: the network is within
      limit + (count - limit) (1 - x), rounded down; geometric: limit * (count / limit)^(1 - x), rounded down.

    Laws:
        - After round k, scope "global": exactly floor(share * channels of all groups of the whole network) are gone, of
          lowest score among those that are left; scope "layer": of each group floor(share * its channels). `multiple`
          and `floor` act as in `prune_channels`. The share of a linear plan is an exact fraction; that of a geometric
          one is rounded to twelve decimals before the last round.
        - The last round ends at the ratio or the budget itself. One round equals `prune_channels` or `prune_to`.

    Raises:
        UserError: not one request of the three, a number out of range, rounds of `ratios`, an option that `ratios` does
            not take.
    """

    ratios: Mapping[str, float] | None = None
    ratio: float | None = None
    budget: Budget | None = None
    criterion: ChannelCriterion = "l1"
    scope: Scope = "global"
    multiple: int = 1
    floor: int = 1
    exclude: tuple[str, ...] = field(default=())
    rounds: int = 1
    curve: Curve = "linear"

    def __post_init__(self) -> None:
        given = [name for name in ("ratios", "ratio", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            came = " and ".join(given) or "none"
            raise UserError(f"channels are removed by one of ratios, ratio and a budget, got {came}")
        check_options(self.scope, self.multiple, self.floor)
        check_whole("rounds", self.rounds)
        if self.curve not in get_args(Curve):
            raise UserError(f"curve must be one of {', '.join(get_args(Curve))}, got {self.curve!r}")
        if self.ratios is not None:
            check_request(self.ratios, self.criterion)
            usual = {"scope": "global", "multiple": 1, "floor": 1, "exclude": (), "rounds": 1}
            if odd := [name for name, value in usual.items() if getattr(self, name) != value]:
                raise UserError(f"ratios name layers and are removed at once: they take no {odd[0]}; ratio does")
            return
        if self.criterion not in get_args(ChannelCriterion):
            check_criterion(self.criterion)
        if self.ratio is not None and (
            isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)) or not 0 <= self.ratio < 1
        ):
            raise UserError(f"ratio must be a number from 0 to below 1, got {self.ratio!r}")

    @property
    def needs_data(self) -> bool:
        """Whether the criterion looks at training images."""
        return self.criterion == "taylor"

    def measure(self, net: nn.Module, image_size: int = 32, in_channels: int = 3) -> dict[str, int]:
        """What `prune` has to know of the network before the first round."""
        if self.ratio is not None:
            return {
                group.name: group.width for group in chosen_groups(plain(net), self.exclude, image_size, in_channels)
            }
        if self.budget is not None:
            counts = count(plain(net), image_size, in_channels)
            return {name: getattr(counts, name) for name in self.budget.limits()}
        return {}

    def share_after(self, number: int) -> Fraction:
        """Share of the channels that is gone after round `number`."""
        ratio = Fraction(str(self.ratio))
        if number == self.rounds:
            return ratio
        if self.curve == "linear":
            return ratio * number / self.rounds
        return Fraction(str(round(1 - float(1 - ratio) ** (number / self.rounds), 12)))

    def budget_after(self, number: int, whole: Whole) -> Budget:
        """The budget that the network is within after round `number`."""
        assert self.budget is not None
        left = Fraction(self.rounds - number, self.rounds)
        limits = {}
        for name, limit in self.budget.limits().items():
            above = max(0, whole[name] - limit)
            if self.curve == "linear":
                limits[name] = limit + math.floor(above * left)
            else:
                limits[name] = math.floor(limit * (1 + above / limit) ** float(left)) if left else limit
        return Budget(**cast(Any, limits))

    def prune(
        self,
        net: nn.Module,
        number: int,
        whole: Whole,
        *,
        image_size: int = 32,
        in_channels: int = 3,
        seed: int = 0,
        batches: Batches | None = None,
        loss: Loss | None = None,
    ) -> nn.Module:
        """Removes, in place, what goes in round `number` (1 is the first); returns `net`.

        Laws, warnings and errors are those of the three functions; a round before the last never warns.
        """
        image: dict[str, Any] = {"image_size": image_size, "in_channels": in_channels}
        data: dict[str, Any] = {"seed": seed, "batches": batches, "loss": loss}
        with warnings.catch_warnings():
            if number < self.rounds:
                warnings.simplefilter("ignore", NoEffectWarning)
            if self.ratios is not None:
                return prune_layers(net, self.ratios, cast(FilterCriterion, self.criterion), seed=seed, **image)
            if self.budget is not None:
                return prune_to(
                    net, self.budget_after(number, whole), criterion=self.criterion, scope=self.scope,
                    exclude=self.exclude, multiple=self.multiple, floor=self.floor, **data, **image,
                )  # fmt: skip
            return self._by_ratio(net, number, whole, image, data)

    def _by_ratio(
        self, net: nn.Module, number: int, whole: Whole, image: dict[str, Any], data: dict[str, Any]
    ) -> nn.Module:
        check_criterion(self.criterion, data["batches"], data["loss"])
        original = plain(net)
        groups = chosen_groups(original, self.exclude, **image)
        share = self.share_after(number)
        if not share:
            return net
        scores = channel_scores(original, groups, self.criterion, **data)
        steps = self._taken(groups, ranking(groups, scores, self.scope, self.multiple, self.floor), share, whole)
        if not steps:
            said = f"round {number} at share {float(share):.4g} removes no channel of {type(original).__name__}"
            warnings.warn(said, NoEffectWarning, 3)
            return net
        return checked_removal(net, groups, removed_by(steps), **image)

    def _taken(self, groups: list[Group], steps: list[Step], share: Fraction, whole: Whole) -> list[Step]:
        """The steps that lead to `share` of the whole network's units, some of which are gone already."""
        now = {group.name: group.width for group in groups}
        # A group of which one unit is left can lose nothing more, and is no longer among the groups.
        gone = {name: width - now.get(name, 1) for name, width in whole.items()}
        if self.scope == "layer":
            return [
                step
                for step in steps
                if gone[(name := groups[step.group].name)] + step.after * now[name] <= share * whole[name]
            ]
        wanted = math.floor(share * sum(whole.values())) - sum(gone.values())
        there = sum(len(step.units) for step in steps)
        if there < wanted:
            raise UserError(
                f"{wanted:,} of {sum(now.values()):,} channels are to go;"
                f" {what_lets_go(self.multiple, self.floor)} {there:,} go"
            )
        return longest_within(steps, wanted)

    def check(self, net: nn.Module, image_size: int = 32, in_channels: int = 3, seed: int = 0) -> nn.Module:
        """A copy of `net` pruned to the end at once, by random scores where the criterion needs data.

        What it raises, the rounds would: a pattern that matches nothing, a budget that cannot be kept, a network that
        cannot be followed. Which channels go, and with them the counts of a ratio, may be others after training.
        """
        once = replace(self, rounds=1, criterion="random" if self.needs_data else self.criterion)
        trial = copy.deepcopy(plain(net))
        image: dict[str, Any] = {"image_size": image_size, "in_channels": in_channels}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            return once.prune(trial, 1, once.measure(trial, **image), seed=seed, **image)


def start_control(
    net: nn.Module, pruned: nn.Module, control: Control, image_size: int = 32, in_channels: int = 3, seed: int = 0
) -> nn.Module:
    """Makes `net`, in place, the freshly initialised control of `pruned`, a pruned network of its class; returns `net`.

    "scratch" has the widths of `pruned` (Liu et al. 2019, "Rethinking the value of network pruning": `fresh_like`);
    "narrow" is the unpruned network narrowed uniformly, to no more parameters than `pruned` has (`narrow`).

    Raises UserError for what `fresh_like`, `narrow` and `fit_widths` refuse.
    """
    original = plain(net)
    if control == "scratch":
        fresh = fresh_like(pruned, seed)
    else:
        spec = spec_of(original)
        if spec is None:
            raise UserError(
                f"{type(original).__name__} does not keep its constructor's arguments: it cannot be narrowed"
            )
        image: dict[str, Any] = {"image_size": image_size, "in_channels": in_channels}
        limit = Budget(parameters=count(plain(pruned), **image).parameters)
        fresh = narrow(build(spec), limit, seed=seed, **image)
    state = fresh.state_dict()
    fit_widths(original, state).load_state_dict(state)
    return net
