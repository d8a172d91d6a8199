"""`OneShotFigure`: accuracy against the share pruned of one trained network, beside document 000's curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from smallnets.report.figures import colour

# Document 000's spotlight, test accuracy in % at the share pruned: ResNet18 by AdaBound for 200 epochs on CIFAR-10,
# pruned once after training, convolutions only, and not trained further.
STATED = {
    "layer": {
        0: 95.0, 0.1: 95.0, 0.2: 95.01, 0.3: 94.89, 0.4: 94.81, 0.5: 94.52, 0.6: 93.98, 0.7: 91.02, 0.75: 85.48,
        0.8: 66.59, 0.85: 27.31, 0.9: 15.48, 0.95: 9.89, 1: 10,
    },
    "global": {
        0: 95.0, 0.1: 95.0, 0.2: 94.99, 0.3: 94.94, 0.4: 94.89, 0.5: 94.87, 0.6: 94.86, 0.7: 94.87, 0.75: 94.55,
        0.8: 93.01, 0.85: 85.24, 0.9: 52.73, 0.95: 19.85, 1: 10,
    },
    "inputs": {
        0: 95.0, 0.05: 94.56, 0.1: 93.87, 0.15: 92.22, 0.2: 45.96, 0.3: 30.24, 0.4: 20.25, 0.5: 15.67, 0.6: 10.06,
        0.7: 10.0, 0.75: 9.79, 0.8: 10, 0.85: 10, 0.9: 10, 0.95: 10, 1: 10,
    },
}  # fmt: skip


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
                values = STATED.get(method, {}).items()
                lines += [(method, float(share), round(value / 100, 6), "document 000") for share, value in values]
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
