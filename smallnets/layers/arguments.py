"""Checks of constructor arguments and of the images a network is given: one line in the user's own spelling."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from smallnets.errors import UserError


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` itself, when it is a whole number of at least `least`; else UserError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def whole_list(name: str, values: Any, least_length: int = 1) -> list[int]:
    """A new list of `values`, when each is a whole number of at least 1; else UserError."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or len(values) < least_length:
        raise UserError(f"{name} must be a list of at least {least_length} whole numbers, got {values!r}")
    return [whole(f"each of {name}", value) for value in values]


def per_stage(name: str, values: int | Sequence[int], stages: int) -> list[int]:
    """`values` as one whole number for each stage: a single number stands for all of them.

    Raises UserError when a list has another length than `stages`.
    """
    if isinstance(values, int):
        return [whole(name, values)] * stages
    numbers = whole_list(name, values)
    if len(numbers) != stages:
        raise UserError(f"{name} needs one number for each of the {stages} stages, got {len(numbers)}: {numbers}")
    return numbers


def odd_per_stage(name: str, values: int | Sequence[int], stages: int) -> list[int]:
    """As `per_stage`, for kernel sizes: only an odd kernel k with padding k // 2 keeps the side of an image."""
    numbers = per_stage(name, values, stages)
    if any(number % 2 == 0 for number in numbers):
        raise UserError(f"{name} must be odd, got {values!r}")
    return numbers


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value` itself, when it is among `allowed`; else UserError."""
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def share(name: str, value: Any) -> float:
    """`value` itself, when 0 <= value < 1 (a dropout); else UserError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UserError(f"{name} must be a number from 0 to below 1, got {value!r}")
    return value


def copied(values: int | Sequence[int]) -> int | list[int]:
    """A number itself or a new list: what a network keeps of an argument that may be either."""
    return values if isinstance(values, int) else list(values)


def check_image(net: str, images: Tensor, channels: int, side: int) -> None:
    """Raise UserError unless `images` is (N, `channels`, `side`, `side`), the size that `net` was built for."""
    # A tracer (torch.fx) passes a stand-in that has no size to compare.
    if isinstance(images, Tensor) and tuple(images.shape[1:]) != (channels, side, side):
        came = " x ".join(str(length) for length in images.shape[1:])
        raise UserError(f"{net} was built for images of {channels} x {side} x {side}, got {came}")


def check_side(net: str, images: Tensor, least: int) -> None:
    """Raise UserError when `images`, (N, C, H, W), are smaller than `least` pixels on a side."""
    if isinstance(images, Tensor) and min(images.shape[-2:]) < least:
        height, width = images.shape[-2:]
        raise UserError(f"{net} needs images of at least {least} x {least} pixels, got {height} x {width}")
