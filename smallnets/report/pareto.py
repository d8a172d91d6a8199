"""`ParetoFigure`: accuracy against parameters, MACs, bytes or latency, with the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import pandas as pd

from smallnets.errors import UserError
from smallnets.report.collect import Cell, Results, is_number
from smallnets.report.stats import summary

COSTS = {
    "parameters": "parameters",
    "nonzero_parameters": "nonzero parameters",
    "macs": "MACs of one image",
    "bytes": "stored bytes",
    "latency_ms": "latency of one image, ms",
}


def machines(results: Results) -> list[str]:
    """Where latencies of the rows were measured."""
    return sorted({row["latency_machine"] for row in results.rows if is_number(row.get("latency_ms"))})


def _mean_on(machine: str, cell: Cell) -> float | None:
    """The mean latency of a cell's networks on one machine."""
    own = [row["latency_ms"] for row in cell.rows if row.get("latency_machine") == machine]
    return math.fsum(own) / len(own) if own else None


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, gain) no other beats: by costing no more and gaining no less, and one of these strictly.

    Points that are equal beat each other not, so both are on the front.

    >>> from smallnets.report.pareto import front
    >>> front([(1, 0.5), (2, 0.4), (2, 0.9)])
    [True, False, True]
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
        cost: `parameters`, `nonzero_parameters`, `macs`, `bytes` or `latency_ms`; latencies of several machines are
            never in one figure.
        stated: further points: mappings with `name`, `accuracy` (share of 1) and the cost by its name.
        machine: for `latency_ms`, the one whose figures are shown; None where all are of one.
    """

    results: Results
    metric: str = "val_accuracy"
    cost: str = "parameters"
    stated: Sequence[Mapping[str, Any]] = field(default_factory=list)
    machine: str | None = None

    def frame(self) -> pd.DataFrame:
        """A line a point: name, cost, n, mean, sd, `front`, and `source`, "measured" or "stated".

        For `latency_ms` also `machine`. Raises UserError where latencies of several machines are there and none of them
        was chosen.
        """
        machine = self._machine()
        measured: list[dict[str, Any]] = []
        stated: list[dict[str, Any]] = []
        for cell in self.results.cells:
            about = summary(list(cell.values(self.metric).values()))
            cost = cell.mean(self.cost) if machine is None else _mean_on(machine, cell)
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
        frame = pd.DataFrame(lines, columns=columns)
        # Stated latencies are of machines of their own.
        return frame if machine is None else frame.assign(machine=[machine if n > 0 else "" for n in frame["n"]])

    def _machine(self) -> str | None:
        if self.cost != "latency_ms" or self.machine is not None:
            return self.machine if self.cost == "latency_ms" else None
        known = machines(self.results)
        if len(known) > 1:
            raise UserError(
                f"latencies of {len(known)} machines are not put into one figure: {'; '.join(known)}. Measure all"
                " networks on one: smallnets bench --ckpt A --ckpt B --save"
            )
        return known[0] if known else None

    def plot(self) -> Any:
        frame = self.frame()
        kinds = ["on the Pareto front", "behind it", "stated"]
        kind = [kinds[0] if on else kinds[2] if source == "stated" else kinds[1]
                for on, source in zip(frame["front"], frame["source"], strict=True)]  # fmt: skip
        frame = frame.assign(kind=kind)
        machine = self._machine()
        x = alt.X(
            f"{self.cost}:Q",
            scale=alt.Scale(type="log", padding=20),
            title=COSTS[self.cost] if machine is None else f"{COSTS[self.cost]} ({machine})",
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
            ]
            # Names stand towards the middle, so that long ones do not take the room of the figure.
            middle = math.sqrt(frame[self.cost].min() * frame[self.cost].max())
            names = frame[frame["kind"] == kinds[0]]
            low = names[self.cost] <= middle
            sides: list[tuple[Any, Any, int]] = [(names[low], "left", 8), (names[~low], "right", -8)]
            for own, align, dx in sides:
                if len(own):
                    text = alt.Chart(own).mark_text(align=align, dx=dx, dy=-8, fontSize=11)
                    layers.append(text.encode(x=x, y=y, text="name:N"))
        if len(stated.data):
            hollow = stated.mark_point(filled=False, size=80, strokeWidth=1.5)
            layers.append(hollow.encode(x=x, y=y, color=tint, tooltip=tip[:3]))
        return alt.layer(*layers).properties(width=560, height=340)
