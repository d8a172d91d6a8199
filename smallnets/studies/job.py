"""A run in a slot of a worker: its process, and what is written down of it."""

import math
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from smallnets.results.row import ROW
from smallnets.results.store import load_row
from smallnets.studies.execute import last_error
from smallnets.studies.plan import Plan, Run
from smallnets.studies.state import RunLock, State, read_record, write_record


@dataclass
class Job:
    """A run that was taken: `trial` of the ledger, `slot` of the worker, `state` in which its process found it.

    `process` is None until there is one; `deaths` counts those that were killed from outside one after the other.
    """

    run: Run
    trial: int
    slot: int
    lock: RunLock
    process: "subprocess.Popen[bytes] | None" = None
    state: State = State.NEW
    started: float = field(default_factory=time.monotonic)
    deaths: int = 0

    def add_seconds(self, plan: Plan) -> None:
        """Writes down how long its process has worked, beside what earlier ones have."""
        before = read_record(plan, self.run).get("seconds") or 0.0
        write_record(plan, self.run, seconds=round(before + time.monotonic() - self.started, 3))

    def error(self, plan: Plan) -> str:
        """What the run failed of: its row says, unless it is of an earlier start."""
        folder, record = plan.run_folder(self.run).path, read_record(plan, self.run)
        row = load_row(folder, lambda problem: None) or {}
        if row.get("error") and (folder / ROW).stat().st_mtime >= record.get("since", 0) - 1:
            return str(row["error"])
        return str(record.get("error") or last_error(plan.folder.output(self.run.name)))


def title(run: Run) -> str:
    """What the user reads of a run: its cell and its seed."""
    return f"{run.cell.cell} seed {run.seed}"


def figures(plan: Plan, row: dict[str, Any]) -> list[str]:
    """The study's metrics that a row has, each as text."""
    return [f"{name} {row[name]:.6g}" for name in plan.metrics if isinstance(row.get(name), (int, float))]


def first_metric(plan: Plan, row: dict[str, Any]) -> float:
    """The study's first figure that the row has, for the ledger; 0 if it has none."""
    found = (row.get(name) for name in (*plan.metrics, "val_accuracy"))
    return next((float(v) for v in found if isinstance(v, (int, float)) and math.isfinite(v)), 0.0)
