"""Pictures of predictions for people: the confusion matrix, and images with what was said of them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from smallnets.errors import UserError

_BLUE, _RED, _INK, _GREY = (31, 87, 164), (200, 60, 40), (20, 20, 20), (200, 200, 200)
_FONT = 12
# With more classes than these names and numbers could not be read.
_NAMED = 20


def confusion_picture(counts: Tensor, classes: Sequence[str] = ()) -> Tensor:
    """A confusion matrix as an image: rows are true classes, columns predicted ones.

    A cell is the darker the larger its share of its row is (by the square root, so that rare mistakes are seen): blue
    for correct predictions, red for mistakes. Up to 20 classes, cells hold their counts, and names stand beside.

    Args:
        counts: (C, C) as `Predictions.confusion` gives it.
        classes: C names; by default the numbers of the classes.

    Returns:
        uint8 (3, height, width).

    Raises:
        UserError: the counts are not square, or not as many as there are names.
    """
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or len(classes) not in (0, len(counts)):
        raise UserError(f"a confusion matrix is C x C for C names, not {tuple(counts.shape)} for {len(classes)}")
    number = len(counts)
    named = number <= _NAMED
    names = [_short(str(each), 110) for each in (classes or range(number))]
    cell = 40 if named else max(2, 720 // number)
    margin = int(max(_font().getlength(name) for name in names)) + 12 if named else 0
    left = top = margin + 20
    picture = Image.new("RGB", (left + number * cell + 8, top + number * cell + 8), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((left, 3), "predicted", _INK, _font())
    picture.paste(_upright("true"), (3, top))
    shares = (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)).sqrt().tolist()
    for row in range(number):
        for column in range(number):
            x, y, share = left + column * cell, top + row * cell, shares[row][column]
            colour = _tint(_BLUE if row == column else _RED, share)
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), colour, _GREY if named else None)
            if named and counts[row, column]:
                text, ink = str(int(counts[row, column])), "white" if share > 0.6 else _INK
                draw.text((x + cell / 2, y + cell / 2), text, ink, _font(), anchor="mm")
        if named:
            draw.text((left - 6, top + (row + 0.5) * cell), names[row], _INK, _font(), anchor="rm")
            name = _upright(names[row])
            picture.paste(name, (left + row * cell + (cell - name.width) // 2, top - 6 - name.height))
    return _tensor(picture)


def captioned(images: Tensor, captions: Sequence[Sequence[str]], columns: int = 5) -> Tensor:
    """Images in a grid, enlarged without smoothing, each with its lines of text below.

    Args:
        images: (N, 1 or 3, height, width), values in 0..1.
        captions: for each image its lines, the same number for all.

    Returns:
        uint8 (3, height, width); of no image, one that says so.

    Raises:
        UserError: there are not as many captions as images.
    """
    if len(images) != len(captions):
        raise UserError(f"{len(images)} images have {len(captions)} captions")
    if not len(images):
        return _tensor(_label("none"))
    scale = max(1, 112 // images.shape[3])
    width, height = max(128, images.shape[3] * scale) + 12, images.shape[2] * scale
    pitch = height + len(captions[0]) * (_FONT + 3) + 12
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (min(columns, len(images)) * width, rows * pitch), "white")
    draw = ImageDraw.Draw(picture)
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        x, y = place % columns * width + 6, place // columns * pitch + 4
        pixels = (image.expand(3, -1, -1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        size = (images.shape[3] * scale, height)
        picture.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (x, y))
        for line, text in enumerate(lines):
            draw.text((x, y + height + 2 + line * (_FONT + 3)), _short(text, width - 8), _INK, _font())
    return _tensor(picture)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT)


def _short(text: str, width: float) -> str:
    """The text, cut so that it is at most `width` pixels wide."""
    while len(text) > 1 and _font().getlength(text) > width:
        text = text[:-2] + "…"
    return text


def _label(text: str) -> Image.Image:
    label = Image.new("RGB", (int(_font().getlength(text)) + 2, _FONT + 4), "white")
    ImageDraw.Draw(label).text((1, 0), text, _INK, _font())
    return label


def _upright(text: str) -> Image.Image:
    return _label(text).rotate(90, expand=True)


def _tint(colour: tuple[int, int, int], strength: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 + (each - 255) * strength) for each in colour)
    return red, green, blue


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())
