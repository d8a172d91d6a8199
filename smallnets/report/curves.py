"""`CurvesFigure`: a figure of every epoch of training, a line a cell with a band over seeds, from `metrics.csv`."""

import csv
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from smallnets.errors import UserError
from smallnets.report.collect import Cell, Results, nearest
from smallnets.report.figures import COLOURS, colour
from smallnets.report.stats import summary

SHOWN = ("val/accuracy", "train/loss")
# A page with thousands of epochs of many cells opens slowly: so many points of a line are drawn, all are in the frame.
_POINTS = 200
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
INTERVAL, RANGE, ALONE = "95 % interval", "lowest to highest", "one seed"
BANDS = (
    "Lines are means over seeds, bands the 95 % t interval of the mean; of two seeds, from the lower to the higher;"
    " of one, none. Epochs are counted from 0; those of a lottery's rounds follow each other."
)


def names_of(results: Results) -> list[str]:
    """The figures that some run's `metrics.csv` has by epoch."""
    found: dict[str, None] = {}
    for row in results.rows:
        for by_epoch in read_epochs(row).values():
            found.update(dict.fromkeys(by_epoch))
    return sorted(found)


def read_epochs(row: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Epoch -> figures of a run's `metrics.csv`; empty where the file is gone or not whole."""
    found: dict[int, dict[str, float]] = {}
    try:
        with (Path(str(row.get("folder"))) / "metrics.csv").open(newline="") as file:
            for line in csv.DictReader(file):
                if line.get("epoch"):
                    figures = {k: float(v) for k, v in line.items() if k and v and k not in ("epoch", "step")}
                    finite = {k: v for k, v in figures.items() if math.isfinite(v)}
                    found.setdefault(int(float(str(line["epoch"]))), {}).update(finite)
    except (OSError, ValueError, csv.Error):
        return {}
    return found


@dataclass(frozen=True)
class CurvesFigure:
    """One figure by epoch, a line a cell: the mean over seeds, and a band.

    The band is the 95 % t interval of the mean from three seeds on; of two, from the lower to the higher; of one there
    is none. `frame` says which, and how many seeds an epoch has: a run that failed is in no line.

    Args:
        results: what `collect` found.
        metric: a column of `metrics.csv`, as `val/accuracy`.
    """

    results: Results
    metric: str = SHOWN[0]

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        return [line for cell in self.results.cells for line in self._of(cell)]

    def frame(self) -> pd.DataFrame:
        """A line for each cell and epoch: `n` seeds, `mean`, `low`, `high` and what `band` they are."""
        return pd.DataFrame(self._lines, columns=["cell", "epoch", "n", "mean", "low", "high", "band"])

    def _of(self, cell: Cell) -> list[dict[str, Any]]:
        # A seed counts once, with the mean of its runs; runs without a seed are each one of their own.
        found: dict[int, dict[int, list[float]]] = {}
        for index, row in enumerate(cell.rows):
            seed = -1 - index if row.get("seed") is None else row["seed"]
            for epoch, figures in read_epochs(row).items():
                if self.metric in figures:
                    found.setdefault(epoch, {}).setdefault(seed, []).append(figures[self.metric])
        lines = []
        for epoch in sorted(found):
            values = [math.fsum(each) / len(each) for each in found[epoch].values()]
            about = summary(values)
            assert about is not None
            if about.n == 1:
                band = {"low": about.mean, "high": about.mean, "band": ALONE}
            elif about.n == 2:
                band = {"low": min(values), "high": max(values), "band": RANGE}
            else:
                band = {"low": about.low, "high": about.high, "band": INTERVAL}
            lines.append({"cell": cell.name, "epoch": epoch, "n": about.n, "mean": about.mean, **band})
        return lines

    def plot(self) -> Any:
        frame = _thinned(self.frame())
        names = list(dict.fromkeys(frame["cell"]))
        share = "accuracy" in self.metric
        axis, number = (alt.Axis(format=".3~p"), ".2%") if share else (alt.Axis(), ".4~g")
        x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1))
        y = alt.Y("mean:Q", title=self.metric, scale=alt.Scale(zero=False), axis=axis)
        tint = colour("cell", names).legend(symbolType="stroke", symbolStrokeWidth=2)
        # Where colours come again, another dash tells the cells apart.
        dashes = [_DASHES[i // len(COLOURS) % len(_DASHES)] for i in range(len(names))]
        dash = alt.StrokeDash("cell:N", title="", sort=names, scale=alt.Scale(domain=names, range=dashes)).legend(
            symbolType="stroke", symbolStrokeWidth=2
        )
        tip: list[Any] = ["cell:N", "epoch:Q", alt.Tooltip("mean:Q", format=number), "n:Q"]
        base = alt.Chart(frame).encode(x=x, color=tint, tooltip=tip)
        bands = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q"), y2="high")
        lines = base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash)
        return alt.layer(bands, lines).properties(width=560, height=320)


def curve_figure(results: Results, metric: str) -> CurvesFigure:
    """The figure of a metric. UserError, with the nearest name, where no run's `metrics.csv` has it by epoch."""
    figure = CurvesFigure(results, metric)
    if len(figure.frame()) == 0:
        known = names_of(results)
        if not known:
            raise UserError("--figure curves: no run here has a metrics.csv with figures by epoch")
        raise UserError(f"--curve: no run here has {metric!r} by epoch; {nearest(metric, known)}")
    return figure


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """Every so many-th line of each cell, and its last."""
    kept = []
    for _, own in frame.groupby("cell", sort=False):
        step = math.ceil(len(own) / _POINTS)
        places = sorted({*range(0, len(own), step), len(own) - 1})
        kept.append(own.iloc[places])
    return pd.concat(kept) if kept else frame
