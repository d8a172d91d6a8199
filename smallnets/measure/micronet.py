"""Scores: that of document 001's course, and the rules of the MicroNet Challenge (NeurIPS 2019)."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.measure.count import record
from smallnets.measure.ops import Op

# The course's reference is ResNet-18 in 16 bit: half of its 11,173,962 parameters, rounded.
COURSE_PARAMETERS = 5.6e6
# Operations of the reference. "published": 834,362,880 by the course's profiler, which counts multiplications at half
# and additions whole. "corrected": 277,711,360, half of its 555,422,720 MACs, rounded.
COURSE_OPERATIONS = {"published": 8.3e8, "corrected": 2.8e8}
# WideResNet-28-10 on CIFAR-100, the challenge's: parameters, and multiplications plus additions.
BASELINE_PARAMETERS = 36.5e6
BASELINE_OPERATIONS = 10.49e9


def course_score(
    p_structured: float,
    p_unstructured: float,
    weight_bits: int,
    activation_bits: int,
    parameters: float,
    macs: float,
    baseline: Literal["published", "corrected"] = "published",
) -> float:
    """The score of document 001's course, lower is better:

        (1 - (P_s + P_u)) (q_w / 32) w / 5.6e6  +  (1 - P_s) (max(q_w, q_a) / 32) f / 8.3e8

    The document's inputs (0.3, 0, 32, 32, 198309, 29055103) give 0.0493; its stated 0.0563 is that of P_s = 0.2.

    Conventions. The first term counts parameters against half of ResNet-18's. The second sets *MACs* (f) against a
    reference that counts multiplications and additions: with "published" it comes out about three times too small.
    "corrected" is the course's later reference, 2.8e8, half of ResNet-18's MACs, which fits MACs. `parameters` and
    `macs` are those of the network *before* pruning: the factors do the pruning. Of a network that has already lost
    channels give the counts it has and P_s = 0, or the discount is taken twice. A mask's own bits are not counted.

    Args:
        p_structured: P_s, share of the network removed as whole channels, 0 to 1.
        p_unstructured: P_u, share of the weights that are 0 one by one; it makes no operation cheaper.
        weight_bits, activation_bits: q_w and q_a, 1 to 32.
        parameters: w.
        macs: f, multiply-accumulates of one image.
        baseline: the second term's reference.

    Raises:
        UserError: a value out of its range.
    """
    for name, share in (("p_structured", p_structured), ("p_unstructured", p_unstructured)):
        if not 0 <= share <= 1:
            raise UserError(f"{name} is a share of 1, from 0 to 1, got {share}")
    if p_structured + p_unstructured > 1:
        raise UserError(f"p_structured + p_unstructured is at most 1, got {p_structured} + {p_unstructured}")
    _check_bits(weight_bits=weight_bits, activation_bits=activation_bits)
    if parameters < 0 or macs < 0:
        raise UserError(f"parameters and macs are 0 or more, got {parameters} and {macs}")
    if baseline not in COURSE_OPERATIONS:
        raise UserError(f"baseline is one of {', '.join(COURSE_OPERATIONS)}, got {baseline!r}")
    storage = (1 - (p_structured + p_unstructured)) * (weight_bits / 32) * parameters / COURSE_PARAMETERS
    work = (1 - p_structured) * (max(weight_bits, activation_bits) / 32) * macs / COURSE_OPERATIONS[baseline]
    return storage + work


def _check_bits(**bits: int) -> None:
    for name, value in bits.items():
        if not 1 <= value <= 32:
            raise UserError(f"{name} is 1 to 32, got {value}")


@dataclass(frozen=True)
class LayerScore:
    """One module's own share: 32-bit values to store, multiplications and additions of 32 bits."""

    name: str
    storage: float
    multiplications: float
    additions: float


@dataclass(frozen=True)
class MicroNet:
    """A score by the challenge's rules: `storage` / 36.5e6 + (`multiplications` + `additions`) / 10.49e9."""

    score: float
    storage: float
    multiplications: float
    additions: float
    layers: tuple[LayerScore, ...]
    uncounted: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**vars(self), "uncounted": list(self.uncounted), "layers": [vars(layer) for layer in self.layers]}


