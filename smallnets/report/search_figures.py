"""Figures of a search's trials: history, importances, parallel coordinates, Pareto front; and a page of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from smallnets.errors import UserError
from smallnets.report.figures import COLOURS, Figure, save
from smallnets.report.page import Page
from smallnets.results.row import write_text


@dataclass(frozen=True)
class Axis:
    """A dimension of a search: its choices by name, or a range from `low` to `high`, drawn on a log scale or not."""

    name: str
    choices: Sequence[str] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def position(self, value: Any) -> float:
        """Where a value stands between the ends, from 0 to 1; a single one in the middle."""
        if self.choices:
            return self.choices.index(value) / (len(self.choices) - 1) if len(self.choices) > 1 else 0.5
        low, high, at = (log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (at - low) / (high - low) if high > low else 0.5

    def ends(self) -> tuple[str, str]:
        """What is written at 0 and at 1."""
        return (self.choices[0], self.choices[-1]) if self.choices else (f"{self.low:.4g}", f"{self.high:.4g}")


@dataclass(frozen=True)
class Found:
    """What a search has found, as its figures take it.

    Attributes:
        name, asks: of the search.
        objectives: figure of the row -> `max` or `min`.
        axes: its dimensions, in the order in which they are drawn.
        trials: those that were trained to their end: `number`, `values` (objective -> figure) and `chosen` (dimension
            -> what was drawn; without those whose condition did not hold).
        importances: dimension -> its share of the first objective's variance.
    """

    name: str
    asks: str
    objectives: Mapping[str, str]
    axes: Sequence[Axis]
    trials: Sequence[Mapping[str, Any]]
    importances: Mapping[str, float] = field(default_factory=dict)

    @property
    def first(self) -> str:
        return next(iter(self.objectives))


@dataclass(frozen=True)
class HistoryFigure:
    """An objective of each trial, and the best of it so far."""

    found: Found
    objective: str

    def frame(self) -> pd.DataFrame:
        """A line a trial: trial, the objective, `best` of this trial and those before it."""
        lines, pick = [], max if self.found.objectives[self.objective] == "max" else min
        best: float | None = None
        for trial in sorted(self.found.trials, key=lambda each: each["number"]):
            value = trial["values"][self.objective]
            best = value if best is None else pick(best, value)
            lines.append({"trial": trial["number"], self.objective: value, "best": best})
        return pd.DataFrame(lines, columns=["trial", self.objective, "best"])

    def plot(self) -> Any:
        base = alt.Chart(self.frame())
        x = alt.X("trial:Q", title="trial", axis=alt.Axis(tickMinStep=1))
        title = f"{self.objective} ({self.found.objectives[self.objective]})"
        y = alt.Y(f"{self.objective}:Q", title=title, scale=alt.Scale(zero=False, padding=15))
        points = base.mark_point(filled=True, size=50, color=COLOURS[0]).encode(
            x=x, y=y, tooltip=["trial:Q", f"{self.objective}:Q"]
        )
        best = base.mark_line(interpolate="step-after", color=COLOURS[1]).encode(x=x, y=alt.Y("best:Q"))
        return alt.layer(best, points).properties(width=560, height=260)


@dataclass(frozen=True)
class ImportanceFigure:
    """What each dimension explains of the first objective's variance among the trials (fANOVA)."""

    found: Found

    def frame(self) -> pd.DataFrame:
        """A line a dimension: `dimension` and its `share` of the variance, the largest first."""
        pairs = sorted(self.found.importances.items(), key=lambda pair: -pair[1])
        return pd.DataFrame(pairs, columns=["dimension", "share"])

    def plot(self) -> Any:
        frame = self.frame()
        y = alt.Y("dimension:N", sort=list(frame["dimension"]), title=None, axis=alt.Axis(labelLimit=300))
        x = alt.X("share:Q", title=f"share of the variance of {self.found.first}", scale=alt.Scale(domainMin=0))
        chart = alt.Chart(frame).mark_bar(color=COLOURS[0])
        return chart.encode(x=x, y=y, tooltip=["dimension:N", "share:Q"]).properties(width=460)


