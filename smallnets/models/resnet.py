"""Residual networks: the CIFAR and ImageNet forms, and the parametrised family of document 002."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.arguments import check_image, copied, odd_per_stage, one_of, per_stage, share, whole, whole_list
from smallnets.layers.blocks import BasicBlock, Bottleneck, conv
from smallnets.layers.init import init_convs

BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Images (N, in_channels, H, W) -> logits (N, num_classes). He et al. 2015 (arXiv 1512.03385); document 002.

    A stem, then `len(blocks)` stages, then average pooling and a linear head. Convolutions have no bias; each is
    followed by BatchNorm. Convolutions start as `layers.init_convs` says, all else as PyTorch draws it.

    Args:
        blocks: residual blocks of each stage (document 002's B).
        channels: channels of each stage (C), before the bottleneck's expansion by four.
        kernel_sizes: odd kernel of each stage's convolutions (F); one number stands for all.
        shortcut_kernel_sizes: odd kernel of each stage's projection shortcuts (K); one number stands for all.
        pool: None averages over the whole map, for any image size. A number P is document 002's P x P average pooling:
            the head then has channels[-1] * (side / P)^2 inputs, where `side` is the last map's, and images must
            have `image_size`.
        block: "basic" or "bottleneck".
        shortcut: "B" projects with a convolution and BatchNorm where shapes change; "A" drops pixels and pads channels.
        stem: "cifar" is 3x3, stride 1; "imagenet" is 7x7, stride 2, then 3x3 max pooling, stride 2 (torchvision's).
        stem_channels: None means channels[0], as in document 002.
        strides: stride of each stage's first block; None means 1, then 2 for every later stage.
        image_size: side in pixels, used only with a number for `pool`.
        dropout: share dropped before the head while training.

    Raises UserError for arguments that do not fit together.
    """

    def __init__(
        self,
        num_classes: int = 10,
        blocks: Sequence[int] = (2, 2, 2, 2),
        channels: Sequence[int] = (64, 128, 256, 512),
        kernel_sizes: int | Sequence[int] = 3,
        shortcut_kernel_sizes: int | Sequence[int] = 1,
        pool: int | None = None,
        block: Literal["basic", "bottleneck"] = "basic",
        shortcut: Literal["A", "B"] = "B",
        stem: Literal["cifar", "imagenet"] = "cifar",
        stem_channels: int | None = None,
        strides: Sequence[int] | None = None,
        in_channels: int = 3,
        image_size: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = whole("num_classes", num_classes)
        self.blocks = whole_list("blocks", blocks)
        stages = len(self.blocks)
        self.channels = per_stage("channels", whole_list("channels", channels), stages)
        kernels = odd_per_stage("kernel_sizes", kernel_sizes, stages)
        shortcut_kernels = odd_per_stage("shortcut_kernel_sizes", shortcut_kernel_sizes, stages)
        self.kernel_sizes = copied(kernel_sizes)
        self.shortcut_kernel_sizes = copied(shortcut_kernel_sizes)
        self.pool = None if pool is None else whole("pool", pool)
        self.block = one_of("block", block, tuple(BLOCKS))
        self.shortcut = one_of("shortcut", shortcut, ("A", "B"))
        self.stem = one_of("stem", stem, ("cifar", "imagenet"))
        self.stem_channels = None if stem_channels is None else whole("stem_channels", stem_channels)
        self.strides = None if strides is None else per_stage("strides", whole_list("strides", strides), stages)
        first_strides = [1] + [2] * (stages - 1) if self.strides is None else self.strides
        self.in_channels = whole("in_channels", in_channels)
        self.image_size = whole("image_size", image_size)
        self.dropout = share("dropout", dropout)

        width = self.channels[0] if self.stem_channels is None else self.stem_channels
        small = self.stem == "cifar"
        self.conv1 = conv(self.in_channels, width, 3) if small else conv(self.in_channels, width, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)

        kind = BLOCKS[self.block]
        built = []
        for number in range(stages):
            members = []
            for index in range(self.blocks[number]):
                stride = first_strides[number] if index == 0 else 1
                members.append(
                    kind(width, self.channels[number], stride, kernels[number], shortcut_kernels[number], self.shortcut)
                )
                width = kind.expansion * self.channels[number]
            built.append(nn.Sequential(*members))
        self.stages = nn.Sequential(*built)

        if self.pool is None:
            self.average: nn.Module = nn.AdaptiveAvgPool2d(1)
            cells = 1
        else:
            self.average = nn.AvgPool2d(self.pool)
            cells = self._cells(self.pool, [1] if small else [2, 2], first_strides)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width * cells, self.num_classes)
        init_convs(self)

    def _cells(self, pool: int, stem_strides: list[int], strides: list[int]) -> int:
        """Positions that are left of the last map after P x P pooling."""
        side = self.image_size
        for stride in stem_strides + strides:
            side = -(-side // stride)
        if side % pool:
            raise UserError(
                f"pool {pool} does not divide the last map of {side} x {side} that images of "
                f"{self.image_size} x {self.image_size} give; leave pool out for the global average"
            )
        return (side // pool) ** 2

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            check_image("ResNet with pool", x, self.in_channels, self.image_size)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.flatten(self.average(self.stages(x)))
        return self.head(F.dropout(x, self.dropout, self.training) if self.dropout else x)
