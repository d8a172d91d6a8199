"""`OneShotFigure`: accuracy against the share pruned of one trained network, beside document 000's curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from smallnets.report.figures import colour

_FRACTIONS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1)
# Document 000's spotlight, test accuracy in %: ResNet18 by AdaBound for 200 epochs on CIFAR-10, pruned once after
# training, convolutions only, and not trained further.
STATED = {
    "layer": (95.0, 95.0, 95.01, 94.89, 94.81, 94.52, 93.98, 91.02, 85.48, 66.59, 27.31, 15.48, 9.89, 10),
    "global": (95.0, 95.0, 94.99, 94.94, 94.89, 94.87, 94.86, 94.87, 94.55, 93.01, 85.24, 52.73, 19.85, 10),
    "inputs": (95.0, 93.87, 45.96, 30.24, 20.25, 15.67, 10.06, 10.0, 9.79, 10, 10, 10, 10, 10),
}


@dataclass(frozen=True)
class OneShotFigure:
    """Lines of a network pruned once at many fractions, without training and, dashed, after it.

    Args:
        points: mappings with `method`, `fraction`, `accuracy` (share of 1) and `fine_tuned` (None where not trained).
        stated: whether document 000's values stand beside them, as hollow marks of the methods that it has.
    """

    points: Sequence[dict[str, Any]]
    stated: bool = True

    def frame(self) -> pd.DataFrame:
        """A line a point: `method`, `fraction`, `accuracy`, and `source`: one-shot, fine-tuned or document 000."""
        lines = []
        for point in self.points:
            for source, name in (("one-shot", "accuracy"), ("fine-tuned", "fine_tuned")):
                if point[name] is not None:
                    lines.append((point["method"], float(point["fraction"]), float(point[name]), source))
        if self.stated:
            for method in dict.fromkeys(point["method"] for point in self.points):
                values = zip(_FRACTIONS, STATED.get(method, ()), strict=False)
                lines += [(method, fraction, round(value / 100, 6), "document 000") for fraction, value in values]
        return pd.DataFrame(lines, columns=["method", "fraction", "accuracy", "source"])

    def plot(self) -> Any:
        """An Altair chart of them."""
        frame = self.frame()
        base = alt.Chart(frame).encode(
            x=alt.X("fraction:Q", title="share pruned", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%")),
            color=colour("method", list(dict.fromkeys(frame["method"]))),
        )
        dash = alt.StrokeDash("source:N", title="", sort=["one-shot", "fine-tuned"])
        lines = base.transform_filter("datum.source != 'document 000'").mark_line(point=True).encode(strokeDash=dash)
        marks = base.transform_filter("datum.source == 'document 000'").mark_point(filled=False, opacity=0.6)
        return (lines + marks).properties(width=520, height=320, title="Pruned once (hollow: as document 000 states)")
