"""Accuracy against the share removed: one trained network, pruned once at each of many fractions (document 000)."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.pruning.channels import prune_channels
from smallnets.pruning.criteria import magnitude
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import plain
from smallnets.pruning.select import select

Method = Literal["layer", "global", "inputs", "channels"]
METHODS: tuple[str, ...] = get_args(Method)


def pruned_copy(net: nn.Module, fraction: float, method: Method, image_size: int = 32, in_channels: int = 3) -> Any:
    """A copy of `net` without the share `fraction` of what `method` removes; (copy, its masks or None).

    All by the smallest L1 norm, in convolutions alone (document 000 leaves the linear head whole), or in linear layers
    where the network has no convolution:

    - `layer`: weights, in every layer the same share;
    - `global`: weights, over all layers together;
    - `inputs`: whole input channels of each layer, by masks, round(fraction * channels) of each. This is what the
      document calls structured (`ln_structured` along dimension 1): shapes stay, sums of layers are not respected;
    - `channels`: output channels with all that belongs to them (`prune_channels`, scope "layer"): the copy is smaller.
      Every group keeps at least one channel.

    At fraction 1 the masked methods remove everything. Raises UserError for a fraction outside 0 to 1, or a method that
    is not one of these.
    """
    if method not in METHODS:
        raise UserError(f"a curve's method is one of {', '.join(METHODS)}, not {method!r}")
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise UserError(f"a fraction to remove lies in 0..1, got {fraction!r}")
    work = copy.deepcopy(plain(net))
    if method == "channels":
        # A share of 1 would leave no network: what the floor of one channel leaves is the end of this curve.
        share = min(fraction, 1 - 1e-9)
        return prune_channels(work, share, scope="layer", image_size=image_size, in_channels=in_channels), None
    names = _weights(work)
    if method == "inputs":
        masks = Masks({name: _inputs_kept(work.get_parameter(name), fraction) for name in names})
    else:
        scores = magnitude(work, Masks.dense(work, include=names))
        if method == "layer":
            # The share is the decimal that is written: 1 - 0.9 in binary would be a little more than 0.1.
            kept = round(1 - fraction, 12)
            masks = select(scores, scope="layer", densities={"*": kept}, floor=0)
        else:
            masks = select(scores, density=round(1 - fraction, 12), floor=0)
    masks.apply_(work)
    return work, masks


@torch.no_grad()
def accuracies(nets: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """The accuracy of each network, shares of 1, from one pass over the batches, in evaluation mode; modes stay."""
    if not nets:
        return []
    modes = [{module: module.training for module in net.modules()} for net in nets]
    correct, total = [0] * len(nets), 0
    try:
        for net in nets:
            net.eval()
        for images, labels in batches:
            total += len(labels)
            for place, net in enumerate(nets):
                correct[place] += int((net(images).argmax(1) == labels).sum())
    finally:
        for each in modes:
            for module, training in each.items():
                module.training = training
    if not total:
        raise UserError("accuracies need at least one batch of (images, labels)")
    return [each / total for each in correct]


def _weights(net: nn.Module) -> list[str]:
    """The weights of the convolutions, or of the linear layers of a network without any."""
    usual = Masks.dense(net)
    convolutions = [name for name in usual if net.get_parameter(name).dim() > 2]
    return convolutions or list(usual)


def _inputs_kept(weight: Tensor, fraction: float) -> Tensor:
    """Masks along dimension 1, as `torch.nn.utils.prune.ln_structured(n=1, dim=1)` makes them."""
    width = weight.shape[1]
    norms = weight.detach().abs().transpose(0, 1).flatten(1).sum(1)
    kept = torch.zeros(width, dtype=torch.bool, device=weight.device)
    order = torch.sort(norms, descending=True, stable=True).indices
    kept[order[: width - round(fraction * width)]] = True
    return kept.view(1, -1, *[1] * (weight.dim() - 2)).expand_as(weight)
