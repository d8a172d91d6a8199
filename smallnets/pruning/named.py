"""The criteria by name, and one pruning with any of them."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch.nn.functional as F
from torch import nn

from smallnets.errors import UserError
from smallnets.pruning.criteria import (
    Batches,
    Loss,
    Movement,
    Scores,
    gradient_magnitude,
    grasp,
    magnitude,
    random,
    synflow_scores,
    taylor,
)
from smallnets.pruning.masks import Masks
from smallnets.pruning.quaternion import Unit, choose
from smallnets.pruning.select import Scope, select, select_in_rounds


@dataclass(frozen=True)
class Inputs:
    """What a criterion may use besides the network and its masks; see `next_masks`."""

    batches: Batches = ()
    loss: Loss = F.cross_entropy
    seed: int = 0
    movement: Movement | None = None
    in_channels: int = 3
    image_size: int = 32


@dataclass(frozen=True)
class Criterion:
    """Scores of a network's masked layers, higher is kept.

    `needs` says what of `Inputs` it cannot do without. An `iterative` one is scored anew many times on the way to a
    density, each time under the masks so far. With `norm` a quaternion's score is the norm of its four weights', and
    their sum without.
    """

    scores: Callable[[nn.Module, Masks, Inputs], Scores]
    needs: Literal["nothing", "batches", "movement"] = "nothing"
    iterative: bool = False
    norm: bool = False


def _movement(net: nn.Module, masks: Masks, given: Inputs) -> Scores:
    assert given.movement is not None, "next_masks asks for it"
    return given.movement.scores()


# Further entries are taken like these, from Python and the command line.
CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(lambda net, masks, given: magnitude(net, masks), norm=True),
    "random": Criterion(lambda net, masks, given: random(net, masks, given.seed)),
    "gradient_magnitude": Criterion(
        lambda net, masks, given: gradient_magnitude(net, given.batches, given.loss, masks), "batches", norm=True
    ),
    "taylor": Criterion(lambda net, masks, given: taylor(net, given.batches, given.loss, masks), "batches"),
    "snip": Criterion(lambda net, masks, given: taylor(net, given.batches, given.loss, masks), "batches"),
    "grasp": Criterion(lambda net, masks, given: grasp(net, given.batches, given.loss, masks), "batches"),
    "synflow": Criterion(
        lambda net, masks, given: synflow_scores(net, masks, given.in_channels, given.image_size), iterative=True
    ),
    "movement": Criterion(_movement, "movement"),
}


def criterion_named(name: str) -> Criterion:
    """The entry of `CRITERIA`, or one's own by its dotted path: a `Criterion`, or a function of (net, masks, inputs).

    UserError, with the nearest names, for one that is not there.
    """
    if name not in CRITERIA and "." in str(name):
        return _imported(name)
    if name not in CRITERIA:
        near = difflib.get_close_matches(str(name), CRITERIA, n=2, cutoff=0.5) or list(CRITERIA)
        raise UserError(f"no criterion is called {name!r}; nearest: {', '.join(near)}")
    return CRITERIA[name]


def _imported(path: str) -> Criterion:
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"criterion {path} cannot be imported from here: {error}") from error
    if isinstance(found, Criterion):
        return found
    if not callable(found):
        raise UserError(f"criterion {path} must be a Criterion or a function of (net, masks, inputs), got {found!r}")
    return Criterion(found)


def check_unit(criterion: str, unit: Unit) -> None:
    """UserError for an iterative criterion with another unit than `weight`."""
    if unit != "weight" and criterion_named(criterion).iterative:
        raise UserError(f"{criterion} scores single weights, anew in rounds: it has no unit {unit}")


def next_masks(
    net: nn.Module,
    masks: Masks | None,
    criterion: str,
    density: float,
    *,
    scope: Scope = "global",
    densities: Literal["uniform", "erk"] | None = None,
    floor: int = 1,
    unit: Unit = "weight",
    batches: Batches = (),
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    movement: Movement | None = None,
    rounds: int = 100,
    in_channels: int = 3,
    image_size: int = 32,
) -> Masks:
    """The masks that a criterion gives at a lower density, in anybody's training loop:

        masks = next_masks(net, masks, "magnitude", 0.1)
        masks.apply_(net)          # and again after every step of the optimizer

    Laws: the kept count is exact, and what `masks` has removed stays removed (`select`); `net` is left as it is. With
    the unit `quaternion` the counts of quaternions and of real layers' weights are each exact.

    Args:
        masks: those in force, whose layers are pruned; None for a dense network and all its usual layers.
        criterion: a name of `CRITERIA`, or the dotted path of one's own.
        density: share of all weights of these layers to keep, of the dense total.
        scope, densities, floor: as in `select`, which counts in units.
        unit: `weight`; of a quaternion network also `component` or `quaternion` (`pruning.quaternion.choose`).
        batches, loss: for `gradient_magnitude`, `taylor` (`snip`) and `grasp`: (images, targets) as the network takes
            them, and the mean loss of (logits, targets).
        seed: of `random`.
        movement: for `movement`, the sums so far.
        rounds: of an iterative criterion (`synflow`); the others take their scores once.
        in_channels, image_size: of an image, for `synflow`.

    Raises:
        UserError: a name that is not in the table, what the criterion needs and did not get, a unit of another network
            or of an iterative criterion, or what `select` refuses.
    """
    chosen = criterion_named(criterion)
    check_unit(criterion, unit)
    if chosen.needs == "movement" and movement is None:
        raise UserError("the criterion movement needs the sums of a Movement that has seen training steps")
    listed = list(batches) if chosen.needs == "batches" else []
    if chosen.needs == "batches" and not listed:
        raise UserError(f"the criterion {criterion} needs batches of (images, targets)")
    given = Inputs(listed, loss, seed, movement, in_channels, image_size)
    masks = Masks.dense(net) if masks is None else masks
    if unit == "weight":
        return select_in_rounds(
            lambda now: chosen.scores(net, now, given), rounds if chosen.iterative else 1, masks, density=density,
            scope=scope, densities=densities, floor=floor,
        )  # fmt: skip

    def pick(scores: Scores, now: Masks) -> Masks:
        return select(scores, density=density, scope=scope, densities=densities, floor=floor, masks=now)

    return choose(net, chosen.scores(net, masks, given), masks, unit, pick, chosen.norm)
