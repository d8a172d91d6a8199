"""`rows`, `frame`: what runs have left, collected. Tables and plots are made from these and from nothing else.

pandas is imported in this file alone, and when `frame` is called.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallnets.errors import RunError, UserError
from smallnets.results.latency import read_latency
from smallnets.results.row import ROW, SCHEMA, read_row
from smallnets.results.rows_file import read_lines
from smallnets.results.study_folder import StudyFolder, read_mapping

if TYPE_CHECKING:
    import pandas as pd

# What every row has, whatever version wrote it: null where it is not known.
FIELDS = (
    "name", "run", "status", "error", "net", "data", "parameters", "nonzero_parameters", "macs", "bytes", "seed",
    "val_accuracy", "test_accuracy", "test_reads", "train_size", "val_size", "selection", "seeds", "data_digest",
    "split_digest", "epochs", "steps", "seconds", "device_seconds", "images_per_second",
)  # fmt: skip


class RowWarning(UserWarning):
    """A row that was left out, and why."""


def _warn(problem: str) -> None:
    warnings.warn(problem, RowWarning, stacklevel=4)


def rows(where: str | Path, *, old: bool = False, on_problem: Callable[[str], None] = _warn) -> list[dict[str, Any]]:
    """The rows of all runs under a folder: of a study, of several runs, or of all of `lightning_logs`; or of a file.

    A row is what the run's `row.json` holds (`FIELDS` are always there), with

    - `folder`: the run's folder, as a string;
    - `cell`: the name of the study's cell, elsewhere the run's `name`;
    - `axes`: for each axis of the study the value of this cell, a number or a name;
    - `stated`: for each figure that a document states for the cell, its value;
    - `digest`: of the cell's settings: rows of one digest differ by their seed alone;
    - `current`: whether the study, as it was last planned, has this cell and seed.

    A run of a study that failed before it could write a row is a row too, with `status` "failed" and its `error`. A
    trial that a search's pruner has stopped has the status "pruned", with the figures of its last epoch. A run that was
    begun and has not ended has another status, or no row yet.

    Args:
        where: a folder; `lightning_logs/<study>` for a study; or a file `*.jsonl` with a row a line, such as those in
            `results/` (see `rows_file`).
        old: also the rows of cells and seeds that the study no longer has, `current` False.
        on_problem: called with one line for each row that is damaged or of a newer version; it is left out.

    Raises:
        UserError: there is no such folder or file.
    """
    folder = Path(where)
    if folder.suffix == ".jsonl" and folder.is_file():
        return [{**dict.fromkeys(FIELDS), **row} for row in read_lines(folder, on_problem)]
    if not folder.is_dir():
        raise UserError(f"no folder {folder} to read rows from")
    found = []
    for group, study in _groups(folder):
        known = _study_rows(study, on_problem) if study else _plain_rows(group, on_problem)
        found += [row for row in known if old or row["current"]]
    return found


def frame(where: str | Path, *, old: bool = False, on_problem: Callable[[str], None] = _warn) -> "pd.DataFrame":
    """`rows` as a pandas DataFrame, one line a run: cell, a column an axis, seed, status, the figures, `stated_*`.

    An axis whose name is also a figure's gets the column `axis_<name>`. Nested values (`config`, `versions`, ...) are
    left out: they are in `rows`.

    Raises:
        UserError: there is no such folder, or pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise UserError("a data frame needs pandas: pip install 'smallnets[study]'") from error
    found = rows(where, old=old, on_problem=on_problem)
    figures = [k for row in found for k, v in row.items() if not isinstance(v, (dict, list))]
    first = dict.fromkeys(("cell", "seed", "status"))
    lines = []
    for row in found:
        axes = {f"axis_{k}" if k in row else k: v for k, v in row["axes"].items()}
        stated = {f"stated_{k}": v for k, v in row["stated"].items()}
        flat = {k: v for k, v in row.items() if not isinstance(v, (dict, list))}
        lines.append({"cell": row["cell"], **axes, **flat, **stated})
    axis_names = dict.fromkeys(f"axis_{k}" if k in row else k for row in found for k in row["axes"])
    stated_names = dict.fromkeys(f"stated_{k}" for row in found for k in row["stated"])
    columns = dict.fromkeys(["cell", *axis_names, *first, *figures, *stated_names])
    return pd.DataFrame(lines, columns=list(columns))


