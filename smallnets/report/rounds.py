"""`RoundsTable`: each round of a lottery: its density over all and by layer, how long it was trained, and seconds."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from smallnets.report.collect import Cell, Results, is_number
from smallnets.report.lottery import records, rewinding

_ENDS = 3


@dataclass(frozen=True)
class RoundsTable:
    """A line for each cell with a lottery and each of its rounds, means over seeds; and for controls that have rounds.

    A round 0 that was taken over from another lottery is left out: its epochs and seconds are of the run there.

    `kept` and `density` are of the weights with masks; `layers` are the densities of the layers, of which `shown` gives
    the three densest and the three sparsest, and `layer_frame` all.
    """

    results: Results

    def frame(self) -> pd.DataFrame:
        """`cell`, `series` (`ticket`, `rate_rewinding`, `fine_tuning`, or a control's name), `round`, `n` runs, and
        means of `kept`, `density`, `epochs` and `seconds`.
        """
        return pd.DataFrame(
            [{k: v for k, v in line.items() if k != "layers"} for line in self._lines()],
            columns=["cell", "series", "round", "n", "kept", "density", "epochs", "seconds"],
        )

    def layer_frame(self) -> pd.DataFrame:
        """`cell`, `series`, `round`, `layer` and its mean `density`, a line for each layer with a mask."""
        lines = [
            {**{k: line[k] for k in ("cell", "series", "round")}, "layer": layer, "density": density}
            for line in self._lines()
            for layer, density in line["layers"].items()
        ]
        return pd.DataFrame(lines, columns=["cell", "series", "round", "layer", "density"])

    def shown(self) -> list[list[str]]:
        """A header and a line a round, as texts."""
        table = [["cell", "series", "round", "n", "density", "epochs", "seconds", "densest layers", "sparsest layers"]]
        for line in self._lines():
            layers = sorted(line["layers"].items(), key=lambda item: -item[1])
            # Of six layers or fewer each is shown once.
            split = max(len(layers) - _ENDS, math.ceil(len(layers) / 2))
            ends = (layers[: min(_ENDS, split)], layers[split:]) if line["density"] < 1 else ([], [])
            table.append(
                [
                    line["cell"], line["series"], str(line["round"]), str(line["n"]), f"{100 * line['density']:.3g} %",
                    *("-" if line[k] is None else f"{line[k]:,.4g}" for k in ("epochs", "seconds")),
                    *(", ".join(f"{name} {100 * share:.3g} %" for name, share in end) or "-" for end in ends),
                ]
            )  # fmt: skip
        return table

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for cell in self.results.cells:
            groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
            for series, each in _rounds(cell):
                groups.setdefault((series, each["round"]), []).append(each)
            for (series, number), rounds in sorted(groups.items()):
                about = {"cell": cell.name, "series": series, "round": number, "n": len(rounds)}
                figures = {name: _mean(rounds, name) for name in ("kept", "density", "epochs", "seconds")}
                names = dict.fromkeys(name for each in rounds for name in each.get("layers") or {})
                layers = {name: _mean([each.get("layers") or {} for each in rounds], name) for name in names}
                lines.append({**about, **figures, "layers": layers})
        return lines


def _rounds(cell: Cell) -> list[tuple[str, dict[str, Any]]]:
    """(Series, a round's record) of all runs of a cell; a control without rounds is one, with its row's epochs."""
    found = []
    for row in cell.rows:
        for record in records(row, "LotteryTicket", "LotteryControl"):
            series = record.get("control") or rewinding(record) or "ticket"
            alone = {**record, "epochs": row.get("epochs"), "seconds": row.get("seconds")}
            rounds = record.get("rounds") or ([alone] if "control" in record else [])
            rounds = [each for each in rounds if is_number(each.get("density")) and "round" in each]
            taken_over = record["callback"] == "LotteryTicket" and record.get("from_round")
            found += [(series, each) for each in rounds if each["round"] or not taken_over]
    return found


def _mean(records: list[dict[str, Any]], name: str) -> float | None:
    values = [float(each[name]) for each in records if is_number(each.get(name))]
    return math.fsum(values) / len(values) if values else None
