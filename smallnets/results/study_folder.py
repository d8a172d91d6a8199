"""Where a study lives: `lightning_logs/<study>/`, its runs beside a folder `study/` of its own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder and the names in it.

    Each run has its folder in `path`. In `path/study/` lie `plan.json` (cells, seeds, stated values), `configs/` (the
    configs that the runs were started from), `runs/` (for each run a record, a lock and its output) and, unless it is
    a database elsewhere, `ledger.sqlite`.
    """

    path: Path

    @property
    def own(self) -> Path:
        return self.path / "study"

    @property
    def plan(self) -> Path:
        return self.own / "plan.json"

    @property
    def configs(self) -> Path:
        return self.own / "configs"

    @property
    def ledger(self) -> Path:
        return self.own / "ledger.sqlite"

    @property
    def runs(self) -> Path:
        return self.own / "runs"

    def record(self, run: str) -> Path:
        return self.runs / f"{run}.json"

    def lock(self, run: str) -> Path:
        return self.runs / f"{run}.lock"

    def output(self, run: str) -> Path:
        return self.runs / f"{run}.log"


def read_mapping(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none, or it is not whole."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
