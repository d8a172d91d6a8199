"""Rows kept in one file, a line of JSON each, after their runs' folders are gone: what `results/` holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_lines(path: Path, on_problem: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` file, in its order.

    A line has what `rows` gives of a run, or a part of it; `cell`, `seed` and `status` at least. In place of `pruning`
    a row of a lottery may have `rounds` alone: those of a control name the `from_round` that they began at, and the
    cell's name is then the control's. A line that is no row is told to `on_problem` and left out.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not {"cell", "seed", "status"} <= row.keys():
            on_problem(f"{path}, line {number}, is no row of a run; it is left out")
            continue
        about: dict[str, Any] = {"name": path.parent.name, "axes": {}, "stated": {}, "digest": None, "current": True}
        more = {"pruning": _pruning(row)} if row.get("rounds") and "pruning" not in row else {}
        found.append({**about, "folder": f"{path}:{number}", **row, **more})
    return found


def _pruning(row: dict[str, Any]) -> list[dict[str, Any]]:
    rounds = row["rounds"]
    if "from_round" not in rounds[0]:
        return [{"callback": "LotteryTicket", "rounds": rounds}]
    return [{"callback": "LotteryControl", "control": row["cell"], **rounds[-1], "rounds": rounds}]
