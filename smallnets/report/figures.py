"""`Figure`: what every figure is; `save`: its numbers and its picture side by side."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import altair as alt
import pandas as pd
import vl_convert

from smallnets.results.row import write_text

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31"]
FORMATS = ("png", "svg", "html")


class Figure(Protocol):
    """A figure is made of a data frame alone: what `plot` shows is in `frame`."""

    def frame(self) -> pd.DataFrame:
        """The numbers, a line a mark; accuracies as shares of 1."""
        ...

    def plot(self) -> Any:
        """An Altair chart of them."""
        ...


def colour(title: str | None, names: list[str]) -> alt.Color:
    """The colour of `names`, always the same for the same place among them."""
    scale = alt.Scale(domain=names, range=[COLOURS[i % len(COLOURS)] for i in range(len(names))])
    return alt.Color(title or "", type="nominal", scale=scale, sort=names)


def spec(chart: Any) -> dict[str, Any]:
    """A chart as Vega-Lite, with this project's look."""
    look = {
        "axis": {"labelFontSize": 12, "titleFontSize": 12},
        "legend": {"labelFontSize": 12, "labelLimit": 400, "symbolOpacity": 1},
    }
    look["text"] = {"limit": 260}
    return {**chart.to_dict(), "config": {**look, "view": {"stroke": "#ddd"}, "background": "white"}}


def save(figure: Figure, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes STEM.csv, and of .png (two pixels a point), .svg and .html (opens from disk) those that are asked for.

    Each is written by rename; returns their paths.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    chart = spec(figure.plot())
    written = [stem.with_name(f"{stem.name}.csv")]
    write_text(written[0], figure.frame().to_csv(index=False))
    make: dict[str, Callable[[], str | bytes]] = {
        "png": lambda: vl_convert.vegalite_to_png(chart, scale=2),
        "svg": lambda: vl_convert.vegalite_to_svg(chart),
        "html": lambda: vl_convert.vegalite_to_html(chart, bundle=True),
    }
    for kind in formats:
        path = stem.with_name(f"{stem.name}.{kind}")
        made = make[kind]()
        if isinstance(made, str):
            write_text(path, made)
        else:
            write_bytes(path, made)
        written.append(path)
    return written


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file by rename."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
