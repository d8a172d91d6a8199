"""What a microcontroller must hold: activations of one inference in RAM, weights in flash."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from smallnets.measure.count import record
from smallnets.measure.sparse import stored_forms


@dataclass(frozen=True)
class LayerMemory:
    """One module's own operations (not its children's).

    `elements` is the most activation values in memory while one of them runs, those that a later layer waits for
    among them; `weights_fp32` and `weights_int8` are its bytes in flash.
    """

    name: str
    kind: str
    elements: int
    weights_fp32: int
    weights_int8: int

    @property
    def activations_fp32(self) -> int:
        return 4 * self.elements

    @property
    def activations_int8(self) -> int:
        return self.elements


@dataclass(frozen=True)
class Memory:
    """Peak of the activations (RAM) and sum of the weights (flash), in bytes; `layers` in the order they run."""

    activations_fp32: int
    activations_int8: int
    weights_fp32: int
    weights_int8: int
    layers: tuple[LayerMemory, ...]

    @property
    def peak(self) -> LayerMemory:
        """The layer at which the most activations are in memory; the first of several."""
        return max(self.layers, key=lambda layer: layer.elements)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        sums = {k: v for k, v in vars(self).items() if k != "layers"}
        return {**sums, "peak": self.peak.name, "layers": [vars(layer) for layer in self.layers]}


def memory(net: nn.Module, image_size: int = 32, in_channels: int = 3) -> Memory:
    """Memory of one image's inference, operation by operation in the order of `net`'s forward.

    *Law.* An activation lives from the operation that writes it to the last that reads it, the image from the start;
    element-wise operations write over an input of their result's size that is not read again (see
    `Recording.held`). The peak is the largest sum of living activations: 4 bytes a value in fp32, 1 in int8. What a
    kernel takes for itself while it runs (im2col, accumulators), stack and code are the runtime's and not in it.

    A network that assembles its kernels in forward holds these as activations; fold it first. Raises UserError when
    `net` cannot run on such an image.
    """
    net = getattr(net, "_orig_mod", net)
    recording = record(net, image_size, in_channels)
    most: dict[str, int] = {}
    for op, held in zip(recording.ops, recording.held(), strict=True):
        most[op.module] = max(most.get(op.module, 0), sum(recording.elements[number] for number in held))
    forms = stored_forms(net, image_size, in_channels)
    kinds = {name: type(module).__name__ for name, module in net.named_modules()}
    idle = [name for name in forms.layers if name not in most]
    layers = tuple(
        LayerMemory(
            name=name,
            kind=kinds[name],
            elements=most.get(name, 0),
            weights_fp32=forms.layers[name].fp32 if name in forms.layers else 0,
            weights_int8=forms.layers[name].int8 if name in forms.layers else 0,
        )
        for name in [*most, *idle]
    )
    peak = max((layer.elements for layer in layers), default=0)
    return Memory(4 * peak, peak, forms.total.fp32, forms.total.int8, layers)
