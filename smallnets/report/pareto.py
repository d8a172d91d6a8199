"""`ParetoFigure`: accuracy against parameters, MACs or bytes, with the Pareto front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import pandas as pd

from smallnets.report.collect import Results, is_number
from smallnets.report.stats import summary

COSTS = {
    "parameters": "parameters",
    "nonzero_parameters": "nonzero parameters",
    "macs": "MACs of one image",
    "bytes": "stored bytes",
}


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, gain) no other beats: by costing no more and gaining no less, and one of these strictly.

    Points that are equal beat each other not, so both are on the front.
    """
    return [not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points) for cost, gain in points]


@dataclass(frozen=True)
class ParetoFigure:
    """The cells' means by what their networks cost; what documents state as hollow marks beside them.

    A stated accuracy of a cell stands at the cell's own count. The front is that of the measured means alone: a stated
    figure was measured by other rules.

    Args:
        results: what `collect` found.
        metric: an accuracy of the row.
        cost: `parameters`, `nonzero_parameters`, `macs` or `bytes`.
        stated: further points: mappings with `name`, `accuracy` (share of 1) and the cost by its name.
    """

    results: Results
    metric: str = "val_accuracy"
    cost: str = "parameters"
    stated: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """A line a point: name, cost, n, mean, sd, `front`, and `source`, "measured" or "stated"."""
        measured: list[dict[str, Any]] = []
        stated: list[dict[str, Any]] = []
        for cell in self.results.cells:
            about = summary(list(cell.values(self.metric).values()))
            cost = cell.mean(self.cost)
            if about is not None and cost is not None:
                spread = about.sd or 0.0
                line = {"name": cell.name, self.cost: cost, "n": about.n, "mean": about.mean, "sd": about.sd}
                measured.append({**line, "low": about.mean - spread, "high": about.mean + spread})
            if cost is not None and self.metric in cell.stated:
                stated.append({"name": f"{cell.name} (stated)", self.cost: cost, "mean": cell.stated[self.metric]})
        for point in self.stated:
            if is_number(point.get(self.cost)):
                where = {self.cost: float(point[self.cost]), "mean": float(point["accuracy"])}
                stated.append({"name": str(point["name"]), **where})
        best = front([(line[self.cost], line["mean"]) for line in measured])
        lines = [{**line, "front": on, "source": "measured"} for line, on in zip(measured, best, strict=True)]
        lines += [{**line, "front": False, "source": "stated"} for line in stated]
        columns = ["name", self.cost, "n", "mean", "sd", "low", "high", "front", "source"]
        return pd.DataFrame(lines, columns=columns)

    def plot(self) -> Any:
        frame = self.frame()
        kinds = ["on the Pareto front", "behind it", "stated"]
        kind = [kinds[0] if on else kinds[2] if source == "stated" else kinds[1]
                for on, source in zip(frame["front"], frame["source"], strict=True)]  # fmt: skip
        frame = frame.assign(kind=kind)
        x = alt.X(
            f"{self.cost}:Q",
            scale=alt.Scale(type="log", padding=20),
            title=COSTS[self.cost],
            axis=alt.Axis(format="~s", labelOverlap="greedy"),
        )
        y = alt.Y("mean:Q", scale=alt.Scale(zero=False, padding=15), title=self.metric, axis=alt.Axis(format=".3~p"))
        scale = alt.Scale(domain=kinds, range=["#D55E00", "#0072B2", "#777777"])
        tint = alt.Color("kind:N", title=None, scale=scale)
        cost, mean = alt.Tooltip(f"{self.cost}:Q", format=","), alt.Tooltip("mean:Q", format=".2%")
        tip: list[Any] = ["name:N", cost, mean, "n:Q"]
        measured = alt.Chart(frame[frame["source"] == "measured"])
        on_front = alt.Chart(frame[frame["kind"] == kinds[0]])
        stated = alt.Chart(frame[frame["source"] == "stated"])
        layers: list[Any] = []
        if len(measured.data):
            layers += [
                on_front.mark_line(interpolate="step-after", color="#999", strokeDash=[4, 3]).encode(x=x, y=y),
                measured.mark_rule().encode(x=x, y=alt.Y("low:Q"), y2="high", color=tint),
                measured.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=tint, tooltip=tip),
                on_front.mark_text(align="left", dx=8, dy=-8, fontSize=11).encode(x=x, y=y, text="name:N"),
            ]
        if len(stated.data):
            hollow = stated.mark_point(filled=False, size=80, strokeWidth=1.5)
            layers.append(hollow.encode(x=x, y=y, color=tint, tooltip=tip[:3]))
        return alt.layer(*layers).properties(width=560, height=340)
