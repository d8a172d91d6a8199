"""What masks would save where zeros are neither computed with nor stored."""

from torch import nn

from smallnets.measure import Counts
from smallnets.measure.size import stored_bytes
from smallnets.pruning.masks import Masks


def kept_macs(counts: Counts, masks: Masks) -> int:
    """MACs of one image in which a kept weight takes part: each layer's MACs times its density.

    Every weight of a convolution or linear layer is used equally often, so this is exact, rounded down in each layer.
    Layers without masks count whole, and so does `nn.MultiheadAttention`, which projects and attends in one module.
    """
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    for layer in masks.layers:
        name = layer.name.rpartition(".")[0]
        kept[name] = kept.get(name, 0) + layer.kept
        total[name] = total.get(name, 0) + layer.total
    return sum(
        each.macs * kept[each.name] // total[each.name]
        if each.name in kept and each.kind != "MultiheadAttention"
        else each.macs
        for each in counts.layers
    )


def packed_bytes(net: nn.Module, masks: Masks) -> int:
    """Bytes of the network's tensors when masked weights are left out and each mask is stored with one bit a weight."""
    weights = masks.weights(net)
    removed = sum((each.total - each.kept) * weights[each.name].element_size() for each in masks.layers)
    return stored_bytes(net) - removed + sum(-(-each.total // 8) for each in masks.layers)
