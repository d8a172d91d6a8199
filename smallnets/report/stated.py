"""What documents state: points of a CSV file, and a table of every stated value beside ours."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from smallnets.errors import UserError
from smallnets.report.collect import Results
from smallnets.report.stats import summary
from smallnets.report.tables import NOT_MEASURED, is_share, number


@dataclass(frozen=True)
class StatedTable:
    """A line for each value that a document states of a cell, whatever figure it is of, beside the mean over seeds."""

    results: Results

    def frame(self) -> pd.DataFrame:
        """`cell`, `metric`, `stated`, `n`, `mean`, `sd` and `difference`, the mean less the stated value."""
        lines = []
        for cell in self.results.cells:
            for metric, stated in cell.stated.items():
                about = summary(list(cell.values(metric).values()))
                ours = {"n": about.n, "mean": about.mean, "sd": about.sd} if about else {"n": 0}
                less = {"difference": about.mean - stated} if about else {}
                lines.append({"cell": cell.name, "metric": metric, "stated": stated, **ours, **less})
        columns = ["cell", "metric", "stated", "n", "mean", "sd", "difference"]
        return pd.DataFrame(lines, columns=columns)

    def shown(self) -> list[list[str]]:
        """A header and a line a value, as texts: accuracies in percent."""
        lines = [["cell", "figure", "stated", "n", "ours ± sd", "less stated"]]
        frame = self.frame()
        for line in frame.astype(object).where(frame.notna(), None).to_dict("records"):
            percent, empty = is_share(line["metric"]), NOT_MEASURED
            ours = number(line["mean"], percent, empty)
            if line["sd"] is not None:
                ours += f" ± {number(line['sd'], percent, empty)}"
            less = number(line["difference"], percent, empty, signed=True)
            figure = f"{line['metric']}{' (%)' if percent else ''}"
            lines.append([line["cell"], figure, number(line["stated"], percent, empty), str(line["n"]), ours, less])
        return lines


def read_points(path: Path | None) -> list[dict[str, Any]]:
    """The points of a CSV file; numbers as numbers, empty fields as None.

    Raises:
        UserError: no such file, or a line without a name and an accuracy that is a share of 1.
    """
    if path is None:
        return []
    if not path.is_file():
        raise UserError(f"smallnets report: --stated: no file {path}")
    points: list[dict[str, Any]] = []
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            point: dict[str, Any] = {}
            for key, text in line.items():
                if key in ("name", "series"):
                    point[key] = text
                else:
                    try:
                        point[key] = float(text) if text else None
                    except ValueError as error:
                        raise UserError(f"--stated {path}: {key}: a number is expected, got {text!r}") from error
            name = "series" if point.get("remaining") is not None else "name"
            if point.get("accuracy") is None or not point.get(name):
                raise UserError(f"--stated {path}: each line needs {name} and accuracy, got {line}")
            if not 0 <= point["accuracy"] <= 1:
                raise UserError(f"--stated {path}: an accuracy is a share of 1, got {point['accuracy']}")
            points.append(point)
    return points
