"""Residual blocks (He et al. 2015, arXiv 1512.03385; pre-activation 1603.05027) and their shortcuts.

All convolutions are without bias and padded by half their odd kernel, so that only the stride changes an image's side:
from s to ceil(s / stride).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.errors import UserError


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A k x k convolution without bias, padded by k // 2."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and channels of zeros after the present ones. It has no parameters.

    (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)). Raises UserError when there are
    fewer channels to go out than come in.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise UserError(
                f"shortcut 'A' pads channels and cannot go from {in_channels} to {out_channels}; use shortcut 'B'"
            )
        self.added = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def extra_repr(self) -> str:
        return f"added={self.added}, stride={self.stride}"


def make_shortcut(option: str, in_channels: int, out_channels: int, stride: int, kernel_size: int) -> nn.Module:
    """The identity where shapes agree; else option A (`PadShortcut`) or option B (convolution and BatchNorm)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(conv(in_channels, out_channels, kernel_size, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two k x k convolutions, each with BatchNorm, added to the shortcut; ReLU after each BatchNorm and the sum.

    (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        kernel_size: int = 3,
        shortcut_kernel_size: int = 1,
        shortcut: str = "B",
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, channels, kernel_size, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, kernel_size)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = make_shortcut(shortcut, in_channels, channels, stride, shortcut_kernel_size)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, k x k (which carries the stride) and 1x1 convolutions; four times `channels` go out.

    (N, in_channels, H, W) -> (N, 4 * channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        kernel_size: int = 3,
        shortcut_kernel_size: int = 1,
        shortcut: str = "B",
    ) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, kernel_size, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride, shortcut_kernel_size)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two k x k convolutions; the sum is not rectified.

    (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)). Where shapes change, the shortcut is
    a 1x1 convolution *without* BatchNorm of the pre-activated input, elsewhere the input itself.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1, kernel_size: int = 3) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, kernel_size, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, kernel_size)
        self.projects = stride != 1 or in_channels != channels
        self.shortcut = conv(in_channels, channels, 1, stride) if self.projects else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(active))))
        return out + self.shortcut(active if self.projects else x)
