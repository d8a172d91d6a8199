"""Units of pruning: single weights, components of quaternion layers each by itself, whole quaternions.

A quaternion layer's weight is one tensor whose first quarter of rows is r, then i, j and k, and one mask of its shape
stands for it: criteria and `select` treat it as they treat any other weight. What is here is for the cases in which
the quarters matter.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear
from smallnets.pruning.criteria import Scores, magnitude
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import plain
from smallnets.pruning.select import Scope, select

Unit = Literal["weight", "component", "quaternion"]
PARTS = ("r", "i", "j", "k")
_MARK = ":"


def choose(
    net: nn.Module,
    scores: Mapping[str, Tensor],
    masks: Masks,
    unit: Unit,
    pick: Callable[[Scores, Masks], Masks],
    norm: bool = True,
) -> Masks:
    """What `pick` (`select` with some count) chooses by the scores of single weights, in units:

    - `weight`: single weights, a quaternion layer's as any other's;
    - `component`: r, i, j and k of a quaternion layer are four layers (document 003, where each loses its share);
    - `quaternion`: the four weights of a quaternion are kept or removed together. Their score is the Euclidean norm
      of the four (|q| for magnitudes) or, without `norm`, the sum. `pick` is asked twice: for the quaternions, and
      for the real layers that `masks` has (a real head), which are chosen among themselves.

    Law: with `quaternion` a mask's four components are equal; of a quaternion that `masks` has removed in part nothing
    is kept.

    Raises UserError for another unit, and for masks without a quaternion layer unless the unit is `weight`.
    """
    names = _quaternion(net, masks, unit)
    whole = (lambda each: each.norm(dim=0)) if norm else (lambda each: each.sum(0))
    parts = iter(_parts(scores, names, unit, whole))
    return by_unit(net, masks, unit, lambda now: pick(next(parts), now))


def by_unit(net: nn.Module, masks: Masks, unit: Unit, make: Callable[[Masks], Masks]) -> Masks:
    """Masks that `make` makes of those of each group of `units`; for what it makes, the law of `choose` holds."""
    names = _quaternion(net, masks, unit)
    if unit == "weight":
        return make(masks)
    found: dict[str, Tensor] = {}
    for group in units(net, masks, unit):
        found |= make(group)
    if unit == "component":
        found = dict(join(found))
    if unit == "quaternion":
        found |= {name: torch.cat([found[name]] * 4) for name in names}
    return Masks({name: found[name] for name in masks})


def units(net: nn.Module, masks: Masks, unit: Unit) -> list[Masks]:
    """The masks in units, as `choose` gives them to `pick`, one for each group that is chosen among itself.

    With `quaternion` a mask of quaternions is (outputs / 4, inputs / 4, ...), True where all four weights are kept.
    """
    names = _quaternion(net, masks, unit)
    if unit == "weight":
        return [masks]
    return [Masks(each) for each in _parts(masks, names, unit, lambda mask: mask.all(0))]


def _quaternion(net: nn.Module, masks: Masks, unit: Unit) -> list[str]:
    """The quaternion weights among the masks; UserError for a unit that there is not."""
    if unit not in get_args(Unit):
        raise UserError(f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}")
    names = [] if unit == "weight" else [name for name in quaternion_weights(net) if name in masks]
    if unit != "weight" and not names:
        raise UserError(f"unit {unit}: {type(plain(net)).__name__} has no quaternion weights to prune; leave it out")
    return names


def _parts(
    tensors: Mapping[str, Tensor], names: list[str], unit: Unit, whole: Callable[[Tensor], Tensor]
) -> list[dict[str, Tensor]]:
    """The tensors of each group; `whole` makes one of a quaternion layer's four components, stacked in front."""
    if unit == "component":
        return [_split(tensors, names)]
    if unit == "weight":
        return [dict(tensors)]
    quaternions = {name: whole(tensors[name].unflatten(0, (4, -1))) for name in tensors if name in names}
    return [each for each in (quaternions, {k: v for k, v in tensors.items() if k not in names}) if each]


def quaternion_weights(net: nn.Module) -> list[str]:
    """Names of the weights of quaternion layers."""
    kinds = (QuaternionConv2d, QuaternionLinear)
    return [f"{name}.weight" for name, module in plain(net).named_modules() if isinstance(module, kinds)]


def split(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Scores or masks by component: `conv1.weight` of a quaternion layer becomes `conv1.weight:r`, `:i`, `:j`, `:k`.

    `join(select(split(magnitude(net), net), density=0.7, scope="layer"))` prunes each component to the same density by
    itself, as `choose` does. Other weights pass unchanged.
    """
    return _split(tensors, quaternion_weights(net))


def _split(tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in names:
            found |= {f"{name}{_MARK}{part}": each for part, each in zip(PARTS, tensor.chunk(4), strict=True)}
        else:
            found[name] = tensor
    return found


def layer_of(name: str) -> str:
    """The weight that a component belongs to; any other name itself."""
    return name.partition(_MARK)[0]


def join(masks: Mapping[str, Tensor]) -> Masks:
    """The masks of whole weights from those of `split`'s names; UserError when a component is missing."""
    joined: dict[str, Tensor] = {}
    for name in masks:
        whole = layer_of(name)
        if whole != name and whole not in joined:
            parts = [masks.get(f"{whole}{_MARK}{each}") for each in PARTS]
            if any(each is None for each in parts):
                raise UserError(f"{whole}: there must be masks of all four components r, i, j and k")
            joined[whole] = torch.cat([each for each in parts if each is not None])
        elif whole == name:
            joined[name] = masks[name]
    return Masks(joined)


def select_quaternions(
    net: nn.Module, *, density: float, scope: Scope = "global", masks: Masks | None = None, **options: Any
) -> Masks:
    """Masks that keep or remove whole quaternions, those of highest norm kept: `choose` by magnitude.

    Quaternion layers compete among themselves, by |q|, and the real layers that `masks` has (a real head) among
    themselves, by |w|, each kind to the same density; the kept number of quaternions is exact. What `masks` has
    removed stays removed. `options` are those of `select`, in quaternions.

    Raises:
        UserError: no quaternion layer, and what `select` refuses.
    """
    masks = Masks.dense(net) if masks is None else masks

    def pick(scores: Scores, now: Masks) -> Masks:
        return select(scores, density=density, scope=scope, masks=now, **options)

    return choose(net, magnitude(net, masks), masks, "quaternion", pick)
