"""`lotteries`: from rows to the points of each lottery; the crossing point of two curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from smallnets.report.collect import Results, is_number
from smallnets.report.forms import Form, form_of
from smallnets.report.verdict import DENSE, TICKET, Point

PRUNERS = ("ChannelPruning", "PruningSchedule", "LotteryTicket", "LotteryControl")
# A lottery's rounds that go back to something else than the weights, from the dense training of another lottery.
_REWINDS = {"rate": "rate_rewinding", "none": "fine_tuning"}
# A row's figures are those of its best epoch, a round's by the same name of its last.
_OF_A_ROUND = {"val_accuracy": "val_accuracy_best", "val_accuracy_last": "val_accuracy"}


@dataclass(frozen=True)
class Lottery:
    """The points of one lottery's cell and of the controls that started from its rounds.

    Attributes:
        name: of the cell.
        weights: how many have masks, kept or not.
        points: of the dense network, the tickets and the controls.
        parameters: of the dense network.
        form: of which real network its network is what form; None where its rows do not say.
    """

    name: str
    weights: int
    points: list[Point] = field(default_factory=list)
    parameters: int = 0
    form: Form | None = None


def lotteries(results: Results, metric: str = "val_accuracy") -> tuple[list[Lottery], list[str]]:
    """The lotteries among the rows, and a line for each control that could not be placed.

    A run of `LotteryTicket` gives `dense` (round 0) and a `ticket` for each later round; a run of `LotteryControl` a
    point of its control for each round that it trained, at the seed of the lottery's run that it names. A control that
    names no run here goes to the only lottery with its network and data, at its own seed. A `ticket` that a control
    trained again is `ticket_again`, that of round 0 `dense_again`, and a dense network trained for as long as all
    rounds is `dense_as_long`. A `narrow` network stands at the density of the ticket that is as large.

    A `LotteryTicket` that took its dense training over from such a lottery and rewinds otherwise is a control of it:
    its rounds are `rate_rewinding` or `fine_tuning`. With `rewind: weights` it is a lottery of its own.

    Args:
        results: what `collect` found.
        metric: `val_accuracy`, of the best epoch of a round or run; `val_accuracy_last`; or another figure that rounds
            and rows have. Rounds have no test accuracy: the last one's is the row's.
    """
    found: dict[str, Lottery] = {}
    homes = Homes(results)
    for cell in results.cells:
        for row in cell.rows:
            for record in records(row, "LotteryTicket"):
                if not record.get("rounds") or rewinding(record):
                    continue
                if cell.name not in found:
                    weights, parameters = record["rounds"][0]["total"], row.get("parameters") or 0
                    found[cell.name] = Lottery(cell.name, weights, parameters=parameters, form=form_of(row))
                found[cell.name].points.extend(_rounds(row, record, metric))
    problems = []
    for cell in results.cells:
        for row in cell.rows:
            others = [each for each in records(row, "LotteryTicket") if each.get("rounds") and rewinding(each)]
            for record in [*others, *records(row, "LotteryControl")]:
                home = homes.of(row, record)
                if home is None:
                    problems.append(f"{row['folder']}: its lottery ({record.get('from_round')}) is not here; left out")
                elif (series := rewinding(record)) is not None:
                    points = [p for p in _rounds(row, record, metric) if p.series == TICKET]
                    found[home[0]].points.extend(p._replace(series=series, seed=home[1]) for p in points)
                else:
                    found[home[0]].points.extend(_controls(row, record, home[1], metric))
    return list(found.values()), problems


class Homes:
    """Which lottery's cell and seed a control belongs to: its `from_round` names a run, else the only one alike."""

    def __init__(self, results: Results) -> None:
        self._runs: dict[tuple[str, str], tuple[str, int]] = {}  # names of a run -> its cell and seed
        self._kinds: dict[str, tuple[Any, Any]] = {}
        for cell in results.cells:
            for row in cell.rows:
                if any(each.get("rounds") and not rewinding(each) for each in records(row, "LotteryTicket")):
                    self._runs[str(row["name"]), str(row["run"])] = (cell.name, row["seed"])
                    self._kinds[cell.name] = (row["net"], row["data"])

    def of(self, row: dict[str, Any], record: dict[str, Any]) -> tuple[str, int] | None:
        """(Cell, seed) of the lottery that a control's record in a row belongs to; None where it is not here."""
        run = Path(str(record.get("from_round"))).parent.parent
        if (run.parent.name, run.name) in self._runs:
            return self._runs[run.parent.name, run.name]
        alike = [name for name, kind in self._kinds.items() if kind == (row["net"], row["data"])]
        return (alike[0], row["seed"]) if len(alike) == 1 else None


