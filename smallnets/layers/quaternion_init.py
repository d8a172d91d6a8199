"""How quaternion weights start (Gaudet & Maida 2018, arXiv 1712.04604; Parcollet et al. 2019, arXiv 1806.04418).

A quaternion weight is a real tensor (outputs, inputs / 4, ...) whose first quarter of rows is r, then i, j and k.
Everything is drawn from torch's global generator, so that a seed gives the same weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from smallnets.layers.arguments import one_of


def he_(weight: Tensor) -> None:
    """Polar, sigma = 1 / sqrt(2 n): keeps the variance of rectified activations; n are a unit's input quaternions."""
    _polar_(weight, 1 / math.sqrt(2 * _fans(weight)[0]))


def glorot_(weight: Tensor) -> None:
    """Polar, sigma = 1 / sqrt(2 (n_in + n_out)), the fans counted in quaternions."""
    _polar_(weight, 1 / math.sqrt(2 * sum(_fans(weight))))


@torch.no_grad()
def xavier_(weight: Tensor) -> None:
    """Xavier-uniform on each component by itself, as document 003 does.

    A component's fans are a quarter of the real layer's, so that the activations have about four times the variance
    that they have in the real network.
    """
    for part in weight.chunk(4):
        nn.init.xavier_uniform_(part)


INITS: dict[str, Callable[[Tensor], None]] = {"he": he_, "glorot": glorot_, "xavier": xavier_}


def init_(weight: Tensor, kind: str) -> None:
    """Draws a quaternion weight in place by one of `INITS`; UserError for another name. Nothing on the meta device."""
    draw = INITS[one_of("init", kind, tuple(INITS))]
    if not weight.is_meta:
        draw(weight)


@torch.no_grad()
def _polar_(weight: Tensor, sigma: float) -> None:
    """q = m (cos t + u sin t): m is chi with four degrees of freedom times sigma, t uniform, u a random unit axis.

    E |q|^2 = 4 sigma^2, which is what the sum over the four components of an input sees.
    """
    parts = weight.unflatten(0, (4, -1))
    like: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    magnitude = sigma * torch.randn(parts.shape, **like).norm(dim=0)
    angle = torch.empty(parts.shape[1:], **like).uniform_(-math.pi, math.pi)
    axis = nn.functional.normalize(torch.randn((3, *parts.shape[1:]), **like), dim=0)
    parts.copy_(torch.cat([angle.cos()[None], axis * angle.sin()]) * magnitude)


def _fans(weight: Tensor) -> tuple[int, int]:
    """Input and output quaternions of a unit, times the kernel's cells."""
    cells = weight[0, 0].numel()
    return weight.shape[1] * cells, weight.shape[0] // 4 * cells
