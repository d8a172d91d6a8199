"""mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), every image with its own partner and its own share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from smallnets.errors import UserError


def mixup(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator, num_classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """lam * image + (1 - lam) * partner, images and targets alike ("mixup: Beyond Empirical Risk Minimization").

    Partners are a random permutation of the batch, lam ~ Beta(alpha, alpha) is drawn for each image. Small alpha
    leaves images nearly as they are (or exchanges them for their partners), large alpha averages them.

    Args:
        images: (N, channels, height, width), floating point.
        targets: class numbers, int64 (N,), or shares of the classes, float (N, classes).
        alpha: above 0.
        generator: the only source of randomness; equal generators give equal results.
        num_classes: needed for class numbers.

    Returns:
        Images like `images`; targets (N, classes) in the images' dtype, each row with the sum it had (1 for numbers).

    Raises:
        UserError: `alpha` is not above 0 and finite, or `num_classes` is missing.
    """
    soft = _soft(images, targets, num_classes)
    partner = _permutation(len(images), generator, images.device)
    lam = _beta(alpha, len(images), generator).to(images.device, images.dtype)
    share = lam[:, None, None, None]
    return share * images + (1 - share) * images[partner], _mixed(soft, partner, lam)


def cutmix(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator, num_classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Paste a box of the partner into each image; the targets mix by the area that was pasted, exactly.

    As "CutMix: Regularization Strategy to Train Strong Classifiers": lam ~ Beta(alpha, alpha), a box of
    floor(height * sqrt(1 - lam)) by floor(width * sqrt(1 - lam)) pixels around a uniform centre, cut off at the
    border. The target's own share is then corrected to 1 - (pixels pasted) / (height * width).

    Args, returns and errors are those of `mixup`; images may have any dtype, and targets are float32 beside integers.
    """
    soft = _soft(images, targets, num_classes)
    count, device = len(images), images.device
    height, width = images.shape[-2:]
    partner = _permutation(count, generator, device)
    side = (1 - _beta(alpha, count, generator)).sqrt().to(device)
    centres = torch.rand(2, count, generator=generator, device=generator.device).to(device)
    inside_y = _interval(height, side, centres[0])
    inside_x = _interval(width, side, centres[1])
    box = inside_y[:, :, None] & inside_x[:, None, :]
    lam = (1 - box.sum((1, 2)) / (height * width)).to(soft.dtype)
    return torch.where(box[:, None], images[partner], images), _mixed(soft, partner, lam)


def _interval(length: int, side: Tensor, centre: Tensor) -> Tensor:
    """(N, length) bool: the pixels within floor(length * side) around a uniform centre, cut off at the border."""
    size = (length * side).long()
    start = (length * centre).long() - size // 2
    place = torch.arange(length, device=side.device)
    return (place >= start[:, None]) & (place < (start + size)[:, None])


def _soft(images: Tensor, targets: Tensor, num_classes: int | None) -> Tensor:
    dtype = images.dtype if images.is_floating_point() else torch.float32
    if targets.dim() == 2:
        return targets.to(dtype)
    if num_classes is None:
        raise UserError("class numbers can be mixed only when num_classes is given, or as shares (N, classes)")
    return F.one_hot(targets, num_classes).to(dtype)


def _mixed(soft: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    return lam[:, None] * soft + (1 - lam[:, None]) * soft[partner]


def _permutation(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=generator, device=generator.device).to(device)


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) draws from Beta(alpha, alpha) on the generator's device.

    X / (X + Y) with X, Y ~ Gamma(alpha), in logarithms: log Gamma(a) = log Gamma(a + 1) + log(U) / a (Marsaglia and
    Tsang 2000, section 6). For small alpha X and Y themselves underflow to 0 / 0.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise UserError(f"alpha must be above 0 and finite, got {alpha}")
    # Metal has no float64.
    dtype = torch.float32 if generator.device.type == "mps" else torch.float64
    shape = torch.full((2, count), alpha + 1, dtype=dtype, device=generator.device)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = 1 - torch.rand(2, count, generator=generator, dtype=dtype, device=generator.device)  # never 0
    logs = gamma.log() + uniform.log() / alpha
    return torch.sigmoid(logs[0] - logs[1])
