"""Augmentation by name, and normalisation: what happens to a uint8 batch before a network sees it.

An augmentation is a function (images uint8 (B, C, H, W), generator) -> images of the same shape, type and device, each
image with its own random parameters, the outcome a function of the images and the generator's state, worked out for the
whole batch on its device in a few kernels, without waiting for it. `batched` has those that move and cover whole
rectangles, `perspective` and `policies` (with `geometry` and `colour` below it) the others; `draws` says where random
numbers come from.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from smallnets.data.batched import Transform, crop, cutout, erase, flip
from smallnets.data.perspective import perspective
from smallnets.data.policies import autoaugment, randaugment, trivialaugment
from smallnets.errors import UserError

REGISTRY: dict[str, Callable[..., Transform]] = {
    "flip": flip,
    "crop": crop,
    "cutout": cutout,
    "erase": erase,
    "perspective": perspective,
    "autoaugment": autoaugment,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
}


class Augmentation(NamedTuple):
    """A function over batches with the name and the parameters that it was asked for by."""

    name: str
    parameters: dict[str, Any]
    apply: Transform


def parse(
    specs: Iterable[str | Mapping[str, Mapping[str, Any] | None]], mean_pixel: Sequence[int] | None = None
) -> list[Augmentation]:
    """The augmentations of a config, in its order.

    Args:
        specs: names, or {name: {parameter: value}}: ["crop", "flip", {"cutout": {"size": 8}}].
        mean_pixel: what cutout covers with where no `fill` is given, one value in 0 .. 255 for each channel.

    Raises:
        UserError: an unknown name, an unknown parameter, or a value out of its range.
    """
    if isinstance(specs, str):
        raise UserError(f"data.augment is a list, as [{specs}], not {specs!r}")
    named = []
    for spec in specs:
        entries = {spec: None} if isinstance(spec, str) else spec
        if not isinstance(entries, Mapping):
            raise UserError(f"data.augment: an entry is a name or {{name: {{parameter: value}}}}, not {spec!r}")
        named += [_build(name, dict(parameters or {}), mean_pixel) for name, parameters in entries.items()]
    return named


def apply_all(augmentations: Iterable[Augmentation], images: Tensor, generator: Generator) -> Tensor:
    """Applies them one after the other, all drawing from one generator."""
    for augmentation in augmentations:
        images = augmentation.apply(images, generator)
    return images


def normalise(images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """(images / 255 - mean) / std for each channel: uint8 (B, C, H, W) -> float32.

    `mean` and `std` are those of pixels in [0, 1], one value for each channel.
    """
    scaled_mean, scaled_std = (
        (torch.as_tensor(v, dtype=torch.float32, device=images.device) * 255).view(-1, 1, 1) for v in (mean, std)
    )
    # Bytes become floats first: subtracting a float from a byte is a slow loop of torch's on some CPUs.
    return images.to(torch.float32, copy=True).sub_(scaled_mean).div_(scaled_std)


def _build(name: str, parameters: dict[str, Any], mean_pixel: Sequence[int] | None) -> Augmentation:
    if name not in REGISTRY:
        near = get_close_matches(str(name), REGISTRY, n=2, cutoff=0.5)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"data.augment: there is no {name!r}{meant}\nallowed: {', '.join(REGISTRY)}")
    allowed = list(inspect.signature(REGISTRY[name]).parameters)
    unknown = [p for p in parameters if p not in allowed]
    if unknown:
        takes = f"allowed: {', '.join(allowed)}" if allowed else "it takes none"
        raise UserError(f"data.augment: {name} has no parameter {unknown[0]!r}; {takes}")
    defaults = {"fill": list(mean_pixel)} if name == "cutout" and mean_pixel is not None else {}
    return Augmentation(name, parameters, REGISTRY[name](**{**defaults, **parameters}))
