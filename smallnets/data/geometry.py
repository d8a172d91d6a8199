"""Shears, translations and rotations of uint8 batches, each image by its own matrix: nearest pixel, black outside.

A matrix says where in the old image a pixel of the new one is taken from: rows (a, b, c) and (d, e, f) with
x_old = a x + b y + c and y_old = d x + e y + f, in pixels from the image's centre, x to the right and y downwards. The
builders take float64 magnitudes on the CPU, since a batch's are few and the device need not be asked for them. Signs
and centres are those with which torchvision's AutoAugment calls `affine` and `rotate`: positive shears lean about the
upper left corner of the image, positive translations go right and down, positive rotations counterclockwise.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from smallnets.data.colour import to_bytes
from smallnets.data.draws import to_device


def shear_x(amounts: Tensor, height: int, width: int) -> Tensor:
    """Rows moved by `amount` of their distance from the upper edge: matrices (n, 6)."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return torch.stack([one, amounts, amounts * (height / 2), zero, one, zero], 1)


def shear_y(amounts: Tensor, height: int, width: int) -> Tensor:
    """Columns moved by `amount` of their distance from the left edge: matrices (n, 6)."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return torch.stack([one, zero, zero, amounts, one, amounts * (width / 2)], 1)


def translate_x(amounts: Tensor, height: int, width: int) -> Tensor:
    """`amount` pixels to the right, its fraction cut off: matrices (n, 6)."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return torch.stack([one, zero, -amounts.trunc(), zero, one, zero], 1)


def translate_y(amounts: Tensor, height: int, width: int) -> Tensor:
    """`amount` pixels downwards, its fraction cut off: matrices (n, 6)."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return torch.stack([one, zero, zero, zero, one, -amounts.trunc()], 1)


def rotate(amounts: Tensor, height: int, width: int) -> Tensor:
    """`amount` degrees counterclockwise about the centre: matrices (n, 6)."""
    zero, angles = torch.zeros_like(amounts), amounts.deg2rad()
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos, -sin, zero, sin, cos, zero], 1)


MATRICES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Images uint8 (n, C, H, W) moved by matrices (n, 6) on the CPU.

    Equal to torchvision's `affine` and `rotate` on tensors. Where a pixel comes from the exact middle between two, as
    single ones do under shears at some sizes, float32 rounding decides, which another device may do otherwise.
    """
    height, width = images.shape[2:]
    scaled = matrices.float().view(-1, 2, 3) / torch.tensor([[width / 2], [height / 2]])
    x, y = pixel_places(height, width, images.device)
    old = mapped(to_device(scaled, images.device), x - width / 2, y - height / 2)
    grid = old.view(-1, 2, height, width).permute(0, 2, 3, 1)
    moved = grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    return to_bytes(moved)


def pixel_places(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of the middle of each pixel of an image, from its upper left corner, row by row: float32 (H W,)."""
    x = torch.arange(width, device=device) + 0.5
    y = torch.arange(height, device=device) + 0.5
    return x.expand(height, width).reshape(-1), y[:, None].expand(height, width).reshape(-1)


def mapped(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """a x + b y + c for each row (a, b, c) of `rows` (n, k, 3) and each place: (n, k, places).

    Products and sums one by one, not a matrix product: that one may be computed in TF32, with errors of pixels.
    """
    a, b, c = rows.unsqueeze(3).unbind(2)
    return (a * x).add_(b * y).add_(c)
