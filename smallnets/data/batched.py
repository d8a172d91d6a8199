"""Augmentations of whole uint8 batches, on their device.

Every builder returns a function (images uint8 (B, C, H, W), generator) -> images of the same shape, type and device.
Each image has its own random parameters; all are drawn from the generator, which lies on the images' device; nothing
waits for the device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from smallnets.errors import UserError

Transform = Callable[[Tensor, Generator], Tensor]


def flip(p: float = 0.5) -> Transform:
    """Mirrors an image left to right with probability `p`."""
    check_share("flip.p", p)

    def apply(images: Tensor, generator: Generator) -> Tensor:
        count = len(images)
        chosen = torch.rand(count, device=images.device, generator=generator) < p
        # Whole images are copied, which is many times faster than a choice for each pixel.
        both = torch.cat([images, images.flip(-1)])
        return both.index_select(0, torch.arange(count, device=images.device) + count * chosen)

    return apply


def crop(padding: int = 4, mode: str = "zero") -> Transform:
    """Pads by `padding` pixels a side and cuts the old size out anywhere (He et al. 2016, section 4.2).

    Args:
        padding: pixels a side.
        mode: what is padded with: `zero`, black as in the source documents, or `reflect`, the image mirrored.
    """
    check_count("crop.padding", padding, least=0)
    check_choice("crop.mode", mode, ("zero", "reflect"))

    def apply(images: Tensor, generator: Generator) -> Tensor:
        count, channels, height, width = images.shape
        if mode == "reflect" and padding >= min(height, width):
            raise UserError(f"crop.padding={padding} cannot be reflected in images of {height} x {width}")
        if mode == "zero":
            padded = torch.nn.functional.pad(images, (padding,) * 4)
        else:
            rows, columns = (_mirrored(size, padding, images.device) for size in (height, width))
            padded = images.index_select(2, rows).index_select(3, columns)
        top, left = torch.randint(2 * padding + 1, (2, count), device=images.device, generator=generator)
        # Rows of a cut are `width` neighbours in memory. A view of every such stretch is taken from, row by row, which
        # copies them whole, many times faster than pixel by pixel.
        pixels = padded.contiguous().view(-1)
        stretches = pixels.as_strided((len(pixels) - width + 1, width), (1, 1))
        wide, area = width + 2 * padding, (height + 2 * padding) * (width + 2 * padding)
        planes = torch.arange(count * channels, device=images.device).view(count, channels, 1) * area
        first = (top * wide + left).view(-1, 1, 1) + torch.arange(height, device=images.device) * wide
        return stretches.index_select(0, (planes + first).flatten()).view(images.shape)

    return apply


def _mirrored(size: int, padding: int, device: torch.device) -> Tensor:
    """For each row of a padded image the row of the image that is mirrored there; the edge is not repeated."""
    positions = torch.arange(-padding, size + padding, device=device).abs()
    return size - 1 - (size - 1 - positions).abs()


def cutout(size: int = 16, fill: int | Sequence[int] = 0) -> Transform:
    """Covers a square of `size` pixels, its middle anywhere in the image (DeVries & Taylor 2017); edges may cut it.

    `fill` is what it is covered with: one value or one for each channel, in 0 .. 255. A data module gives the mean
    pixel of the training split where a config does not say: the paper covers with 0 *after* normalisation.
    """
    check_count("cutout.size", size, least=1)
    _check_fill("cutout.fill", fill)

    def apply(images: Tensor, generator: Generator) -> Tensor:
        count, _, height, width = images.shape
        top, left = (
            torch.randint(n, (count,), device=images.device, generator=generator) - size // 2 for n in (height, width)
        )
        inside = _rectangle(top, left, torch.full_like(top, size), torch.full_like(top, size), height, width)
        return torch.where(inside, _filled(fill, images), images)

    return apply


def erase(
    p: float = 0.5,
    area: Sequence[float] = (0.02, 0.4),
    aspect: float = 0.3,
    fill: str | int | Sequence[int] = "random",
) -> Transform:
    """Random Erasing (Zhong, Zheng, Kang, Li, Yang 2017, arXiv 1708.04896).

    With probability `p` a rectangle is covered: its share of the image uniform in `area`, its height : width uniform
    in (aspect, 1 / aspect), where it fits inside; after ten draws without a fit the image stays as it is.

    `fill`: `random` draws each value from 0 .. 255, which the paper found best; else one value or one for each channel.
    """
    check_share("erase.p", p)
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise UserError(f"erase.area is two shares of the image, smaller first, not {list(area)}")
    if not 0 < aspect <= 1:
        raise UserError(f"erase.aspect is in (0, 1], not {aspect}")
    if fill != "random":
        _check_fill("erase.fill", fill)

    def apply(images: Tensor, generator: Generator) -> Tensor:
        count, _, height, width = images.shape
        chance, share, ratio = torch.rand(3, count, 10, device=images.device, generator=generator)
        surface = (area[0] + (area[1] - area[0]) * share) * (height * width)
        ratio = aspect + (1 / aspect - aspect) * ratio
        tall, wide = (surface * ratio).sqrt().round().long(), (surface / ratio).sqrt().round().long()
        fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        tall, wide = tall.gather(1, first).squeeze(1), wide.gather(1, first).squeeze(1)
        spot = torch.rand(2, count, device=images.device, generator=generator)
        top, left = (spot[0] * (height - tall + 1)).long(), (spot[1] * (width - wide + 1)).long()
        inside = _rectangle(top, left, tall, wide, height, width)
        inside = inside & (fits.any(1) & (chance[:, 0] < p)).view(-1, 1, 1, 1)
        if fill == "random":
            cover = torch.randint(256, images.shape, device=images.device, generator=generator, dtype=torch.uint8)
        else:
            cover = _filled(fill, images)  # type: ignore[arg-type]
        return torch.where(inside, cover, images)

    return apply


def _rectangle(top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, height: int, width: int) -> Tensor:
    """For B rectangles, which pixels lie inside: bool (B, 1, height, width)."""
    rows, columns = (torch.arange(n, device=top.device) for n in (height, width))
    vertical = (rows >= top[:, None]) & (rows < (top + tall)[:, None])
    horizontal = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return vertical[:, None, :, None] & horizontal[:, None, None, :]


def _filled(fill: int | Sequence[int], images: Tensor) -> Tensor:
    values = [fill] * images.shape[1] if isinstance(fill, int) else list(fill)
    if len(values) != images.shape[1]:
        raise UserError(f"a fill of {len(values)} values for images of {images.shape[1]} channels")
    # Filled value by value on the device: a tensor made from a list would be copied there, and waited for.
    return torch.cat([torch.full((1, 1, 1, 1), v, dtype=torch.uint8, device=images.device) for v in values], 1)


def _check_fill(name: str, fill: object) -> None:
    values = fill if isinstance(fill, list | tuple) else [fill]
    if not values or not all(isinstance(v, int) and 0 <= v <= 255 for v in values):
        raise UserError(f"{name} is one integer in 0 .. 255, or one for each channel, not {fill!r}")


def check_share(name: str, value: float) -> None:
    """Raises a UserError unless `value` is a number in [0, 1]."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name} is a share in [0, 1], not {value!r}")


def check_count(name: str, value: int, least: int) -> None:
    """Raises a UserError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise UserError(f"{name} is an integer of {least} or more, not {value!r}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises a UserError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise UserError(f"{name} is one of {', '.join(allowed)}, not {value!r}")
