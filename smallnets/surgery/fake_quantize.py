"""A network that computes with the numbers its int8 file will have: what quantisation-aware training trains.

Weights are symmetric integers with one scale for each output channel, max |w| / 127; activations are affine integers
with one range for each tensor, a moving average of smallest and largest values (Jacob et al. 2018, arXiv 1712.05877,
section 3). Gradients pass the rounding unchanged (Bengio et al. 2013, arXiv 1308.3432), and are 0 where an activation
lies outside of its range.

BatchNorm trains as it is: rounding commutes with folding. A folded BatchNorm multiplies each output channel of a weight
by one number, and the channel's scale with it, so the integers of the folded weight are those of the unfolded one. For
that a norm must act on each channel alone; a whitening norm, which mixes four, is refused. A quaternion's four
components share their scale, so the rows of the real kernel have it too.

Why not torchao's PT2E flow: it trains another module, captured by `torch.export`, whose parameters have other names.
Masks, widths and checkpoints go by the names of the dense network, and these stay here.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from smallnets.errors import UserError
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear
from smallnets.surgery.rounded_points import followed, layers_of, points_of, with_modules

_QUATERNION = (QuaternionConv2d, QuaternionLinear)
LARGEST_WEIGHT, LARGEST_ACTIVATION = 127, 255


def weight_scale(layer: nn.Module) -> Tensor:
    """The scale of each output channel, in the shape (outputs, 1, ...) that multiplies the weight.

    max |w| / 127; 1 for a channel of zeros; for a quaternion layer the maximum is that over the four components of each
    output.
    """
    weight: Any = layer.weight
    largest = weight.detach().abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True)
    if isinstance(layer, _QUATERNION):
        largest = largest.unflatten(0, (4, -1)).amax(0).repeat(4, *[1] * (weight.dim() - 1))
    return torch.where(largest > 0, largest / LARGEST_WEIGHT, torch.ones_like(largest))


def fake_quantized_weight(layer: nn.Module) -> Tensor:
    """The weight, each value the nearest multiple of its channel's scale; the gradient is handed on as it is.

    0.0 stays 0.0, so what masks remove is removed from the integers too.
    """
    weight: Any = layer.weight
    scale = weight_scale(layer)
    rounded = (weight.detach() / scale).round() * scale
    return rounded + (weight - weight.detach())  # exactly `rounded`


def range_numbers(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point (float32 and int32 scalars) of a range (-smallest, largest), which is widened to hold 0."""
    below, above = bounds.clamp(min=0).unbind()
    scale = ((below + above) / LARGEST_ACTIVATION).clamp(min=1e-8)
    return scale, (below / scale).round().clamp(0, LARGEST_ACTIVATION).to(torch.int32)