def micronet_score(
    net: nn.Module,
    image_size: int = 32,
    in_channels: int = 3,
    weight_bits: int = 32,
    activation_bits: int = 32,
    accumulator_bits: int = 32,
) -> MicroNet:
    """The score of `net` as it stands by the rules of the MicroNet Challenge 2019, lower is better; 1 + 1 = 2 for
    WideResNet-28-10 on CIFAR-100.

    *Storage.* A value of b bits is b / 32. A tensor with zeros may be stored as its nonzero values and a mask of one
    bit an entry, where that is smaller. Weights (two or more dimensions) are of `weight_bits`, all others of 32.

    *Operations.* Multiplications and additions count one each, at the width of their widest input over 32: a product
    of a weight and an activation at the wider of the two, other arithmetic on activations at `activation_bits`, sums
    of products at `accumulator_bits`. A dot product of n terms is n multiplications and n - 1 additions, a bias one
    more addition; products with a weight that is 0 are not made. An activation function is one multiplication a
    value, BatchNorm one of each (none once it is folded), an average over n values n - 1 additions and one
    multiplication, LayerNorm and softmax as their formulas say.

    No discount is taken twice: zeros are counted where they are, removed channels are not there to be counted. A
    16-bit score without quantising, which the challenge allowed, is that of weight_bits = activation_bits = 16.
    `uncounted` names operations that no rule is known for.

    Raises:
        UserError: bits out of 1 .. 32, or `net` cannot run on such an image.
    """
    _check_bits(weight_bits=weight_bits, activation_bits=activation_bits, accumulator_bits=accumulator_bits)
    net = getattr(net, "_orig_mod", net)
    own = dict(net.named_parameters())
    storage: dict[str, float] = {}
    seen: set[int] = set()
    for path, module in net.named_modules():
        tensors = [*module.parameters(recurse=False)]
        # Inference needs BatchNorm's four vectors, or the two that they fold into: a scale and a shift.
        fresh = [each for each in tensors if id(each) not in seen]
        seen.update(id(each) for each in fresh)
        storage[path] = sum(_stored(each, weight_bits if each.dim() >= 2 else 32) for each in fresh)
    spent: dict[str, list[float]] = {}
    uncounted = []
    for op in record(net, image_size, in_channels).ops:
        weight = next((own[name] for name in op.weights if name in own and own[name].dim() >= 2), None)
        counted = _arithmetic(op, weight)
        if counted is None:
            uncounted.append(op.name)
            continue
        wide = max(weight_bits if op.weights else activation_bits, activation_bits) / 32
        total = spent.setdefault(op.module, [0.0, 0.0])
        total[0] += counted.products * wide + counted.multiplications * activation_bits / 32
        total[1] += counted.sums * accumulator_bits / 32 + counted.additions * activation_bits / 32
    layers = tuple(
        LayerScore(name, storage.get(name, 0.0), *spent.get(name, (0.0, 0.0)))
        for name in storage
        if storage[name] or name in spent
    )
    stored = sum(layer.storage for layer in layers)
    products, sums = sum(layer.multiplications for layer in layers), sum(layer.additions for layer in layers)
    score = stored / BASELINE_PARAMETERS + (products + sums) / BASELINE_OPERATIONS
    return MicroNet(score, stored, products, sums, layers, tuple(dict.fromkeys(uncounted)))


def _stored(tensor: torch.Tensor, bits: int) -> float:
    """32-bit values that a tensor takes."""
    entries, nonzero = tensor.numel(), int(torch.count_nonzero(tensor.detach()))
    return min(entries * bits, nonzero * bits + entries) / 32


# Arithmetic a value of the result: (multiplications, additions), at the activations' width.
_EACH = {
    **dict.fromkeys(("relu", "hardtanh", "clamp", "clamp_min", "leaky_relu", "mul", "div", "neg", "abs"), (1, 0)),
    **dict.fromkeys(("exp", "sqrt", "rsqrt", "pow"), (1, 0)),
    **dict.fromkeys(("add", "sub"), (0, 1)),
    "sigmoid": (2, 1),
    "tanh": (2, 2),
    "silu": (3, 1),
    "hardswish": (3, 1),
    "elu": (2, 1),
    # x / 2 (1 + erf(x / sqrt(2))), erf as one.
    "gelu": (4, 1),
    # exp, sum, division.
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), (2, 1)),
    # mean; difference, square, sum; scale by the deviation and the weight; shift.
    "native_layer_norm": (3, 4),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), (1, 1)),
}
# Comparisons, copies and constants.
_FREE = (
    "max_pool2d_with_indices", "clone", "_to_copy", "copy", "cat", "stack", "constant_pad_nd", "expand", "index",
    "select_copy", "zeros", "ones", "full", "arange", "zeros_like", "ones_like", "full_like", "empty", "new_zeros",
    "new_empty", "fill", "zero", "roll", "flip", "_adaptive_max_pool2d",
)  # fmt: skip
_AVERAGES = ("mean", "avg_pool2d", "_adaptive_avg_pool2d")


class _Arithmetic(NamedTuple):
    """Of one operation: products and their sums in dot products, and all other multiplications and additions."""

    products: int = 0
    multiplications: int = 0
    sums: int = 0
    additions: int = 0


def _arithmetic(op: Op, weight: torch.Tensor | None) -> _Arithmetic | None:
    """What an operation computes; None where no rule is known. Its weight, if it is a parameter, may have zeros."""
    values = math.prod(op.output)
    if op.name == "convolution":
        kernel = op.shapes[1]
        return _dot_products(values // kernel[0], math.prod(kernel[1:]), kernel[0], weight, bias=len(op.shapes) > 2)
    if op.name == "bmm":
        left, right = op.shapes
        return _dot_products(left[0] * left[1], left[2], right[2], None, bias=False)
    if op.name in ("addmm", "mm"):
        left, right = op.shapes[-2:]
        return _dot_products(left[0], left[1], right[1], weight, bias=op.name == "addmm")
    if op.name in _AVERAGES:
        # Windows that do not cover the whole image leave some values out.
        terms = math.prod(op.shapes[0]) // values
        return _Arithmetic(multiplications=values, additions=(terms - 1) * values)
    if op.name in _EACH:
        multiplications, additions = _EACH[op.name]
        return _Arithmetic(multiplications=values * multiplications, additions=values * additions)
    return _Arithmetic() if op.name in _FREE else None


def _dot_products(positions: int, terms: int, filters: int, weight: torch.Tensor | None, bias: bool) -> _Arithmetic:
    """At each of `positions`, `filters` dot products of `terms` terms, without those whose weight is 0."""
    if weight is None or weight.numel() != terms * filters:
        kept = torch.full((filters,), terms)
    else:
        kept = torch.count_nonzero(weight.detach().reshape(filters, terms), dim=1)
    sums = int((kept - 1).clamp(min=0).sum()) + (filters if bias else 0)
    return _Arithmetic(products=positions * int(kept.sum()), sums=positions * sums)
