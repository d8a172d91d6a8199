"""Densely connected networks: the CIFAR form and torchvision's ImageNet form (document 001)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.arguments import check_side, one_of, whole, whole_list
from smallnets.layers.blocks import conv
from smallnets.layers.init import init_convs


class DenseLayer(nn.Module):
    """(N, C, H, W) -> (N, C + growth_rate, H, W): the input, then what a 1x1 and a 3x3 convolution add to it."""

    def __init__(self, in_channels: int, growth_rate: int, bottleneck: int) -> None:
        super().__init__()
        inner = bottleneck * growth_rate
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, growth_rate, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu(self.bn1(x)))
        new = self.conv2(self.relu(self.bn2(new)))
        return torch.cat([x, new], dim=1)


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> (N, out_channels, H // 2, W // 2)."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(), conv(in_channels, out_channels, 1), nn.AvgPool2d(2, stride=2)
    )


class DenseNet(nn.Module):
    """Images (N, in_channels, H, W) -> logits (N, num_classes), or (N, logits). Huang et al. 2017 (arXiv
    1608.06993); document 001.

    A stem, stages of `DenseLayer`s each but the last ended by a transition that keeps the share `compression` of the
    channels and halves the side, BatchNorm, ReLU, global average, linear head. Convolutions have no bias and start as
    `layers.init_convs` says. Images must be large enough for the halvings: 8 pixels with four stages and the CIFAR
    stem, 29 with the ImageNet stem; smaller ones raise UserError in forward.

    Args:
        growth_rate: channels that each layer adds.
        blocks: layers of each stage.
        stem_channels: channels of the stem.
        bottleneck: the 1x1 convolution of a layer has bottleneck * growth_rate channels.
        compression: share of the channels that a transition keeps, above 0 and at most 1, rounded down.
        stem: "cifar" is a bare 3x3 convolution; "imagenet" is torchvision's 7x7, stride 2, BatchNorm, ReLU, max
            pooling.
        logits: outputs of the head, by default one a class. More than that learn to be never chosen: document 001 left
            the 1,000 of ImageNet on the ten classes of CIFAR-10.

    Raises UserError for arguments that do not fit.
    """

    def __init__(
        self,
        num_classes: int = 10,
        growth_rate: int = 32,
        blocks: Sequence[int] = (6, 12, 24, 16),
        stem_channels: int = 64,
        bottleneck: int = 4,
        compression: float = 0.5,
        stem: Literal["cifar", "imagenet"] = "cifar",
        in_channels: int = 3,
        logits: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = whole("num_classes", num_classes)
        self.logits = None if logits is None else whole("logits", logits)
        if self.logits is not None and self.logits < self.num_classes:
            raise UserError(f"logits is at least the number of classes, {self.num_classes}, got {self.logits}")
        self.growth_rate = whole("growth_rate", growth_rate)
        self.blocks = whole_list("blocks", blocks)
        self.stem_channels = whole("stem_channels", stem_channels)
        self.bottleneck = whole("bottleneck", bottleneck)
        if not 0 < compression <= 1:
            raise UserError(f"compression must be above 0 and at most 1, got {compression!r}")
        self.compression = compression
        self.stem = one_of("stem", stem, ("cifar", "imagenet"))
        self.in_channels = whole("in_channels", in_channels)

        width = self.stem_channels
        small = self.stem == "cifar"
        if small:
            self.start = nn.Sequential(conv(self.in_channels, width, 3))
        else:
            self.start = nn.Sequential(
                conv(self.in_channels, width, 7, stride=2),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        halvings = len(self.blocks) - 1
        # The ImageNet stem divides the side by four and rounds up, the transitions round down.
        self.least_side = 2**halvings if small else 4 * (2**halvings - 1) + 1

        built = []
        for number, layers in enumerate(self.blocks):
            members: list[nn.Module] = []
            for _ in range(layers):
                members.append(DenseLayer(width, self.growth_rate, self.bottleneck))
                width += self.growth_rate
            if number < halvings:
                kept = whole("channels left by compression", int(width * compression))
                members.append(transition(width, kept))
                width = kept
            built.append(nn.Sequential(*members))
        self.stages = nn.Sequential(*built)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width, self.logits or self.num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        check_side("DenseNet", x, self.least_side)
        x = self.relu(self.bn(self.stages(self.start(x))))
        return self.head(self.flatten(self.average(x)))
