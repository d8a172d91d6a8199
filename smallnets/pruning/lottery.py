"""Lottery tickets (Frankle and Carbin 2019) as functions: train, prune, rewind, in anybody's training loop.

A lottery has a round 0, the dense training, and `rounds` more. Between two rounds

    masks = plan.prune(net, masks, round)     # by the trained weights
    restore_(net, rewound)                    # every parameter and buffer of step k, which `snapshot` took
    masks.apply_(net)

and the ticket of the round is that pair: the masks, and the weights it starts from. It is trained with an empty
optimizer and a schedule that stands at step k, to the end of the schedule.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.pruning.criteria import Scores, magnitude, random
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import head_of, plain
from smallnets.pruning.quaternion import Unit, choose, layer_of, units
from smallnets.pruning.schedules import Time
from smallnets.pruning.select import Scope, kept_of, next_kept, select

Snapshot = dict[str, Tensor]
Criterion = Literal["magnitude", "random"]
Rewind = Literal["weights", "rate", "none"]


def snapshot(net: nn.Module) -> Snapshot:
    """Copies of every parameter and buffer (running statistics too), by name, where they are."""
    net = plain(net)
    with torch.no_grad():
        return {name: value.detach().clone() for name, value in _tensors(net)}


@torch.no_grad()
def restore_(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Writes a snapshot back, in place: afterwards `net` equals, bitwise, the network that it was taken of.

    Raises:
        UserError: the snapshot is of other names or shapes; nothing is changed then.
    """
    now = dict(_tensors(plain(net)))
    for name in now.keys() | state.keys():
        if name not in now or name not in state or now[name].shape != state[name].shape:
            raise UserError(
                f"{name}: the stored weights belong to another network than this {type(plain(net)).__name__}"
            )
    for name, value in now.items():
        value.copy_(state[name])


def _tensors(net: nn.Module) -> Any:
    return chain(net.named_parameters(), net.named_buffers())


