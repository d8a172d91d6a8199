"""One small network of every family, for the tests of channel pruning."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from smallnets import models
from smallnets.models import spec_of

# Name -> network, image side, channels of its images.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet20": (models.resnet20, 16, 3),
    "resnet20 A": (lambda: models.resnet20(shortcut="A"), 16, 3),
    "ResNet pooled": (lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], pool=2, image_size=8), 8, 3),
    "bottleneck": (lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], block="bottleneck"), 8, 3),
    "PreActResNet": (lambda: models.PreActResNet(blocks=[2, 1], channels=[8, 12]), 8, 3),
    "VGG": (
        lambda: models.VGG(blocks=[1, 2], channels=[8, 12], batch_norm=True, head_widths=[16], image_size=8), 8, 3,
    ),
    "DenseNet": (lambda: models.DenseNet(blocks=[2, 2], growth_rate=6, stem_channels=8), 8, 3),
    "ViT": (
        lambda: models.ViT(dim=32, depth=2, heads=4, mlp_dim=24, head_widths=[12], qkv_bias=True, image_size=8), 8, 3,
    ),
    "lenet_300_100": (models.lenet_300_100, 28, 1),
    "ConvNet": (lambda: models.ConvNet(channels=[16], head_widths=[24], image_size=8), 8, 3),
}  # fmt: skip


def shaken(net: nn.Module) -> nn.Module:
    """The network with no value left at 0 or 1: statistics, affine numbers and biases too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point() and value.dim() == 1:
                value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "var" in name else 0.1))
    return net


def saved(net: nn.Module, path: Path) -> Path:
    """A checkpoint with what `load` reads of one."""
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"smallnets": {"net": spec_of(net)}, "state_dict": state}, path)
    return path


def frozen_state(net: nn.Module) -> Callable[[], bool]:
    """Remembers a network; the function returned says whether it is still the same: objects, values and modes."""
    parameters = dict(net.named_parameters())
    values = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]

    def same() -> bool:
        now = net.state_dict()
        return (
            now.keys() == values.keys()
            and all(value.is_meta or torch.equal(value, values[key]) for key, value in now.items())
            and all(parameter is parameters[name] for name, parameter in net.named_parameters())
            and [module.training for module in net.modules()] == modes
        )

    return same
