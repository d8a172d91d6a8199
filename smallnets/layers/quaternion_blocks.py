"""What else has to know that channels are component-blocked: joining, padding and attention; and the fourth channel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.quaternion import fours

# ITU-R BT.601, which adds up to 1.
LUMA = (0.299, 0.587, 0.114)


class AppendGray(nn.Module):
    """(N, 3, H, W) -> (N, 4, H, W): the red, green and blue channels, and 0.299 R + 0.587 G + 0.114 B (BT.601) of them.

    An RGB image so becomes the quaternions (r, i, j, k) = (R, G, B, gray) of document 003. As there, it is computed
    from the *normalised* image. With (p - mean) / std for each channel it is a weighted mean of normalised channels: of
    mean 0 over the training images, of a standard deviation somewhat below 1 (that of correlated channels), and, up
    to a constant, the gray of the picture only as far as the three standard deviations agree; on CIFAR they differ by
    at most 8 %. It is no further information, but the fourth component. Raises UserError for images of other channels.
    """

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise UserError(f"a gray channel is made of 3 channels, red, green and blue; got {images.shape[1]}")
        red, green, blue = images.split(1, dim=1)
        return torch.cat([images, LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue], dim=1)


def join(first: Tensor, second: Tensor) -> Tensor:
    """(N, A, H, W) and (N, B, H, W) -> (N, A + B, H, W), component by component."""
    return torch.cat([first.unflatten(1, (4, -1)), second.unflatten(1, (4, -1))], dim=2).flatten(1, 2)


class QuaternionDenseLayer(nn.Module):
    """A densely connected layer of `models.densenet`, of the same parts, that appends to each component its own."""

    def __init__(self, bn1: nn.Module, conv1: nn.Module, bn2: nn.Module, conv2: nn.Module) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = bn1, conv1, bn2, conv2
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu(self.bn1(x)))
        return join(x, self.conv2(self.relu(self.bn2(new))))


class QuaternionPadShortcut(nn.Module):
    """Option A for quaternions: every `stride`-th pixel, and `added` channels of zeros, a quarter to each component."""

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added = added
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        parts = x[:, :, :: self.stride, :: self.stride].unflatten(1, (4, -1))
        return F.pad(parts, (0, 0, 0, 0, 0, self.added // 4)).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"added={self.added}, stride={self.stride}"


class QuaternionAttention(nn.Module):
    """Multi-head self-attention on component-blocked tokens, (N, T, dim) -> (N, T, dim).

    q, k and v are quaternions, and each head of `head_width` real channels has all four components of its share of
    them; the attention itself is real: a head's q k^T adds up over the components. The number of heads is that of the
    projection's outputs.
    """

    def __init__(self, head_width: int, scale: float, qkv: nn.Module, project: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.head_width = fours("head_width", head_width)
        self.scale = scale
        self.qkv, self.project, self.dropout = qkv, project, dropout

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (4, 3, -1, self.head_width // 4))  # (N, T, component, q k v, heads, width)
        parts = parts.permute(3, 0, 4, 1, 2, 5).flatten(4)
        q, k, v = (parts[i] for i in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        mixed = mixed.unflatten(-1, (4, -1)).permute(0, 2, 3, 1, 4).flatten(2)
        return self.dropout(self.project(mixed))
