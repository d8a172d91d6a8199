"""Quaternion networks as a conversion of real ones (document 003, "Large Neural Networks at a Fraction")."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.arguments import one_of
from smallnets.layers.blocks import PadShortcut
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear
from smallnets.layers.quaternion_blocks import (
    AppendGray,
    QuaternionAttention,
    QuaternionDenseLayer,
    QuaternionPadShortcut,
)
from smallnets.layers.quaternion_init import INITS
from smallnets.layers.quaternion_norm import QuaternionBatchNorm2d
from smallnets.models.densenet import DenseLayer
from smallnets.models.vit import Attention
from smallnets.surgery.gray import of_spec, real_network

Head = Literal["auto", "quaternion", "real"]
Norm = Literal["real", "whitening"]
Init = Literal["he", "glorot", "xavier"]

# Parts whose channels lie otherwise when they are component-blocked.
_BLOCKS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    PadShortcut: lambda part: QuaternionPadShortcut(part.added, part.stride),
    DenseLayer: lambda part: QuaternionDenseLayer(part.bn1, part.conv1, part.bn2, part.conv2),
    Attention: lambda part: QuaternionAttention(part.head_width, part.scale, part.qkv, part.project, part.dropout),
}


class Quaternion(nn.Module):
    """The quaternion form of a real network: images (N, in_channels, H, W) -> logits (N, num_classes). Document 003.

    `smallnets fit --model.net=quaternion_resnet18` trains one; `to_quaternion(net)` makes one of a network that
    exists. It has about a quarter of the real network's parameters and *all* of its MACs, those of the network with
    four input channels.

    Every convolution and linear layer computes the Hamilton product of `layers.quaternion` on component-blocked
    channels. Activations, pooling, dropout, LayerNorm, class token and positions stay real and act component by
    component; so does BatchNorm, unless `norm` is "whitening". Images of 3 channels get their gray as the fourth
    (`layers.AppendGray`), on the device, after normalisation; images of 4 channels are taken as they are, and others
    if four divides the inputs of the first layer, as it does the 784 pixels of LeNet-300-100.

    Args:
        of: the real network: a name (`resnet18`), or {"class_path": "smallnets.models.ResNet", "init_args": {...}}.
        head: the last layer. "auto" converts it if four divides the number of classes and leaves it real if not;
            "real" is the earlier paper's; "quaternion" insists.
        norm: "real" keeps BatchNorm as it is, as the document does; "whitening" is
            `layers.QuaternionBatchNorm2d`.
        init: "he" and "glorot" draw quaternions in polar form; "xavier" is the document's, component by component.
            Biases start at 0.
        transposed: every layer multiplies by the conjugate of its weight, as programs do that use the transposed table
            (`layers.QuaternionLinear`).

    Raises UserError for a layer whose inputs or outputs four does not divide, by its name.
    """

    prefix = "quaternion_"

    def __init__(
        self,
        of: str | dict[str, Any] = "resnet18",
        num_classes: int = 10,
        head: Head = "auto",
        norm: Norm = "real",
        init: Init = "he",
        in_channels: int = 3,
        image_size: int = 32,
        transposed: bool = False,
    ) -> None:
        net = real_network(of, num_classes, in_channels, image_size)
        self._hold(net, head, norm, init, in_channels, transposed)

    def _hold(self, net: nn.Module, head: Head, norm: Norm, init: Init, in_channels: int, transposed: bool) -> None:
        """Converts `net` in place and takes it in; the attributes are the constructor's arguments."""
        super().__init__()
        if (of := of_spec(net)) is not None:
            self.of = of  # without it there is no spec of this network, and it says so
        self.num_classes = getattr(net, "num_classes", None)
        self.image_size = getattr(net, "image_size", 32)
        self.head = one_of("head", head, ("auto", "quaternion", "real"))
        self.norm = one_of("norm", norm, ("real", "whitening"))
        self.init = one_of("init", init, tuple(INITS))
        self.in_channels = in_channels
        self.transposed = transposed
        layers, norms = _layers(net, self.head, in_channels), _norms(net) if self.norm == "whitening" else []
        for number, layer in enumerate(layers):
            # The first of them reads the images, and reads their gray too.
            _replace(net, layer, _converted(layer, self.init, number == 0 and in_channels == 3, transposed))
        for norm_layer in norms:
            _replace(net, norm_layer, _whitening(norm_layer))
        for part in [each for each in net.modules() if type(each) in _BLOCKS]:
            _replace(net, part, _in_mode(_BLOCKS[type(part)](part), part.training))
        if in_channels == 3 and hasattr(net, "in_channels"):
            setattr(net, "in_channels", 4)  # noqa: B010  (a Module's attribute of no declared type)
        self.gray = _in_mode(AppendGray() if in_channels == 3 else nn.Identity(), net.training)
        self.net = net
        _in_mode(self, net.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.gray(images))


