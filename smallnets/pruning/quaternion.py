"""Masks of quaternion weights by component and by whole quaternion.

A quaternion layer's weight is one tensor whose first quarter of rows is r, then i, j and k, and one mask of its shape
stands for it: criteria and `select` treat it as they treat any other weight. What is here is for the two cases in which
the quarters matter.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear
from smallnets.pruning.criteria import magnitude
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import plain
from smallnets.pruning.select import Scope, select

PARTS = ("r", "i", "j", "k")
_MARK = ":"


def quaternion_weights(net: nn.Module) -> list[str]:
    """Names of the weights of quaternion layers."""
    kinds = (QuaternionConv2d, QuaternionLinear)
    return [f"{name}.weight" for name, module in plain(net).named_modules() if isinstance(module, kinds)]


def split(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Scores or masks by component: `conv1.weight` of a quaternion layer becomes `conv1.weight:r`, `:i`, `:j`, `:k`.

    Document 003 prunes r, i, j and k each to the same density by itself:

        masks = join(select(split(magnitude(net), net), density=0.7, scope="layer"))

    and further `select(..., masks=Masks(split(masks, net)))`. Other weights pass unchanged.
    """
    quaternion = set(quaternion_weights(net))
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in quaternion:
            found |= {f"{name}{_MARK}{part}": each for part, each in zip(PARTS, tensor.chunk(4), strict=True)}
        else:
            found[name] = tensor
    return found


def join(masks: Mapping[str, Tensor]) -> Masks:
    """The masks of whole weights from those of `split`'s names; UserError when a component is missing."""
    joined: dict[str, Tensor] = {}
    for name in masks:
        whole, _, part = name.partition(_MARK)
        if part and whole not in joined:
            parts = [masks.get(f"{whole}{_MARK}{each}") for each in PARTS]
            if any(each is None for each in parts):
                raise UserError(f"{whole}: there must be masks of all four components r, i, j and k")
            joined[whole] = torch.cat([each for each in parts if each is not None])
        elif not part:
            joined[name] = masks[name]
    return Masks(joined)


def quaternion_norms(net: nn.Module, masks: Masks | None = None) -> dict[str, Tensor]:
    """Name -> |q| of each quaternion, (outputs / 4, inputs / 4, ...), of the quaternion layers that `masks` has.

    `masks` is what may be pruned, by default everything.
    """
    weights = (Masks.dense(net) if masks is None else masks).weights(net)
    chosen = [name for name in quaternion_weights(net) if name in weights]
    if not chosen:
        raise UserError(f"{type(net).__name__} has no quaternion weights to score")
    return {name: weights[name].detach().unflatten(0, (4, -1)).norm(dim=0) for name in chosen}


def select_quaternions(
    net: nn.Module, *, density: float, scope: Scope = "global", masks: Masks | None = None, **options: Any
) -> Masks:
    """Masks that keep or remove whole quaternions, those of highest norm kept.

    Quaternion layers compete among themselves, by |q|, and the real layers that `masks` has (a real head) among
    themselves, by |w|, each kind to the same density. Law: a mask's four components are equal, and the kept number
    of quaternions is exact. What `masks` has removed stays removed; of a quaternion that it has removed in part nothing
    is kept. `options` are those of `select`, in quaternions.

    Raises:
        UserError: no quaternion layer, and what `select` refuses.
    """
    masks = Masks.dense(net) if masks is None else masks
    norms = quaternion_norms(net, masks)
    alive = Masks({name: masks[name].unflatten(0, (4, -1)).all(0) for name in norms})
    chosen = select(norms, density=density, scope=scope, masks=alive, **options)
    found = {name: torch.cat([chosen[name]] * 4) for name in chosen}
    if real := [name for name in masks if name not in norms]:
        rest = Masks({name: masks[name] for name in real})
        found |= select(magnitude(net, rest), density=density, scope=scope, masks=rest, **options)
    return Masks({name: found[name] for name in masks})