class _Layer(nn.Module):
    """A layer with its weight rounded."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.layer, {"weight": fake_quantized_weight(self.layer)}, (x,))


class _Ranges(nn.Module):
    """(-smallest, largest) of each rounded value, and what was seen of it since the last update."""

    bounds: Tensor
    seen: Tensor

    def __init__(self, number: int) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.full((number, 2), -float("inf")), persistent=False)
        self.register_buffer("seen", torch.full((number, 2), -float("inf")), persistent=False)
        self.observe = self.round = False


class _Point(nn.Module):
    """An activation rounded to its range."""

    def __init__(self, ranges: _Ranges, index: int) -> None:
        super().__init__()
        self.ranges, self.index = ranges, index

    def forward(self, x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point()) or x.is_meta:
            return x  # the sum of two sizes; without values, where a network is counted, nothing is rounded
        ranges = self.ranges
        if ranges.observe:
            smallest, largest = torch.aminmax(x.detach())
            seen = ranges.seen[self.index]
            seen.copy_(torch.maximum(seen, torch.stack((-smallest, largest))))
        if not ranges.round:
            return x
        scale, zero = range_numbers(ranges.bounds[self.index])
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, LARGEST_ACTIVATION)


class FakeQuantized(nn.Module):
    """`net` computing with rounded weights and activations: images (N, ...) -> logits, as its int8 file will.

    It shares parameters, buffers and mode with `net`, which is itself unchanged. To train it by hand: `calibrate` it
    on some images, train on `fake(images)` with an optimizer over `net.parameters()`, and call `update_ranges()` after
    every step. Rounded are the weights of convolutions and linear layers, what goes into these and comes out of them
    (after the BatchNorm that `surgery.fold` puts into them, and ReLU), and sums. The rest - logits, softmax, GELU,
    LayerNorm, a BatchNorm that no convolution takes in - computes in float32, in the file too.

    Laws:
        - A forward pass changes no range: it uses those of the steps before, and in training mode notes the smallest
          and largest values; `update_ranges` moves the ranges.
        - A weight that is 0.0 is used as 0.0.
        - `record()` is plain data; `FakeQuantized(net, record=...)` computes bitwise the same.

    Args:
        net: a network that torch.fx can follow.
        decay: of the moving average of ranges, 0 to below 1.
        record: that of an earlier one, in place of `decay` and `calibrate`.

    Attributes:
        points: the names of the rounded values in the graph of torch.fx.
        bounds: (points, 2), the range of each as (-smallest, largest); -inf before `calibrate`.

    Raises:
        UserError: a decay out of its range; a forward that torch.fx cannot follow, or that differs between training and
            evaluation; a whitening norm; a grouped quaternion convolution; no layer with a weight; a record of another
            network.
    """

    def __init__(self, net: nn.Module, decay: float = 0.99, record: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.net = net = getattr(net, "_orig_mod", net)
        self.decay = check_decay(decay if record is None else record["decay"])
        self.training = net.training
        graph = _traced(net)
        layers = {name: _Layer(layer) for name, layer in layers_of(net, graph).items()}
        self.points = [node.name for node in points_of(net, graph)]
        self.ranges = _Ranges(len(self.points)).to(next(net.parameters()).device)
        if record is not None:
            if list(record["points"]) != self.points:
                raise UserError(f"the ranges are those of another network than this {type(net).__name__}")
            self.bounds.copy_(record["ranges"])
        points = {name: _Point(self.ranges, index) for index, name in enumerate(self.points)}
        self._held = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
        # The tuple keeps the layers from being registered twice.
        self._graph = (with_modules(net, graph, layers, points),)

    @property
    def bounds(self) -> Tensor:
        return self.ranges.bounds

    def forward(self, images: Tensor) -> Tensor:
        self.ranges.observe, self.ranges.round = self.net.training, True
        return self._run(images)

    def _run(self, images: Tensor) -> Tensor:
        (graph,) = self._graph
        for name in self._held:  # learned embeddings: `net` may hold others since, on another device
            path, _, last = name.rpartition(".")
            setattr(graph.get_submodule(path), last, operator.attrgetter(name)(self.net))
        return graph(images)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> "FakeQuantized":
        """Sets the ranges to what batches of images give in eval mode, activations not rounded; returns itself."""
        modes = {module: module.training for module in self.net.modules()}
        self.net.eval()
        self.forget_seen()
        self.ranges.observe, self.ranges.round = True, False
        try:
            for images in batches:
                self._run(images)
        finally:
            for module, mode in modes.items():
                module.training = mode
        self.bounds.copy_(self.ranges.seen)
        self.forget_seen()
        return self

    @torch.no_grad()
    def update_ranges(self, over_ranks: Callable[[Tensor], Tensor] | None = None) -> None:
        """range <- decay * range + (1 - decay) * what was seen since the last update.

        Args:
            over_ranks: gives the largest of each number over all processes.
        """
        seen = self.ranges.seen if over_ranks is None else over_ranks(self.ranges.seen)
        # A value that no pass has made since keeps its range.
        moved = torch.where(seen.isinf(), self.bounds, torch.lerp(seen, self.bounds, self.decay))
        self.bounds.copy_(moved)
        self.forget_seen()

    def forget_seen(self) -> None:
        """Forgets what passes since the last update have noted."""
        self.ranges.seen.fill_(-float("inf"))

    def record(self) -> dict[str, Any]:
        """Plain data: `decay`, names of the `points`, `ranges` (points, 2), each (-smallest, largest)."""
        return {"decay": self.decay, "points": list(self.points), "ranges": self.bounds.detach().cpu().clone()}

    def snapped(self) -> nn.Module:
        """A copy of `net` on the CPU in eval mode whose weights are the multiples of their scales that are used.

        Whoever folds and rounds it afterwards finds the integers of training: those of the unfolded weights.
        """
        made = copy.deepcopy(self.net).cpu().eval()
        with torch.no_grad():
            for name in layers_of(made, followed(made)):
                layer: Any = made.get_submodule(name)
                layer.weight.copy_(fake_quantized_weight(layer))
        return made


def check_decay(decay: float) -> float:
    """The decay; UserError for one that is not 0 to below 1."""
    if not 0 <= decay < 1:
        raise UserError(f"decay must be at least 0 and below 1, got {decay!r}")
    return float(decay)


def _traced(net: nn.Module) -> fx.Graph:
    """The graph of both modes; UserError where they differ, for then neither would be right in the other."""
    modes = {module: module.training for module in net.modules()}
    try:
        graphs = [followed(net.train(mode)) for mode in (False, True)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    if str(graphs[0]) != str(graphs[1]):
        raise UserError(
            f"{type(net).__name__} cannot be quantised: its forward differs between training and evaluation outside of"
            " its modules (a functional dropout, say)"
        )
    return graphs[0]
