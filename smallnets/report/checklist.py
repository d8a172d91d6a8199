"""`checklist`: what Blalock et al. 2020 ask every paper on pruning to report, for the rows of pruned networks.

"What is the State of Neural Network Pruning?", MLSys 2020: compression and theoretical speed-up together, the raw
counts, several operating points, the own dense network beside its pruned forms, and controls (random pruning).
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from smallnets.report.collect import Cell, Results, is_number
from smallnets.report.densities import together
from smallnets.report.lottery import PRUNERS, records
from smallnets.report.parents import dense_parent
from smallnets.report.tables import NOT_MEASURED, interval, is_share, markdown, number

CONVENTION = "MACs of convolutions, linear layers and attention, one image; BatchNorm, activations, biases not counted"
# Criteria and controls whose masks or channels are drawn; a reinitialised ticket keeps chosen ones.
_RANDOM = ("random", "random_mask", "random_erk", "shuffled_mask")
# Controls that are not pruned; the second is how rows kept in a file may call the first.
_DENSE = ("dense", "dense_as_long")
# Operating points that a curve needs.
ENOUGH = 5


@dataclass(frozen=True)
class Checklist:
    """A line for each cell whose network was pruned; none if none was.

    Compression and speed-up are ratios of the dense parent's count to what is left, larger is smaller. Masked weights
    are counted as removed; `macs_ratio` counts the MACs that meet a kept weight. A ratio that a run's account does not
    give is missing.

    `operating_points` is the number of different densities, or sizes, that are there of one network on one data set,
    where five are asked for; `dense_parent` whether it is there unpruned (for a lottery, its round 0), `parent` which
    network that is, and `difference` the cell's figure less that one's, paired by seed, with its 95 % interval;
    `control` whether a random one is there.

    Args:
        results: what `collect` found.
        metric: a figure of the row, for the differences.
    """

    results: Results
    metric: str = "val_accuracy"

    def frame(self) -> pd.DataFrame:
        cells = [cell for cell in self.results.cells if cell.rows]
        found = []
        for cell in cells:
            for record in records_of(cell.rows[0]):
                if record.get("control") in _DENSE:
                    continue
                found.append(self._line(cell, record, [c for c in cells if _alike(c, cell)]))
        return pd.DataFrame(found)

    def _line(self, cell: Cell, record: dict[str, Any], alike: list[Cell]) -> dict[str, Any]:
        row = cell.rows[0]
        others = [(c, each) for c in alike for each in records_of(c.rows[0])]
        points = set(together(size for _, each in others for size in _sizes(each)).values())
        parent = dense_parent(cell, record, self.results, self.metric)
        less = parent.less if parent else None
        control = any(_is_random(each) for _, each in others)
        return {
            "cell": cell.name,
            "net": row["net"],
            "pruned_by": record["callback"],
            "criterion": _criterion(record),
            "scope": record.get("scope") or record.get("plan", {}).get("scope"),
            **_ratios(row, record),
            "macs_convention": CONVENTION,
            "operating_points": len(points),
            "enough_points": len(points) >= ENOUGH,
            "dense_parent": parent is not None,
            "parent": parent.name if parent else None,
            "pairs": less.pairs if less else None,
            "difference": less.mean if less else None,
            "difference_low": less.low if less else None,
            "difference_high": less.high if less else None,
            "control": control,
        }

    def shown(self) -> list[list[str]]:
        """A header and a line a cell, as texts."""
        header = ["cell", "pruned", "out of", "removed", "parameters", "bytes", "MACs", "operating points",
                  "own dense parent", f"{self.metric} less it (95 % CI)", "random control"]  # fmt: skip
        frame = self.frame()
        lines = [header]
        for line in frame.astype(object).where(frame.notna(), None).to_dict("records"):
            how = ", ".join(str(line[k]) for k in ("pruned_by", "criterion", "scope") if line[k])
            lines.append(
                [
                    line["cell"],
                    how,
                    f"{line['net'] or 'network'}: {_count(line['before'])} {line['counted']}",
                    _count(line["removed"]),
                    *(_times(line[k]) for k in ("parameters_ratio", "bytes_ratio", "macs_ratio")),
                    str(line["operating_points"]) + ("" if line["enough_points"] else f" (fewer than {ENOUGH})"),
                    line["parent"] or "none",
                    self._less(line),
                    "yes" if line["control"] else "no",
                ]
            )
        return lines

    def _less(self, line: dict[str, Any]) -> str:
        empty, percent = NOT_MEASURED if line["parent"] else "-", is_share(self.metric)
        less = number(line["difference"], percent, empty, signed=True)
        if line["difference_low"] is not None:
            return f"{less} ({interval(line['difference_low'], line['difference_high'], percent, empty, signed=True)})"
        if line["difference"] is None:
            return less
        return f"{less} ({'one pair' if line['pairs'] else 'no pairs'})"

    def markdown(self) -> str:
        """The table, with the convention of its MACs below; empty if nothing was pruned."""
        lines = self.shown()
        return f"{markdown(lines)}\nMACs: {CONVENTION}; FLOPs = 2 MACs.\n" if len(lines) > 1 else ""


def records_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What a row says of how its network was pruned; nothing for a dense one."""
    return records(row, *PRUNERS)


def _alike(one: Cell, other: Cell) -> bool:
    return all(one.rows[0].get(k) == other.rows[0].get(k) for k in ("net", "data"))


def _criterion(record: dict[str, Any]) -> str | None:
    return record.get("criterion") or record.get("control") or record.get("plan", {}).get("criterion")


def _is_random(record: dict[str, Any]) -> bool:
    return _criterion(record) in _RANDOM


def _sizes(record: dict[str, Any]) -> list[float]:
    """The shares of the network, or of its weights with masks, that it was trained at."""
    if record.get("after"):
        return [record["after"]["parameters"] / record["before"]["parameters"]]
    rounds = record.get("rounds") or ([record] if "density" in record else [])
    return [each["density"] for each in rounds if each["density"] < 1]


def _ratios(row: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    if record.get("after"):
        before, after = record["before"], record["after"]
        ratios = {f"{k}_ratio": before[k] / after[k] if after[k] else None for k in ("parameters", "bytes", "macs")}
        removed = before["parameters"] - after["parameters"]
        return {"before": before["parameters"], "counted": "parameters", "removed": removed, **ratios}
    last = record["rounds"][-1] if record.get("rounds") else record
    kept, total, parameters = last.get("kept"), last.get("total"), row.get("parameters")
    removed = None if kept is None or total is None else total - kept
    left = None if removed is None or parameters is None else parameters - removed
    sparse = {"bytes": last.get("packed_bytes"), "macs": last.get("macs")}
    return {
        "before": total,
        "counted": f"weights with masks, of {_count(parameters)} parameters",
        "removed": removed,
        "parameters_ratio": parameters / left if parameters and left else None,
        **{
            f"{k}_ratio": row[k] / v if is_number(v) and v and is_number(row.get(k)) else None
            for k, v in sparse.items()
        },
    }


def _count(value: int | None) -> str:
    return NOT_MEASURED if value is None else f"{int(value):,}"


def _times(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}x"
