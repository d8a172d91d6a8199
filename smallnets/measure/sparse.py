"""Bytes of a network in other forms than it is in: dense, with a bitmask for its zeros, fp16, int8; MACs without zeros.

All are sizes of the numbers alone, worked out from the weights; a file also holds names and structure, and is measured.
"""

from dataclasses import astuple, dataclass, fields
from itertools import chain
from typing import Any

import torch
from torch import nn

from smallnets.measure.count import count


@dataclass(frozen=True)
class Forms:
    """Bytes of the same numbers in each form, and their work.

    A *weight* is a parameter of two or more dimensions of a layer that multiplies (has MACs). Every form also holds the
    other numbers that inference reads (biases, normalisation's parameters and running statistics, tokens): 4 bytes
    each, 2 in fp16.

    Attributes:
        entries, nonzero: of the weights.
        fp32: 4 bytes an entry, zeros too.
        fp32_sparse: 4 bytes a nonzero entry, and a mask of one bit an entry, in whole bytes a tensor; a tensor for
            which that is not smaller is stored dense.
        fp16: 2 bytes an entry, zeros too.
        int8: 1 byte an entry, and a scale of 4 bytes for each output channel (the first dimension).
        int8_sparse: like `fp32_sparse` with 1 byte a nonzero entry, and the scales.
        macs: of one image.
        effective_macs: those whose weight is not 0. Each entry of a layer's weight takes part in equally many of its
            MACs; products without a weight, such as attention's, are all counted.
    """

    entries: int = 0
    nonzero: int = 0
    fp32: int = 0
    fp32_sparse: int = 0
    fp16: int = 0
    int8: int = 0
    int8_sparse: int = 0
    macs: int = 0
    effective_macs: int = 0

    def __add__(self, other: "Forms") -> "Forms":
        return Forms(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def plain(self) -> dict[str, int]:
        """As plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class StoredForms:
    """What `stored_forms` found: `total` is the sum of `layers`, which are named by their modules' paths."""

    total: Forms
    layers: dict[str, Forms]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**self.total.plain(), "layers": {name: forms.plain() for name, forms in self.layers.items()}}


def stored_forms(net: nn.Module, image_size: int = 32, in_channels: int = 3) -> StoredForms:
    """The forms of `net` by layer, for images of (in_channels, image_size, image_size).

    Counted on the values that `net` holds now; a tensor that several modules share counts with the first. Integer
    buffers (BatchNorm's counter) are not read by inference and count nowhere. Raises UserError when `net` cannot run
    on such an image.
    """
    net = getattr(net, "_orig_mod", net)
    macs = {layer.name: layer.macs for layer in count(net, image_size, in_channels).layers}
    seen: set[int] = set()
    layers = {}
    for path, module in net.named_modules():
        kept = {name for name, _ in module.named_buffers(recurse=False)} - module._non_persistent_buffers_set
        own = chain(
            module.named_parameters(recurse=False),
            ((name, each) for name, each in module.named_buffers(recurse=False) if name in kept),
        )
        tensors = [(n, each) for n, each in own if id(each) not in seen and each.is_floating_point()]
        seen.update(id(each) for _, each in tensors)
        spent = macs.get(path, 0)
        weights = [each for _, each in tensors if isinstance(each, nn.Parameter) and each.dim() >= 2 and spent]
        others = sum(each.numel() for _, each in tensors) - sum(each.numel() for each in weights)
        forms = Forms(fp32=4 * others, fp32_sparse=4 * others, fp16=2 * others, int8=4 * others, int8_sparse=4 * others)
        for weight in weights:
            forms += _forms_of(weight)
        if spent or tensors:
            layers[path] = forms + Forms(macs=spent, effective_macs=_effective(spent, forms))
    return StoredForms(sum(layers.values(), Forms()), layers)


def _forms_of(weight: torch.Tensor) -> Forms:
    entries, nonzero = weight.numel(), int(torch.count_nonzero(weight.detach()))
    mask, scales = -(-entries // 8), 4 * weight.shape[0]
    return Forms(
        entries=entries,
        nonzero=nonzero,
        fp32=4 * entries,
        fp32_sparse=min(4 * entries, 4 * nonzero + mask),
        fp16=2 * entries,
        int8=entries + scales,
        int8_sparse=min(entries, nonzero + mask) + scales,
    )


def _effective(macs: int, weights: Forms) -> int:
    """MACs of the entries that are not 0; all of them where the layer has no weight of its own."""
    return macs * weights.nonzero // weights.entries if weights.entries else macs
