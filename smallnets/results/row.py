"""`row.json`: the one line that a run leaves, from which every table and plot is made."""

import json
import math
import os
from pathlib import Path
from typing import Any

from smallnets.errors import RunError

# 2 adds the sizes and the digest of the split, each seed apart, the rule of selection, and the seconds of the device.
SCHEMA = 2
ROW = "row.json"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` by rename: a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(_plain(value), indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` by rename, on disk before the name changes hands."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a full disk: the system does not say which file, and half of it would stay there
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    part.replace(path)


def write_row(folder: str | Path, row: dict[str, Any]) -> None:
    """Writes the run's `row.json` into its folder, whole or not at all."""
    write_json(Path(folder) / ROW, {"schema": SCHEMA, **row})


def read_row(folder: str | Path) -> dict[str, Any] | None:
    """The run's row, one of an older schema in the form of this one; None for a run that has not ended.

    Raises:
        RunError: the file is not a row that this version reads.
    """
    path = Path(folder) / ROW
    if not path.is_file():
        return None
    try:
        row = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    schema = row.get("schema") if isinstance(row, dict) else type(row).__name__
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise RunError(f"{path} has schema {schema}; this version of smallnets reads up to {SCHEMA}")
    return _from_1(row) if schema == 1 else row


def _from_1(row: dict[str, Any]) -> dict[str, Any]:
    """A row of schema 1 in the form of schema 2: what it does not tell is null, but for the seeds, which it implies."""
    config = row.get("config") or {}
    data = (config.get("data") or {}).get("init_args") or {}
    callbacks = [each.get("init_args") or {} for each in (config.get("trainer") or {}).get("callbacks") or []]
    given = {name: data.get(f"{name}_seed") for name in ("order", "augment")}
    given["mask"] = next((seed for each in callbacks if (seed := each.get("mask_seed")) is not None), None)
    run = row.get("seed")
    seeds = {"split": row.get("split_seed"), "init": run} | {k: run if v is None else v for k, v in given.items()}
    new = dict.fromkeys(("train_size", "val_size", "split_digest", "selection", "device_seconds"))
    return {**new, "seeds": seeds, **row, "schema": SCHEMA}


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
