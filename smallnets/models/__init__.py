"""The networks: plain nn.Modules that take images and return logits, and well-known sizes as functions.

`smallnets.models.resnet20(num_classes=10, shortcut="A")` builds a named network; `NETWORKS` is the table of all of
them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from smallnets.models.densenet import DenseNet
from smallnets.models.lenet import ConvNet, LeNet
from smallnets.models.networks import FUNCTIONS, NETWORKS, Network, expand, make, network
from smallnets.models.preact_resnet import PreActResNet
from smallnets.models.resnet import ResNet
from smallnets.models.spec import build, spec_of
from smallnets.models.vgg import VGG
from smallnets.models.vit import ViT

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., nn.Module]: ...


globals().update(FUNCTIONS)

__all__ = [
    "NETWORKS",
    "VGG",
    "ConvNet",
    "DenseNet",
    "LeNet",
    "Network",
    "PreActResNet",
    "ResNet",
    "ViT",
    "build",
    "expand",
    "make",
    "network",
    "spec_of",
]
__all__ += list(FUNCTIONS)
