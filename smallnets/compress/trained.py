"""The int8 ONNX file of quantisation-aware training: the very numbers of training, and no calibration."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.surgery.fake_quantize import FakeQuantized, range_numbers, weight_scale
from smallnets.surgery.fold import fold
from smallnets.surgery.rounded_points import followed, inputs_of, with_modules


def trained_int8(fake: FakeQuantized) -> nn.Module:
    """What `fake` computes, as ONNX operators on stored integers; for torch's ONNX exporter alone.

    Weights are int8 with the integers of training, biases int32 on the product of their weight's and their input's
    scale, and activations pass QuantizeLinear and DequantizeLinear where they were rounded in training. No other value
    is rounded. BatchNorm is folded. A channel whose weights are so small that its bias would not fit into int32 (2^30
    times the scale) gets a larger scale: against that bias they are nothing.
    """
    folded = fold(fake.snapped())
    graph = followed(folded)
    bounds = dict(zip(fake.points, fake.bounds.cpu(), strict=True))
    layers: dict[str, nn.Module] = {}
    for name, sources in inputs_of(folded, graph).items():
        # A layer that is called on several values has no one scale for its bias.
        scale = range_numbers(bounds[sources[0]])[0] if len(sources) == 1 else None
        layers[name] = _Layer(folded.get_submodule(name), scale)
    # What no pass has made is no tensor (the sum of two sizes).
    points = {name: _Point(each) for name, each in bounds.items() if not bool(each.isinf().any())}
    return with_modules(folded, graph, layers, points).eval()


class _Point(nn.Module):
    """QuantizeLinear and DequantizeLinear with a range's numbers."""

    scale: Tensor
    zero: Tensor

    def __init__(self, bounds: Tensor) -> None:
        super().__init__()
        scale, zero = range_numbers(bounds)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.scale, self.zero
        whole = torch.onnx.ops.symbolic("QuantizeLinear", (x, *numbers), dtype=torch.uint8, shape=x.shape)
        return _dequantized(whole, *numbers)


class _Layer(nn.Module):
    """A layer whose weight is stored in int8 and whose bias, where its input has one scale, in int32."""

    weight: Tensor
    turned: Tensor
    scale: Tensor
    zero: Tensor
    bias_zero: Tensor

    def __init__(self, layer: Any, input_scale: Tensor | None) -> None:
        super().__init__()
        scale = weight_scale(layer)
        if layer.bias is not None and input_scale is not None:
            # ONNX Runtime lets a larger bias overflow, whether it is stored in int32 or in float32.
            least = (layer.bias.abs() / (input_scale * 2**30)).clamp(min=1e-20).view_as(scale)
            # A channel of zeros takes the scale that its bias needs.
            empty = layer.weight.abs().amax(dim=tuple(range(1, scale.dim())), keepdim=True) == 0
            scale = torch.where(empty, least, torch.maximum(scale, least))
        weight = (layer.weight / scale).round().to(torch.int8)
        self.conv = layer if isinstance(layer, nn.Conv2d) else None
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("zero", torch.zeros_like(self.scale, dtype=torch.int8))
        self.register_buffer("bias", layer.bias)
        self.register_buffer("bias_scale", None)
        if layer.bias is not None and input_scale is not None:
            self.bias_scale = self.scale * input_scale
            self.bias = (layer.bias.double() / self.bias_scale.double()).round().to(torch.int32)
            self.register_buffer("bias_zero", torch.zeros_like(self.bias))
        self.register_buffer("weight", weight)
        # A product of more than two dimensions is a MatMul, which takes the weight the other way round.
        self.register_buffer("turned", weight.T.contiguous() if self.conv is None else None)

    def forward(self, x: Tensor) -> Tensor:
        bias: Any = self.bias
        if self.bias_scale is not None:
            bias = _dequantized(bias, self.bias_scale, self.bias_zero, 0)
        if self.conv is not None:
            weight = _dequantized(self.weight, self.scale, self.zero, 0)
            return self.conv._conv_forward(x, weight, bias)
        if x.dim() == 2:
            return F.linear(x, _dequantized(self.weight, self.scale, self.zero, 0), bias)
        y = x @ _dequantized(self.turned, self.scale, self.zero, 1)
        return y if bias is None else y + bias


def _dequantized(whole: Tensor, scale: Tensor, zero: Tensor, axis: int | None = None) -> Tensor:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (whole, scale, zero), attributes, dtype=torch.float32, shape=whole.shape
    )
