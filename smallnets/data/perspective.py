"""Perspective: images seen as if tilted, each by the homography of its own four corners."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from smallnets.data.batched import Transform, check_share
from smallnets.data.colour import to_bytes
from smallnets.data.draws import host_generator, to_device
from smallnets.data.geometry import mapped, pixel_places


def perspective(distortion: float = 0.5, p: float = 0.5) -> Transform:
    """With probability `p`, moves the corners inwards by up to `distortion` of half the image; black outside.

    Document 002 uses distortion 0.6 with p 0.5, after AutoAugment, crop and flip. Corners are drawn as torchvision's
    RandomPerspective does: whole pixels, each coordinate uniform. Who is moved, and where to, is drawn on the host (see
    `draws`), so that only those are computed.
    """
    check_share("perspective.distortion", distortion)
    check_share("perspective.p", p)

    def apply(images: Tensor, generator: Generator) -> Tensor:
        count, _, height, width = images.shape
        chosen, corners = draw_corners(count, height, width, distortion, p, host_generator(generator))
        moved = chosen.nonzero().flatten()
        if len(moved) == 0:
            return images
        warped = warp(
            images.index_select(0, to_device(moved, images.device)), homographies(corners[moved], height, width)
        )
        # Where each image of the result stands: among the old ones, or behind them among the warped ones.
        places = torch.where(chosen, count - 1 + chosen.cumsum(0), torch.arange(count))
        return torch.cat([images, warped]).index_select(0, to_device(places, images.device))

    return apply


def draw_corners(
    count: int, height: int, width: int, distortion: float, p: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Which of `count` images are moved, bool, and the corners of all, int64 (count, 4, 2), by a generator on the CPU.

    Corners are (x, y) in pixels, in the order upper left, upper right, lower right, lower left.
    """
    chosen = torch.rand(count, generator=generator) < p
    across, down = int(distortion * (width // 2)) + 1, int(distortion * (height // 2)) + 1
    x = torch.randint(across, (count, 4), generator=generator) + torch.tensor([0, width - across, width - across, 0])
    y = torch.randint(down, (count, 4), generator=generator) + torch.tensor([0, 0, height - down, height - down])
    return chosen, torch.stack([x, y], 2)


def homographies(corners: Tensor, height: int, width: int) -> Tensor:
    """For corners (n, 4, 2) that the image's four shall go to, where its pixels come from: float64 (n, 8).

    Coefficients a .. h with x_old = (a x + b y + c) / (g x + h y + 1) and y_old = (d x + e y + f) / (g x + h y + 1).
    In closed form: with p_i = (x_i, y_i, 1) the corners in their order and w_i the weights of w_1 p_1 + w_3 p_3 =
    w_0 p_0 + w_2 p_2, the homography of the unit square onto the corners has the columns w_1 p_1 - w_0 p_0,
    w_3 p_3 - w_0 p_0 and w_0 p_0, and its inverse the rows of their cross products. All of it but the last division
    is in whole numbers. Three corners on one line have no homography; they get the identity.
    """
    points = torch.nn.functional.pad(corners.double(), (0, 1), value=1)
    following = points.roll(-1, 1)
    lines = torch.linalg.cross(points, following)  # through corners 0 and 1, 1 and 2, 2 and 3, 3 and 0
    # The weight of a corner is twice the area of the triangle of the three others.
    weights = (lines.roll(-1, 1) * points.roll(-3, 1)).sum(2)
    weighted = weights[:, :, None] * points
    first, second = weighted[:, 1] - weighted[:, 0], weighted[:, 3] - weighted[:, 0]
    across = lines[:, 3] * (weights[:, 3] * weights[:, 0])[:, None] * (width - 1)
    down = lines[:, 0] * (weights[:, 0] * weights[:, 1])[:, None] * (height - 1)
    depth = torch.linalg.cross(first, second)
    coefficients = torch.cat([across, down, depth[:, :2]], 1) / depth[:, 2:]
    exists = (weights != 0).all(1) & (depth[:, 2] != 0)
    identity = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0], dtype=torch.float64)
    return torch.where(exists[:, None], coefficients, identity)


def warp(images: Tensor, coefficients: Tensor) -> Tensor:
    """Images uint8 (n, C, H, W) moved by homographies (n, 8) on the CPU, bilinear, black outside.

    Equal to torchvision's `perspective` with fill 0 on tensors, its edge included: a pixel that lies outside in part is
    darkened twice by that part, once as it is mixed with black and once by the mask of the fill.
    """
    height, width = images.shape[2:]
    rows = torch.nn.functional.pad(coefficients.float(), (0, 1), value=1).view(-1, 3, 3)
    rows[:, :2] /= torch.tensor([[width / 2], [height / 2]])
    old = mapped(to_device(rows, images.device), *pixel_places(height, width, images.device))
    old = old[:, :2].div_(old[:, 2:]).sub_(1)
    grid = old.view(-1, 2, height, width).permute(0, 2, 3, 1)
    count, channels = images.shape[:2]
    masked = torch.ones(count, channels + 1, height, width, device=images.device)
    masked[:, :-1] = images
    sampled = grid_sample(masked, grid, mode="bilinear", align_corners=False)
    return to_bytes(sampled[:, :-1].mul_(sampled[:, -1:]).round_())