@dataclass(frozen=True)
class LotteryPlan:
    """What a lottery does, and when: plain numbers, a function of nothing else.

    With T the steps of the dense training and k those of the rewind point, round 0 trains T steps and each later round
    T - k, from the place in its epochs where step k stands. So a fit of all rounds has

        epochs + rounds * (epochs - whole epochs before the rewind point)      epochs,

    of which the first of each later round lacks the images that were seen before step k.

    Law of counts: with `fraction` p a round leaves kept - ceil(p * kept) of all weights that have masks (scope
    `global`) or of each layer (scope `layer`), exactly; with `densities` round(density * total) of the dense count.
    Counts are in units: with `component` those of each component of a layer by itself; with `quaternion` those of a
    layer's quaternions, and with scope `global` of all quaternions, and of all weights of real layers.

    Args:
        rounds: how often is pruned; 1 or more.
        epochs: of the dense training, 1 or more.
        fraction: share of what is left that a round prunes, between 0 and 1; 0.2 if there are no densities.
        densities: share of all weights that each round keeps, one a round, falling; instead of `fraction`.
        criterion: what is kept: the largest magnitudes, or a random choice.
        scope: `global`: all layers compete; `layer`: each layer loses its share.
        head_rate_half: the network's last layer loses half the fraction (Frankle and Carbin 2019); with scope `layer`,
            and where that layer has a mask.
        rewind_to: the rewind point, `0it`, `500it`, `2ep`: before the end of the dense training.
        rewind: `weights` goes back to the weights and the schedule of that point; `rate` (Renda et al. 2020) keeps the
            trained weights and buffers and rewinds the schedule; `none` is fine-tuning: the weights stay and the rate
            is that of the last dense step. All three train the same number of steps.
        unit: what is kept or removed together: `weight`; of quaternion networks also `component` or `quaternion`
            (`pruning.quaternion.choose`).
        floor: units that every layer keeps at least, however few its share would be; with 0 a plan by which a layer
            would be emptied is refused.

    Raises:
        UserError: a number out of its range.
    """

    rounds: int
    epochs: int
    fraction: float | None = None
    densities: tuple[float, ...] | None = None
    criterion: Criterion = "magnitude"
    scope: Scope = "global"
    head_rate_half: bool = False
    rewind_to: str = "0it"
    rewind: Rewind = "weights"
    unit: Unit = "weight"
    floor: int = 0

    def __post_init__(self) -> None:
        for name, value in {"rounds": self.rounds, "epochs_per_round": self.epochs}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be a whole number, 1 or more, got {value!r}")
        for name, kind in {"criterion": Criterion, "scope": Scope, "rewind": Rewind, "unit": Unit}.items():
            if getattr(self, name) not in get_args(kind):
                raise UserError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if isinstance(self.floor, bool) or not isinstance(self.floor, int) or self.floor < 0:
            raise UserError(f"floor must be a whole number of weights, 0 or more, got {self.floor!r}")
        Time.parse(self.rewind_to)
        if self.densities is None:
            fraction = 0.2 if self.fraction is None else self.fraction
            if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
                raise UserError(f"fraction must lie between 0 and 1: the share that a round prunes, got {fraction!r}")
            object.__setattr__(self, "fraction", fraction)
        else:
            if self.fraction is not None:
                raise UserError(f"fraction {self.fraction} and densities exclude each other: give one of them")
            object.__setattr__(self, "densities", _falling(self.densities, self.rounds))
        if self.head_rate_half and (self.scope != "layer" or self.densities is not None):
            raise UserError(
                "head_rate_half goes with a fraction and scope layer: a global choice has no rate of a layer"
            )

    # -- when --------------------------------------------------------------------------------------------------------

    def rewind_step(self, steps_per_epoch: int) -> int:
        """The optimizer step k of the rewind point; UserError unless it is before the end of the dense training."""
        step, length = Time.parse(self.rewind_to).steps(steps_per_epoch), self.epochs * steps_per_epoch
        if step >= length:
            raise UserError(
                f"rewind_to={self.rewind_to} is step {step:,}: the dense training has {length:,} steps"
                f" ({self.epochs} epochs of {steps_per_epoch:,})"
            )
        return step

    def epochs_of_round(self, steps_per_epoch: int) -> int:
        """Epochs of each round after the dense one; the first may be a part of one."""
        return self.epochs - self.rewind_step(steps_per_epoch) // steps_per_epoch

    def epochs_in_all(self, steps_per_epoch: int, rounds: int | None = None) -> int:
        """Epochs of the dense training and of so many rounds, by default all."""
        rounds = self.rounds if rounds is None else rounds
        return self.epochs + rounds * self.epochs_of_round(steps_per_epoch)

    def locate(self, epoch: int, steps_per_epoch: int) -> tuple[int, int]:
        """(round, epoch of the dense training that it repeats) of an epoch of the fit, all from 0."""
        if epoch < self.epochs:
            return 0, epoch
        each = self.epochs_of_round(steps_per_epoch)
        number, within = divmod(epoch - self.epochs, each)
        return number + 1, self.epochs - each + within

    # -- what --------------------------------------------------------------------------------------------------------

    def check(self, net: nn.Module, masks: Masks) -> None:
        """UserError if some round would empty a layer of `net`, for masks as the lottery starts with.

        And for `head_rate_half` where the network's head has no mask.
        """
        head = self._head(net)
        if head is not None and head not in masks:
            raise UserError(f"head_rate_half: the network's head ({head}) has no mask; leave it out, or prune the head")
        for group in units(net, masks, self.unit):
            self._check(group, head)

    def _check(self, masks: Masks, head: str | None) -> None:
        what = "quaternions" if self.unit == "quaternion" else "weights"
        if self.scope == "global":
            kept = masks.kept
            for number in range(1, self.rounds + 1):
                kept = self._global_kept(kept, masks.total, number)
                if kept < len(masks) * self._least:
                    raise UserError(
                        f"round {number} would keep {kept:,} {what} of {len(masks)} layers, and some layer none: at"
                        f" least {'one' if self._least == 1 else self._least} each is needed"
                    )
            return
        for layer in masks.layers:
            kept = layer.kept
            for number in range(1, self.rounds + 1):
                kept = self._layer_kept(kept, layer.total, self._rate(layer.name, head), number)
                if kept < 1:
                    raise UserError(f"round {number} would remove all {layer.total:,} {what} of {layer.name}")

    def prune(self, net: nn.Module, masks: Masks, number: int, seed: int = 0) -> Masks:
        """The masks of round `number`, 1 or more, from the trained network and the masks of the round before.

        `seed` is that of the random criterion; by magnitude nothing is random.
        """
        scores = magnitude(net, masks) if self.criterion == "magnitude" else random(net, masks, seed)
        head = self._head(net)
        return choose(net, scores, masks, self.unit, lambda each, now: self._picked(each, now, number, head))

    def _picked(self, scores: Scores, masks: Masks, number: int, head: str | None) -> Masks:
        if self.scope == "global":
            kept = self._global_kept(masks.kept, masks.total, number)
            return select(scores, kept=kept, masks=masks, floor=self._least)
        counts = {
            each.name: self._layer_kept(each.kept, each.total, self._rate(each.name, head), number)
            for each in masks.layers
        }
        totals = {each.name: each.total for each in masks.layers}
        # The quotient names the count exactly: kept_of rounds it back.
        return select(scores, scope="layer", densities={n: counts[n] / totals[n] for n in counts}, masks=masks)

    def _global_kept(self, kept: int, total: int, number: int) -> int:
        if self.densities is not None:
            return min(kept, kept_of(total, self.densities[number - 1]))
        assert self.fraction is not None
        return next_kept(kept, self.fraction)

    def _layer_kept(self, kept: int, total: int, rate: float, number: int) -> int:
        share = next_kept(kept, rate) if self.densities is None else kept_of(total, self.densities[number - 1])
        return min(kept, max(self.floor, share))

    @property
    def _least(self) -> int:
        """A global choice never empties a layer."""
        return max(1, self.floor)

    def _head(self, net: nn.Module) -> str | None:
        """The weight that loses half the fraction; None for no such."""
        return head_of(net) if self.head_rate_half else None

    def _rate(self, name: str, head: str | None) -> float:
        rate = self.fraction or 0.0
        return rate / 2 if layer_of(name) == head else rate

    def as_plain(self) -> dict[str, Any]:
        """Plain data, for checkpoints and rows."""
        plain_data = asdict(self)
        return {**plain_data, "densities": None if self.densities is None else list(self.densities)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "LotteryPlan":
        """The plan of `as_plain`."""
        densities = data["densities"]
        return cls(**{**data, "densities": None if densities is None else tuple(densities)})


def _falling(densities: Any, rounds: int) -> tuple[float, ...]:
    if isinstance(densities, (str, int, float)) or len(densities) != rounds:
        raise UserError(f"densities must be {rounds} numbers, one for each round, got {densities!r}")
    before = 1.0
    for density in densities:
        if isinstance(density, bool) or not isinstance(density, (int, float)) or math.isnan(density):
            raise UserError(f"densities must be numbers between 0 and 1, got {density!r}")
        if not 0 < density < 1:
            raise UserError(f"densities must lie between 0 and 1: shares that are kept, got {density}")
        if density >= before:
            raise UserError(f"densities must fall: {density} comes after {before}")
        before = density
    return tuple(float(each) for each in densities)