def to_quaternion(
    net: nn.Module, head: Head = "auto", norm: Norm = "real", init: Init = "he", transposed: bool = False
) -> Quaternion:
    """The quaternion form of `net`, newly initialised where weights are quaternions: `Quaternion`, whose options these
    are.

    `net` is converted in place and is the `net` of what is returned: use that, and build the optimizer afterwards. All
    that stays real (BatchNorm, positions, a real head) keeps its values. Works on every family of `smallnets.models`,
    with stages removed too, and on networks of your own made of `nn.Conv2d` and `nn.Linear`, whose first such layer
    reads the images and whose last one is the head; if it joins channels itself, the order of the components there is
    yours to keep.

    A pruned network can be converted as long as four divides its widths.

    Raises:
        UserError: a layer that cannot be converted, by its name; `net` is then as it was.
    """
    if isinstance(net, Quaternion) or any(isinstance(m, (QuaternionConv2d, QuaternionLinear)) for m in net.modules()):
        raise UserError(f"this {type(net).__name__} is a quaternion network already")
    made = Quaternion.__new__(Quaternion)
    made._hold(net, head, norm, init, channels_of(net), transposed)
    return made


def channels_of(net: nn.Module) -> int:
    """Channels of the images that a real network takes: its `in_channels`, or its first convolution's."""
    given = getattr(net, "in_channels", None)
    return given if isinstance(given, int) else getattr(_named_layers(net)[0][1], "in_channels", 0)


def _named_layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Convolutions and linear layers, by name, in the network's order."""
    found: list[tuple[str, nn.Module]] = [
        (name, module) for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    if not found or found[0][1] is net:
        raise UserError(f"{type(net).__name__} is not a network of convolutions or linear layers to convert")
    return found


def _layers(net: nn.Module, head: str, in_channels: int) -> list[nn.Module]:
    """The layers to convert; UserError, by its name, for the first that cannot be."""
    every = _named_layers(net)
    kept_real = head == "real" or (head == "auto" and _widths(every[-1][1])[1] % 4)
    chosen = every[:-1] if kept_real else every
    if not chosen:
        raise UserError(f"{type(net).__name__} has no layer but its head, which stays real: nothing to convert")
    for name, module in net.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            raise UserError(f"{name}: torch's MultiheadAttention computes its own products and cannot be converted")
        if isinstance(module, Attention) and module.head_width % 4:
            raise UserError(f"{name}: its heads have {module.head_width} channels, and four must divide them")
    for number, (name, layer) in enumerate(chosen):
        inside, outside = _widths(layer)
        if number == 0 and in_channels == 3:
            inside = inside // 3 * 4
        if type(layer) not in (nn.Conv2d, nn.Linear):
            raise UserError(f"{name} is a {type(layer).__name__}: only plain Conv2d and Linear layers are converted")
        if inside % 4 or outside % 4:
            images = ": images have 3 channels, to which gray is added, or 4" if number == 0 and inside % 4 else ""
            raise UserError(
                f"{name} has {inside} inputs and {outside} outputs, and four must divide both"
                f" in a quaternion layer{images}"
            )
        groups, mode = getattr(layer, "groups", 1), getattr(layer, "padding_mode", "zeros")
        if inside // 4 % groups or outside // 4 % groups or mode != "zeros":
            raise UserError(f"{name}: {groups} groups of quaternions, padding {mode!r}: it cannot be converted")
    return [layer for _, layer in chosen]


def _widths(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    """The BatchNorms to convert; UserError, by its name, for one that cannot be."""
    found = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name, norm in found:
        if norm.num_features % 4 or not norm.affine or norm.momentum is None or norm.running_mean is None:
            raise UserError(f"{name} ({norm}) cannot become a whitening norm: use norm='real'")
    return [norm for _, norm in found]


def _converted(layer: Any, init: str, gray: bool, transposed: bool) -> nn.Module:
    """The quaternion layer in the place of a real one; with `gray` its inputs have four channels instead of three."""
    inside, outside = _widths(layer)
    inside = inside // 3 * 4 if gray else inside
    bias = layer.bias is not None
    with torch.device(layer.weight.device):
        if isinstance(layer, nn.Linear):
            made: nn.Module = QuaternionLinear(inside, outside, bias, transposed, init)
        else:
            sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
            made = QuaternionConv2d(inside, outside, *sizes, bias, transposed, init)
    made.to(layer.weight.dtype).requires_grad_(layer.weight.requires_grad)
    return made.train(layer.training)


def _whitening(norm: nn.BatchNorm2d) -> nn.Module:
    assert norm.momentum is not None
    with torch.device(norm.weight.device):
        made = QuaternionBatchNorm2d(norm.num_features, momentum=norm.momentum)
    return made.to(norm.weight.dtype).requires_grad_(norm.weight.requires_grad).train(norm.training)


def _in_mode(module: nn.Module, training: bool) -> nn.Module:
    """The module itself in a mode; its children keep theirs, as frozen ones must."""
    module.training = training
    return module


def _replace(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `net` holds `old`."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
