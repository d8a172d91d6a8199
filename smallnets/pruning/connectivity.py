"""How alike trained networks and masks are: the error barrier between networks, and the overlap of masks with chance.

Linear mode connectivity (Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis").
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from smallnets.errors import UserError
from smallnets.pruning.lottery import Snapshot, restore_, snapshot
from smallnets.pruning.masks import Masks

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Barrier:
    """Errors on the line between two networks.

    Attributes:
        alphas: places on the line, from 0 (the first network) to 1 (the second).
        errors: the error there, in the unit that `evaluate` gives.
    """

    alphas: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def height(self) -> float:
        """The largest error on the line minus the mean of those at its ends: 0 or less means linearly connected."""
        return max(self.errors) - (self.errors[0] + self.errors[-1]) / 2


def error_barrier(
    net_a: nn.Module,
    net_b: nn.Module,
    evaluate: Evaluate,
    points: int = 11,
    recalibrate: Iterable[Tensor] | None = None,
) -> Barrier:
    """The error of (1 - alpha) a + alpha b at evenly spaced alphas (Frankle et al. 2020).

    Every floating-point parameter and buffer is interpolated, so running statistics too; counters are those of `a`.
    With `recalibrate` (batches of images, gone through once at each point) the running statistics are instead
    measured anew at each point, also at the ends, by cumulative averages: interpolated statistics fit no network in
    between, and a barrier without this may be theirs alone. Law: the ends of a line without it are the networks
    themselves, bitwise; both networks stay as they are.

    Args:
        evaluate: network -> error (the share of wrong predictions, or a loss). It gets a network in eval mode.
        points: how many places, with both ends.

    Raises:
        UserError: fewer than 3 points, or networks of other names or shapes.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise UserError(f"points must be a whole number, 3 or more, got {points!r}")
    a, b, between = snapshot(net_a), snapshot(net_b), copy.deepcopy(net_a)
    restore_(between, b)  # raises for another network
    batches = None if recalibrate is None else list(recalibrate)
    alphas = tuple(i / (points - 1) for i in range(points))
    errors = []
    for alpha in alphas:
        restore_(between, interpolated(a, b, alpha))
        if batches is not None:
            update_bn(batches, between)
        errors.append(float(evaluate(between.eval())))
    return Barrier(alphas, tuple(errors))


def interpolated(a: Snapshot, b: Snapshot, alpha: float) -> Snapshot:
    """(1 - alpha) a + alpha b of every floating-point tensor; of others `a`. Exactly `a` at 0 and `b` at 1."""
    if alpha == 0:
        return dict(a)
    return {
        name: (b[name] if alpha == 1 else torch.lerp(value, b[name].to(value.device), alpha))
        if value.is_floating_point()
        else value
        for name, value in a.items()
    }


def instability(
    net: nn.Module,
    train: Callable[[nn.Module, int], None],
    evaluate: Evaluate,
    seeds: tuple[int, int] = (1, 2),
    points: int = 11,
    recalibrate: Iterable[Tensor] | None = None,
) -> Barrier:
    """The barrier between two children of one network that differ in the order of their data (Frankle et al. 2020).

    Args:
        net: where both begin, at some step of its training; it stays as it is.
        train: trains a copy in place, with the order (and augmentation) of a seed.
    """
    children = [copy.deepcopy(net) for _ in seeds]
    for child, seed in zip(children, seeds, strict=True):
        train(child, seed)
    return error_barrier(children[0], children[1], evaluate, points, recalibrate)


@dataclass(frozen=True)
class Overlap:
    """Jaccard similarity of two masks, and what random masks of the same counts in each layer would have."""

    jaccard: float
    chance: float


def overlap(a: Masks, b: Masks) -> Overlap:
    """How much of two masks is common, beside chance.

    Of two random choices of x and y out of n weights, xy/n are expected to be common. With that sum over the layers as
    I, chance is I / (kept by a + kept by b - I): the quotient of the expectations, exact for large layers.

    Raises:
        UserError: masks of other layers or shapes.
    """
    jaccard = a.overlap(b)
    others = {layer.name: layer.kept for layer in b.layers}
    common = sum(layer.kept * others[layer.name] / layer.total for layer in a.layers)
    either = a.kept + b.kept - common
    return Overlap(jaccard, common / either if either else 1.0)