@dataclass(frozen=True)
class ParallelFigure:
    """Each trial as a line across the dimensions and the objectives, coloured by the first objective."""

    found: Found

    def frame(self) -> pd.DataFrame:
        """A line a trial and axis: trial, axis, value (as text), position (from 0, `low`, to 1, `high`), the objective.

        A dimension whose condition did not hold in a trial has no line there.
        """
        found, lines = self.found, []
        for trial in found.trials:
            values = {**trial["chosen"], **trial["values"]}
            for axis in self._axes():
                if axis.name in values:
                    value, (low, high) = values[axis.name], axis.ends()
                    text = value if isinstance(value, str) else f"{value:.6g}"
                    about = {"position": axis.position(value), "low": low, "high": high}
                    first = trial["values"][found.first]
                    lines.append({"trial": trial["number"], "axis": axis.name, "value": text, **about, "first": first})
        columns = ["trial", "axis", "value", "position", "low", "high", "first"]
        return pd.DataFrame(lines, columns=columns).rename(columns={"first": found.first})

    def _axes(self) -> list[Axis]:
        axes = list(self.found.axes)
        for name in self.found.objectives:
            values = [trial["values"][name] for trial in self.found.trials]
            axes.append(Axis(name, low=min(values), high=max(values)))
        return axes

    def plot(self) -> Any:
        frame, names = self.frame(), [axis.name for axis in self._axes()]
        x = alt.X("axis:N", sort=names, title=None, axis=alt.Axis(labelAngle=-20, labelLimit=200, grid=True))
        y = alt.Y("position:Q", title=None, axis=None, scale=alt.Scale(domain=[-0.1, 1.1]))
        tint = alt.Color(f"{self.found.first}:Q", scale=alt.Scale(scheme="viridis"))
        tip = ["trial:Q", "axis:N", "value:N", f"{self.found.first}:Q"]
        lines = alt.Chart(frame).mark_line(opacity=0.6).encode(x=x, y=y, color=tint, detail="trial:N")
        dots = alt.Chart(frame).mark_point(filled=True, size=25).encode(x=x, y=y, color=tint, tooltip=tip)
        ends = frame.drop_duplicates("axis")
        texts = [
            alt.Chart(ends.assign(at=at)).mark_text(dy=dy, fontSize=10).encode(x=x, y=alt.Y("at:Q"), text=f"{end}:N")
            for end, at, dy in (("low", 0.0, 14), ("high", 1.0, -12))
        ]
        return alt.layer(lines, dots, *texts).properties(width=max(400, 110 * len(names)), height=300)


@dataclass(frozen=True)
class FrontFigure:
    """Trials by two of several objectives, and those that no other beats in all of them."""

    found: Found
    other: str

    def frame(self) -> pd.DataFrame:
        """A line a trial: trial, every objective, `front`."""
        signs = [1 if direction == "max" else -1 for direction in self.found.objectives.values()]
        gains = [
            [sign * each["values"][name] for sign, name in zip(signs, self.found.objectives, strict=True)]
            for each in self.found.trials
        ]
        lines = [
            {"trial": each["number"], **each["values"], "front": not any(_beats(other, mine) for other in gains)}
            for each, mine in zip(self.found.trials, gains, strict=True)
        ]
        return pd.DataFrame(lines, columns=["trial", *self.found.objectives, "front"])

    def plot(self) -> Any:
        frame = self.frame()
        frame = frame.assign(kind=["on the Pareto front" if on else "behind it" for on in frame["front"]])
        scale = alt.Scale(zero=False, padding=15)
        x = alt.X(f"{self.other}:Q", title=self._title(self.other), scale=scale, axis=alt.Axis(format="~s"))
        y = alt.Y(f"{self.found.first}:Q", title=self._title(self.found.first), scale=scale)
        tints = alt.Scale(domain=["on the Pareto front", "behind it"], range=[COLOURS[1], COLOURS[0]])
        tip = ["trial:Q", *(f"{name}:Q" for name in self.found.objectives)]
        points = alt.Chart(frame).mark_point(filled=True, size=60, opacity=1)
        step: Any = "step-after" if self.found.objectives[self.other] == "min" else "step-before"
        front = alt.Chart(frame[frame["front"]]).mark_line(interpolate=step, strokeDash=[4, 3], color="#999")
        tint = alt.Color("kind:N", title=None, scale=tints)
        layers = [front.encode(x=x, y=y), points.encode(x=x, y=y, color=tint, tooltip=tip)]
        return alt.layer(*layers).properties(width=560, height=320)

    def _title(self, name: str) -> str:
        return f"{name} ({self.found.objectives[name]})"


def _beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def write_search(found: Found, out: Path) -> list[Path]:
    """Writes each figure's numbers (CSV) and picture (SVG), and `index.html` with all of them; their paths, it last.

    Raises:
        UserError: no trial was trained to its end.
    """
    if not found.trials:
        raise UserError(f"no trial of {found.name} was trained to its end: there is nothing to draw")
    figures: dict[str, tuple[str, Figure]] = {}
    for name in found.objectives:
        figures[f"history-{name}"] = f"{name} of each trial, and the best so far", HistoryFigure(found, name)
    if found.importances:
        figures["importances"] = f"What mattered for {found.first}", ImportanceFigure(found)
    figures["parallel"] = "What was drawn, and what came of it", ParallelFigure(found)
    for name in list(found.objectives)[1:]:
        figures[f"front-{name}"] = f"{found.first} against {name}", FrontFigure(found, name)
    page, files = Page(found.name, found.asks), []
    page.text(f"{len(found.trials)} trials that were trained to their end.")
    for name, (title, figure) in figures.items():
        files += save(figure, out / name, ("svg",))
        page.heading(title)
        page.chart(figure.plot())
    write_text(out / "index.html", page.html())
    return [*files, out / "index.html"]
