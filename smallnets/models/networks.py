"""Every named network: one table of true numbers, from which the functions and the command line's names are made."""

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from smallnets.errors import UserError
from smallnets.layers.arguments import whole
from smallnets.models.densenet import DenseNet
from smallnets.models.lenet import ConvNet, LeNet
from smallnets.models.preact_resnet import PreActResNet
from smallnets.models.resnet import ResNet
from smallnets.models.spec import class_path, construct, nearest
from smallnets.models.vgg import VGG
from smallnets.models.vit import ViT

CLASSES: tuple[type[nn.Module], ...] = (ResNet, PreActResNet, VGG, DenseNet, ViT, LeNet, ConvNet)


@dataclass(frozen=True)
class Network:
    """One named network: a class, its numbers, and the images and classes it is usually given."""

    cls: type[nn.Module]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    num_classes: int = 10
    image_size: int = 32
    in_channels: int = 3

    def takes(self, argument: str) -> bool:
        """Whether the class has a constructor argument of this name."""
        return argument in inspect.signature(self.cls).parameters


def _resnet(blocks: list[int], source: str, **numbers: Any) -> Network:
    return Network(ResNet, {"blocks": blocks, **numbers}, source)


def _bottleneck(blocks: list[int]) -> Network:
    return _resnet(blocks, "document 003", block="bottleneck")


def _cifar_resnet(n: int, source: str = "He et al. 2015") -> Network:
    """The 6n + 2 layer network for CIFAR, with option B shortcuts."""
    return _resnet([n, n, n], source, channels=[16, 32, 64])


def _vit(dim: int, depth: int, mlp_dim: int, source: str, **numbers: Any) -> Network:
    size = {"patch_size": 4, "dim": dim, "depth": depth, "heads": 8, "mlp_dim": mlp_dim, "head_widths": [mlp_dim]}
    return Network(ViT, {**size, **numbers}, source)


def _lenet(hidden_widths: list[int]) -> Network:
    return Network(LeNet, {"hidden_widths": hidden_widths}, "document 003, earlier paper", image_size=28, in_channels=1)


def _conv(channels: list[int]) -> Network:
    return Network(ConvNet, {"channels": channels, "head_widths": [256, 256]}, "document 003, earlier paper")


_VGG16 = {"blocks": [2, 2, 3, 3, 3], "channels": [64, 128, 256, 512, 512]}
_DENSE121 = {"growth_rate": 32, "blocks": [6, 12, 24, 16], "stem_channels": 64}

NETWORKS: dict[str, Network] = {
    "resnet18": _resnet([2, 2, 2, 2], "documents 000, 003, 004"),
    "resnet34": _resnet([3, 4, 6, 3], "document 003"),
    "resnet50": _bottleneck([3, 4, 6, 3]),
    "resnet101": _bottleneck([3, 4, 23, 3]),
    "resnet152": _bottleneck([3, 8, 36, 3]),
    "resnet18_s": _resnet([2, 2, 2, 2], "document 000; document 002 row 8", channels=[16, 32, 64, 128]),
    "resnet20": _cifar_resnet(3, "document 001"),
    "resnet32": _cifar_resnet(5),
    "resnet44": _cifar_resnet(7),
    "resnet56": _cifar_resnet(9),
    "resnet110": _cifar_resnet(18),
    "resnet18_imagenet": _resnet([2, 2, 2, 2], "torchvision", stem="imagenet"),
    "resnet34_imagenet": _resnet([3, 4, 6, 3], "document 001 (torchvision)", stem="imagenet"),
    "preact_resnet18": Network(PreActResNet, {"blocks": [2, 2, 2, 2]}, "document 001"),
    "vgg16": Network(VGG, {**_VGG16}, "document 000"),
    "vgg16_bn": Network(VGG, {**_VGG16, "batch_norm": True}, "document 000"),
    "vgg16_bn_linear": Network(VGG, {**_VGG16, "batch_norm": True, "head_widths": []}, "the widespread CIFAR form"),
    "vgg16_s": Network(
        VGG, {**_VGG16, "channels": [16, 32, 64, 128, 128], "head_widths": [128, 128]}, "document 000, all widths / 4"
    ),
    "vit_h4": _vit(512, 6, 512, "document 000"),
    "vit_h4_s": _vit(128, 4, 192, "document 000, sized to its stated ratios"),
    "vit_h4_s_published": _vit(192, 4, 128, "document 000, its published code", attention_scale="dim"),
    "densenet121": Network(DenseNet, {**_DENSE121}, "document 001, CIFAR form"),
    "densenet121_imagenet": Network(DenseNet, {**_DENSE121, "stem": "imagenet"}, "document 001 (torchvision)"),
    "res26_avvari": _resnet([3, 3, 3, 3], "document 002 row 1", channels=[128, 100, 164, 200]),
    "res24_avvari": _resnet([3, 3, 2, 3], "document 002 row 2", channels=[138, 100, 204, 190]),
    "lenet_300_100": _lenet([300, 100]),
    "lenet_12": _lenet([12]),
    "conv2": _conv([64]),
    "conv4": _conv([64, 128]),
    "conv6": _conv([64, 128, 256]),
}


def network(name: str) -> Network:
    """The table's entry for a name; UserError with the nearest names when there is none."""
    if name not in NETWORKS:
        raise UserError(f"no network is called {name!r}{nearest(name, list(NETWORKS))} (`smallnets models` lists all)")
    return NETWORKS[name]


def make(name: str, num_classes: int | None = None, **overrides: Any) -> nn.Module:
    """The named network, newly initialised.

    `overrides` are arguments of its class, as in make("resnet20", shortcut="A"). Raises UserError for an unknown name
    or argument.
    """
    entry = network(name)
    defaults = {"in_channels": entry.in_channels, "image_size": entry.image_size}
    arguments = {
        **deepcopy(dict(entry.numbers)),
        **{argument: value for argument, value in defaults.items() if entry.takes(argument)},
        **overrides,
        "num_classes": whole("num_classes", entry.num_classes if num_classes is None else num_classes),
    }
    return construct(entry.cls, arguments)


def expand(name: str) -> dict[str, Any]:
    """{"class_path", "init_args"} for a bare name: a named network, or a class of this package.

    `init_args` hold the network's numbers without num_classes, in_channels and image_size, which follow from the data.
    Raises UserError with the nearest names for an unknown name.
    """
    for cls in CLASSES:
        if name == cls.__name__:
            return {"class_path": class_path(cls), "init_args": {}}
    if name not in NETWORKS:
        known = [*NETWORKS, *(cls.__name__ for cls in CLASSES)]
        raise UserError(f"no network is called {name!r}{nearest(name, known)} (`smallnets models` lists all)")
    entry = NETWORKS[name]
    return {"class_path": class_path(entry.cls), "init_args": deepcopy(dict(entry.numbers))}


def _function(name: str, entry: Network) -> Callable[..., nn.Module]:
    """The public function of one named network."""

    def function(num_classes: int = entry.num_classes, **overrides: Any) -> nn.Module:
        return make(name, num_classes, **overrides)

    numbers = ", ".join(f"{key}={value!r}" for key, value in entry.numbers.items())
    function.__name__ = function.__qualname__ = name
    function.__module__ = "smallnets.models"
    function.__doc__ = (
        f"{entry.cls.__name__}({numbers}): {entry.source}.\n\n"
        f"`overrides` are arguments of `smallnets.models.{entry.cls.__name__}`; a wrong one raises UserError."
    )
    return function


FUNCTIONS: dict[str, Callable[..., nn.Module]] = {name: _function(name, entry) for name, entry in NETWORKS.items()}
