"""What is left of each layer, as a small picture for TensorBoard: a bar a layer, with its name."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROW, LONGEST = 14, 240  # pixels
KEPT, GONE = (31, 119, 180), (222, 222, 222)
_GAP = 6


def layer_bars(layers: Mapping[str, tuple[int, int]]) -> np.ndarray:
    """A picture, uint8 (rows * 14, width, 3), of (kept, total) by layer.

    In row i, that of the i-th layer, lie its name, a bar of which round(240 * kept / total) pixels are blue and the
    others grey, and the two numbers. Nothing but these bars has their two colours.
    """
    font = ImageFont.load_default()
    texts = {name: f"{kept:,} of {total:,}" for name, (kept, total) in layers.items()}
    left, right = (max((int(font.getlength(each)) for each in of), default=0) for of in (layers, texts.values()))
    start = left + 2 * _GAP
    picture = Image.new("RGB", (start + LONGEST + right + 2 * _GAP, max(1, len(layers)) * ROW), "white")
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "1"  # no shades between black and white
    for row, (name, (kept, total)) in enumerate(layers.items()):
        top, blue = row * ROW, round(LONGEST * kept / total) if total else 0
        draw.text((_GAP, top + 1), name, "black", font)
        for begin, end, colour in ((0, blue, KEPT), (blue, LONGEST, GONE)):
            if end > begin:
                draw.rectangle((start + begin, top + 2, start + end - 1, top + ROW - 3), colour)
        draw.text((start + LONGEST + _GAP, top + 1), texts[name], "black", font)
    return np.asarray(picture)
