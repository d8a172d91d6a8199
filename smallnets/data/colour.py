"""Operations on the values of uint8 images (n, 1 or 3, H, W), each image with its own amount.

Seven of them map a value to a value: they are tables (n, C or 1, 256) for `look_up`, made for a whole batch in a few
kernels. Two look at more than one value: `saturation` at a pixel's three, `sharpness` at its neighbours.

`amounts` are the magnitudes of AutoAugment and its kin, float32 (n,) on the images' device. Brightness, contrast,
saturation and sharpness blend by the factor 1 + amount: 0 leaves an image as it is, -1 gives black, the mean grey, the
grey image, the blurred one. 1 + amount and its complement, -amount, are both exact here up to one rounding; that, the
order of the arithmetic and the fused multiply and add are those of `torchvision.transforms.v2.functional` on uint8
tensors, and so are the results, bitwise on the CPU. A build without the fused operation may differ by one level.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Each pixel's value replaced by the one at its place in its table: uint8 (n, C, 256), one an image and channel."""
    pixels = images.flatten(2).flatten(0, 1)
    places = pixels + torch.arange(0, 256 * len(pixels), 256, dtype=torch.int32, device=images.device)[:, None]
    return tables.flatten().index_select(0, places.flatten()).view(images.shape)


def brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """The table of x -> (1 + amount) x."""
    return _clamped(_levels(images) * (1 + _per_image(amounts, 3)))


def contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """The table of x -> (1 + amount) x - amount m, with m the mean of the image in grey."""
    mean = _grey(images).mean((1, 2, 3), keepdim=True).flatten(2)
    amounts = _per_image(amounts, 3)
    return _clamped(torch.addcmul(_levels(images) * (1 + amounts), mean, -amounts))


def posterize(images: Tensor, amounts: Tensor) -> Tensor:
    """The table that keeps the `amount` highest bits, 0 .. 8."""
    mask = torch.bitwise_left_shift(255, 8 - _per_image(amounts, 3).long())
    return (_levels(images).long() & mask).to(torch.uint8)


def solarize(images: Tensor, amounts: Tensor) -> Tensor:
    """The table that inverts the values of 255 * amount and more."""
    levels = _levels(images)
    return torch.where(levels >= 255 * _per_image(amounts, 3), 255 - levels, levels).to(torch.uint8)


def invert(images: Tensor, amounts: Tensor) -> Tensor:
    """The table of x -> 255 - x; there are no amounts of it."""
    return (255 - _levels(images)).to(torch.uint8).expand(len(images), 1, 256)


def autocontrast(images: Tensor, amounts: Tensor) -> Tensor:
    """The tables that stretch each channel to 0 .. 255; one of a single value stays. There are no amounts of it."""
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True).float(), pixels.amax(2, keepdim=True).float()
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return _clamped((_levels(images) - torch.where(flat, 0.0, low)) / scale)


def equalize(images: Tensor, amounts: Tensor) -> Tensor:
    """The tables that spread each channel's values evenly, by Pillow's rule; there are no amounts of it.

    With h the histogram and step = (pixels - h[largest value]) // 255, a value x becomes
    (h[0] + ... + h[x - 1] + step // 2) // step. A channel whose step is 0 stays as it is.
    """
    pixels = images.flatten(2).flatten(0, 1)
    rows, size = pixels.shape
    places = (pixels + torch.arange(0, 256 * rows, 256, device=images.device)[:, None]).flatten()
    counts = torch.zeros(rows * 256, dtype=torch.int32, device=images.device)
    counts = counts.scatter_add_(0, places, torch.ones_like(places, dtype=torch.int32)).view(rows, 256)
    below = counts.cumsum(1, dtype=torch.int32) - counts
    of_largest = counts.gather(1, pixels.amax(1, keepdim=True).long())
    step = (size - of_largest) // 255
    # The floor of a quotient of whole numbers below 2**23 is exact in float32, and many times faster than in integers.
    even = (below + step // 2).float().div_(step.clamp(min=1)).floor_()
    return _clamped(torch.where(step == 0, _levels(images), even)).view(len(images), -1, 256)


def saturation(images: Tensor, amounts: Tensor) -> Tensor:
    """(1 + amount) x - amount g, with g the pixel's grey; images of one channel stay as they are."""
    if images.shape[1] == 1:
        return images
    amounts = _per_image(amounts, 4)
    return _clamped(torch.addcmul(images * (1 + amounts), _grey(images), -amounts))


def sharpness(images: Tensor, amounts: Tensor) -> Tensor:
    """(1 + amount) x - amount b, with b the blurred pixel: its neighbours and five times itself, over 13, rounded.

    The outermost pixels stay, and so do images of two pixels or fewer a side.
    """
    if min(images.shape[2:]) <= 2:
        return images
    values = images.float()
    threes = values[..., :-2] + values[..., 1:-1] + values[..., 2:]
    nines = threes[..., :-2, :] + threes[..., 1:-1, :] + threes[..., 2:, :]
    inner = values[..., 1:-1, 1:-1]
    blurred = nines.add_(inner, alpha=4).div_(13).round_()  # a sum over 13 is never halfway between two integers
    inner.copy_(torch.addcmul(inner, blurred - inner, -_per_image(amounts, 4)))
    return _clamped(values)


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": brightness,
    "Contrast": contrast,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
}
BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Color": saturation, "Sharpness": sharpness}


def _levels(images: Tensor) -> Tensor:
    """0 .. 255, float32, on the images' device."""
    return torch.arange(256, dtype=torch.float32, device=images.device)


def _per_image(amounts: Tensor, dimensions: int) -> Tensor:
    return amounts.view(-1, *[1] * (dimensions - 1))


def _grey(images: Tensor) -> Tensor:
    """float32 (n, 1, H, W), whole numbers; the weights are those of ITU-R BT.601, as torchvision rounds them."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def _clamped(values: Tensor) -> Tensor:
    """float32 to uint8: clamped to 0 .. 255 and cut off, as torchvision does, not rounded."""
    return to_bytes(values.clamp_(0, 255))


def to_bytes(values: Tensor) -> Tensor:
    """float32 in [0, 255] to uint8, fractions cut off; by way of int16, for which processors have instructions."""
    return values.to(torch.int16).to(torch.uint8)