def _groups(folder: Path) -> Iterator[tuple[Path, StudyFolder | None]]:
    """The folders that hold runs, from `folder` downwards, each with its study if it is one's."""
    study = StudyFolder(folder)
    if study.own.is_dir():
        yield folder, study
        return
    if (folder / ROW).is_file() or any((p / ROW).is_file() for p in folder.iterdir()):
        yield folder, None
        return
    for child in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "checkpoints"):
        yield from _groups(child)


def _plain_rows(group: Path, on_problem: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    for folder in [group] if (group / ROW).is_file() else sorted(p for p in group.iterdir() if p.is_dir()):
        row = load_row(folder, on_problem)
        if row is not None:
            more = {"cell": row["name"], "axes": {}, "stated": {}, "digest": row.get("config_digest"), "current": True}
            yield {**row, **more, "folder": str(folder)}


def _study_rows(study: StudyFolder, on_problem: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    plan = read_mapping(study.plan) or {}
    if not plan:
        on_problem(f"{study.plan} is missing or damaged: `smallnets study run FILE` writes it again")
    cells = {cell["digest"]: cell for cell in plan.get("cells", [])}
    for record in _records(study, cells, on_problem):
        folder = study.path / record["run"]
        row = load_row(folder, on_problem)
        if record.get("state") == "failed" and (row is None or row["status"] != "failed"):
            # Of a run that was trained and then failed in its test, what was reached stays.
            row = {**(row or _without_row(study, record)), "status": "failed", "error": record.get("error")}
        if row is None:
            continue
        cell = cells.get(record["digest"])
        yield {
            **row,
            "cell": (cell or record)["cell"],
            "axes": (cell or record)["axes"],
            "stated": plan.get("stated", {}).get(cell["cell"], {}) if cell else {},
            "digest": record["digest"],
            "seed": record["seed"],
            "current": cell is not None and record["seed"] in plan.get("seeds", []),
            "folder": str(folder),
        }


def _records(
    study: StudyFolder, cells: dict[str, dict[str, Any]], on_problem: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """What is written down of the study's runs; a run that was started by hand is told by its folder's name."""
    for folder in sorted(study.path.iterdir()):
        found = re.search(r"-seed(\d+)-([0-9a-f]{8})$", folder.name)
        if found and not study.record(folder.name).is_file() and found[2] in cells:
            cell = cells[found[2]]
            yield {
                "run": folder.name,
                "cell": cell["cell"],
                "axes": cell["axes"],
                "seed": int(found[1]),
                "digest": found[2],
            }
    for path in sorted(study.runs.glob("*.json")):
        record = read_mapping(path)
        if record is None:
            on_problem(f"{path} is damaged; its run is left out")
        else:
            yield record


def _without_row(study: StudyFolder, record: dict[str, Any]) -> dict[str, Any]:
    return {**dict.fromkeys(FIELDS), "name": study.path.name, "run": record["run"], "schema": SCHEMA}


def load_row(folder: Path, on_problem: Callable[[str], None] = _warn) -> dict[str, Any] | None:
    """A run's row with all of `FIELDS`, also one of an older version, and its latency where `bench --save` kept one.

    None where there is none that can be read.
    """
    try:
        row = read_row(folder)
    except RunError as error:
        on_problem(f"{error}; it is left out")
        return None
    if row is None:
        return None
    try:
        measured = read_latency(folder)
    except RunError as error:
        on_problem(str(error))
        measured = {}
    return {**dict.fromkeys(FIELDS), **row, **measured}
