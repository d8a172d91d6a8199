"""`row.json`: the one line that a run leaves, from which every table and plot is made."""

import json
import math
import os
from pathlib import Path
from typing import Any

from smallnets.errors import RunError

SCHEMA = 1
ROW = "row.json"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` by rename: a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(_plain(value), indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` by rename, on disk before the name changes hands."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_row(folder: str | Path, row: dict[str, Any]) -> None:
    """Writes the run's `row.json` into its folder, whole or not at all."""
    write_json(Path(folder) / ROW, {"schema": SCHEMA, **row})


def read_row(folder: str | Path) -> dict[str, Any] | None:
    """The run's row; None for a run that has not ended.

    Raises:
        RunError: the file is not a row that this version reads.
    """
    path = Path(folder) / ROW
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        found = row.get("schema") if isinstance(row, dict) else type(row).__name__
        raise RunError(f"{path} has schema {found}; this version of smallnets reads schema {SCHEMA}")
    return row


def update_row(folder: str | Path, **values: Any) -> dict[str, Any]:
    """Sets values in the run's row and returns the row; a run without one gets one."""
    row = {**(read_row(folder) or {}), **values}
    row.pop("schema", None)
    write_row(folder, row)
    return row


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null, so that every reader takes the file."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