def records(row: dict[str, Any], *callbacks: str) -> list[dict[str, Any]]:
    """What callbacks of these names left in a row."""
    pruning = row.get("pruning")
    return [each for each in pruning if each.get("callback") in callbacks] if isinstance(pruning, list) else []


def rewinding(record: dict[str, Any]) -> str | None:
    """The series of a lottery that is another's control; None for one of its own, and for a `LotteryControl`."""
    plan = record.get("plan") or {}
    return _REWINDS.get(str(plan.get("rewind"))) if record.get("from_round") else None


def _rounds(row: dict[str, Any], record: dict[str, Any], metric: str) -> list[Point]:
    points = []
    last = max(each["round"] for each in record["rounds"])
    for each in record["rounds"]:
        value = each.get(_OF_A_ROUND.get(metric, metric))
        if value is None and each["round"] == last and metric.startswith("test"):
            value = row.get(metric)
        if is_number(value):
            series = DENSE if each["round"] == 0 else TICKET
            points.append(Point(series, row["seed"], each["density"], float(value), each.get("epochs")))
    return points


def _controls(row: dict[str, Any], record: dict[str, Any], seed: int, metric: str) -> list[Point]:
    series = {"ticket": "ticket_again", "dense": "dense_as_long"}.get(record["control"], record["control"])
    points = []
    for each in record.get("rounds") or [{**record, "epochs": row.get("epochs")}]:
        value = each.get(_OF_A_ROUND.get(metric, metric))
        if value is None and each["round"] == record["round"]:  # the row's figures are those of the last round
            value = row.get(metric)
        if is_number(value):
            density = 1.0 if record["control"] == "dense" else each["density"]
            name = "dense_again" if series == "ticket_again" and each["round"] == 0 else series
            points.append(Point(name, seed, density, float(value), each.get("epochs")))
    return points


def crossings(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> list[float]:
    """Where two curves of (x, y), x > 0, cross, rising; each straight between its points on a logarithmic x axis.

    Looked for where both are known. Where they touch or run together no crossing is reported: only changes of sign.
    """
    a, b = sorted(one), sorted(other)
    if not a or not b:
        return []
    low, high = max(a[0][0], b[0][0]), min(a[-1][0], b[-1][0])
    places = sorted({x for x, _ in (*a, *b) if low <= x <= high})
    found = []
    before: tuple[float, float] | None = None  # the last place where they differ, and by how much
    meeting: float | None = None  # the first place after it where they are equal
    for x in places:
        gap = height(a, x) - height(b, x)
        if gap == 0:
            meeting = x if meeting is None else meeting
            continue
        if before is not None and (gap > 0) != (before[1] > 0):
            share = before[1] / (before[1] - gap)
            between = math.exp(math.log(before[0]) + share * (math.log(x) - math.log(before[0])))
            found.append(between if meeting is None else meeting)
        before, meeting = (x, gap), None
    return found


def height(curve: Sequence[tuple[float, float]], x: float) -> float:
    """The curve's y at x, straight between its points on a logarithmic x axis; at its ends beyond them."""
    curve = sorted(curve)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1 and x1 > x0:
            share = (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0))
            # At an end the point itself, without the rounding of logarithms.
            return y0 if x == x0 else y1 if x == x1 else y0 + share * (y1 - y0)
    return curve[0][1] if x <= curve[0][0] else curve[-1][1]
