"""`show`: figures and pictures as the last line of a notebook's cell."""

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from smallnets.errors import UserError


@dataclass(frozen=True, repr=False)
class Shown:
    """A PNG, which Jupyter shows, and which also shows where no script runs (on GitHub, on paper)."""

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"<a picture of {len(self.png):,} bytes>"


def show(what: Any, scale: float = 1.0) -> Shown:
    """A figure of `smallnets.report`, an Altair chart, or a picture of `smallnets.results.pictures`, for Jupyter.

    Args:
        what: has `plot()`, or is a chart, drawn with this project's look; or a tensor (1 or 3, height, width), uint8
            or in [0, 1].
        scale: pixels a point of a figure; pictures are shown as they are.

    Raises:
        UserError: anything else, or a figure where altair is not installed.
    """
    if isinstance(what, Tensor):
        if what.ndim != 3 or len(what) not in (1, 3):
            raise UserError(f"show takes one picture (1 or 3, height, width), got {tuple(what.shape)}")
        from torchvision.transforms.functional import to_pil_image

        return _shown(to_pil_image(what.detach().cpu()))
    chart = what.plot() if hasattr(what, "plot") else what
    if not hasattr(chart, "to_dict"):
        raise UserError(f"show takes a figure, a chart or a picture, got {type(what).__name__}")
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise UserError("a figure needs vl-convert: pip install 'smallnets[report]'") from error
    from smallnets.report.figures import spec

    drawn = Image.open(io.BytesIO(vl_convert.vegalite_to_png(spec(chart), scale=scale)))
    # 256 colours are enough for a chart, and a quarter of the bytes: notebooks are kept with their outputs.
    return _shown(drawn.convert("RGB").quantize(256))


def _shown(image: Image.Image) -> Shown:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return Shown(file.getvalue())
