"""`LotteryFigure`: accuracy against weights remaining, with bands over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import pandas as pd

from smallnets.report.densities import together
from smallnets.report.figures import colour
from smallnets.report.lottery import Lottery, crossings, height
from smallnets.report.stats import summary
from smallnets.report.verdict import DENSE, TICKET, Point, by_seed


@dataclass(frozen=True)
class LotteryFigure:
    """Lines of mean accuracy with the band of one standard deviation, and dense networks as horizontal lines.

    `remaining` is the share of weights that are left, of the largest lottery's here: of two lotteries the one with a
    quarter of the weights starts at a quarter. With one lottery it is the density.

    Args:
        lotteries: whose points are shown.
        metric: the figure's name, for the axis.
        halving: the axis of document 003: reversed, a tick for each halving (100 %, 50 %, 25 %, ...).
        stated: points of documents, faint: mappings with `series`, `remaining` (share of 1) and `accuracy`.
        cross: mark where the tickets of the first two lotteries cross.
    """

    lotteries: Sequence[Lottery]
    metric: str = "val_accuracy"
    halving: bool = False
    stated: Sequence[Mapping[str, Any]] = field(default_factory=list)
    cross: bool = True

    def frame(self) -> pd.DataFrame:
        """A line for each lottery, series and density: n seeds, mean, sd; and with another `source` than "measured",
        stated points and crossings.
        """
        lines = self._measured()
        for each in self.stated:
            where = {"remaining": float(each["remaining"]), "mean": float(each["accuracy"])}
            who = {"lottery": "stated", "series": str(each["series"]), "line": str(each["series"])}
            lines.append({**who, **where, "source": "stated"})
        for x, y in self.crossings() if self.cross else []:
            who = {"lottery": "crossing", "series": "crossing", "line": "crossing"}
            lines.append({**who, "remaining": x, "mean": y, "source": "crossing"})
        columns = ["lottery", "series", "line", "density", "remaining", "n", "mean", "sd", "band_low", "band_high"]
        return pd.DataFrame(lines, columns=[*columns, "source"])

    def _measured(self) -> list[dict[str, Any]]:
        most = max((each.weights for each in self.lotteries), default=1)
        lines: list[dict[str, Any]] = []
        for lottery in self.lotteries:
            groups: dict[tuple[str, float], list[Point]] = {}
            one = together(point.density for point in lottery.points)
            for point in lottery.points:
                density = 1.0 if point.series == DENSE else one[point.density]
                groups.setdefault((point.series, density), []).append(point)
            # The round of the dense network is where the tickets' line begins.
            for (series, density), points in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1])):
                about = summary(list(by_seed(points).values()))
                assert about is not None
                share = density * lottery.weights / most
                line = {"density": density, "remaining": share, "n": about.n, "mean": about.mean, "sd": about.sd}
                spread = about.sd or 0.0
                band = {"band_low": about.mean - spread, "band_high": about.mean + spread}
                for name in [DENSE, TICKET] if series == DENSE else [series]:
                    who = {"lottery": lottery.name, "series": name, "line": self._line(lottery, name)}
                    lines.append({**who, **line, **band, "source": "measured"})
        return lines

    def crossings(self) -> list[tuple[float, float]]:
        """(remaining, accuracy) where the tickets of the first two lotteries cross; none for fewer."""
        if len(self.lotteries) < 2:
            return []
        lines = [line for line in self._measured() if line["series"] == TICKET]
        one, other = (
            [(line["remaining"], line["mean"]) for line in lines if line["lottery"] == lottery.name]
            for lottery in self.lotteries[:2]
        )
        return [(x, height(one, x)) for x in crossings(one, other)]

    def _line(self, lottery: Lottery, series: str) -> str:
        return series if len(self.lotteries) == 1 else f"{lottery.name}: {series}"

    def plot(self) -> Any:
        frame = self.frame()
        measured = frame[frame["source"] == "measured"]
        names = list(dict.fromkeys(frame.loc[frame["source"] != "crossing", "line"]))
        scale = self._scale(frame["remaining"].tolist())
        ticks = _halvings(frame["remaining"].min()) if self.halving else alt.Undefined
        x = alt.X(
            "remaining:Q", scale=scale, title="weights remaining", axis=alt.Axis(format=".3~p", values=ticks, grid=True)
        )
        y = alt.Y("mean:Q", title=self.metric, scale=alt.Scale(zero=False), axis=alt.Axis(format=".3~p"))
        tint = colour("line", names)
        tip: list[Any] = [
            "line:N",
            alt.Tooltip("remaining:Q", format=".3%"),
            alt.Tooltip("mean:Q", format=".2%"),
            "n:Q",
        ]
        curves = measured[measured["series"] != DENSE]
        layers = [
            alt.Chart(curves).mark_area(opacity=0.18).encode(x=x, y=alt.Y("band_low:Q"), y2="band_high", color=tint),
            alt.Chart(curves).mark_line(point=True).encode(x=x, y=y, color=tint, tooltip=tip),
            alt.Chart(measured[measured["series"] == DENSE])
            .mark_rule(strokeDash=[6, 4], strokeWidth=1.5)
            .encode(y=y, color=tint, tooltip=tip),
        ]
        stated = frame[frame["source"] == "stated"]
        if len(stated):
            faint = alt.Chart(stated).encode(x=x, y=y, color=tint, tooltip=tip[:3])
            layers += [faint.mark_line(opacity=0.25), faint.mark_point(opacity=0.4, filled=False)]
        crossed = frame[frame["source"] == "crossing"]
        if len(crossed):
            cross = alt.Chart(crossed).mark_point(shape="cross", size=120, color="black", filled=True)
            layers.append(cross.encode(x=x, y=y, tooltip=tip[:3]))
        return alt.layer(*layers).properties(width=560, height=340)

    def _scale(self, remaining: list[float]) -> alt.Scale:
        if self.halving:
            return alt.Scale(type="log", base=2, reverse=True, domain=[min(remaining) / 1.1, 1.0], nice=False)
        return alt.Scale(type="log", domain=[min(remaining) / 1.2, max(1.0, *remaining)], nice=False)


def _halvings(least: float) -> list[float]:
    ticks = [1.0]
    while ticks[-1] / 2 >= least:
        ticks.append(ticks[-1] / 2)
    return ticks
