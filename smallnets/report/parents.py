"""`dense_parent`: the unpruned network that a cell's pruned one came from, and what pruning cost beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallnets.report.collect import Cell, Results, differing, is_number
from smallnets.report.lottery import PRUNERS, Homes, lotteries, records, rewinding
from smallnets.report.stats import Difference, difference
from smallnets.report.verdict import DENSE, by_seed

ROUND_0 = "round 0"


@dataclass(frozen=True)
class Parent:
    """A dense network: `name` is its cell's, or `round 0` of a lottery; `less` the pruned figures less its own."""

    name: str
    less: Difference | None


def dense_parent(cell: Cell, record: dict[str, Any], results: Results, metric: str) -> Parent | None:
    """The own dense network of a pruned cell; differences are paired by seed.

    - Of a lottery, and of a control that began at its rounds (rewinding the rate alone and fine-tuning are such): the
      lottery's round 0, of the same seed.
    - Of a run that went on from a dense run here (`--model.init_from`): that run.
    - Else the dense cell of the same network, data and count of parameters whose settings are nearest.

    None where there is none of these.
    """
    if record["callback"] in ("LotteryTicket", "LotteryControl"):
        return _round_0(cell, record, results, metric)
    dense = [each for each in results.cells if each.rows and not records(each.rows[0], *PRUNERS)]
    runs = {(str(row["name"]), str(row["run"])): (each, row) for each in dense for row in each.rows}
    values, base, names = {}, {}, []
    for row in cell.rows:
        start = Path(str((row.get("config") or {}).get("model", {}).get("init_from"))).parent.parent
        if (found := runs.get((start.parent.name, start.name))) is not None:
            names.append(found[0].name)
            if is_number(row.get(metric)) and is_number(found[1].get(metric)):
                values[row["seed"]], base[row["seed"]] = row[metric], found[1][metric]
    if names:
        return Parent(names[0], difference(values, base))
    alike = [each for each in dense if _is_dense_form(each.rows[0], cell.rows[0], record)]
    if not alike:
        return None
    nearest = min(alike, key=lambda each: len(differing([each.settings, cell.settings])))
    return Parent(nearest.name, difference(cell.values(metric), nearest.values(metric)))


def _round_0(cell: Cell, record: dict[str, Any], results: Results, metric: str) -> Parent | None:
    homes, found = Homes(results), {each.name: each for each in lotteries(results, metric)[0]}
    if record["callback"] == "LotteryTicket" and cell.name in found:
        dense = by_seed(point for point in found[cell.name].points if point.series == DENSE)
        return Parent(ROUND_0, difference(cell.values(metric), dense))
    values, names = {}, []
    for row in cell.rows:
        for each in records(row, "LotteryTicket", "LotteryControl"):
            if each["callback"] == "LotteryTicket" and rewinding(each) is None:
                continue  # a lottery that ended within its dense training has no other's round 0
            if (home := homes.of(row, each)) is not None:
                names.append(home[0])
                if is_number(row.get(metric)):
                    values[home[1]] = float(row[metric])
    if not names:
        return None
    dense = by_seed(point for point in found[names[0]].points if point.series == DENSE)
    return Parent(f"{names[0]}, {ROUND_0}", difference(values, dense))


def _is_dense_form(dense: dict[str, Any], row: dict[str, Any], record: dict[str, Any]) -> bool:
    before = record["before"]["parameters"] if record.get("after") else row.get("parameters")
    return all(dense.get(k) == row.get(k) for k in ("net", "data")) and dense.get("parameters") == before
