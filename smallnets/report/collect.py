"""`Results`: the rows of folders, put together by cell: what every table and figure is made from."""

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from smallnets.errors import UserError
from smallnets.results.provenance import flatten
from smallnets.results.store import rows
from smallnets.results.study_folder import StudyFolder, read_mapping

# Figures of a row that are measured in the run, and can be a metric; all others tell what the run was.
METRICS = (
    "val_accuracy", "test_accuracy", "val_accuracy_last", "train_accuracy_last", "val_loss_last", "train_loss_last",
    "test_loss", "seconds", "images_per_second", "parameters", "nonzero_parameters", "macs", "bytes",
)  # fmt: skip
# Settings that name a run or say where it runs.
_NO_SETTINGS = (
    "name", "run", "seed_everything", "ckpt_path", "config", "data.root", "data.download", "trainer.default_root_dir",
    "trainer.devices", "trainer.accelerator", "trainer.enable_progress_bar", "look.", "checkpoint_every",
)  # fmt: skip
# Arguments of callbacks: the lottery of this seed, and the seed of its masks.
_OF_A_SEED = ("from_round", "mask_seed")


@dataclass(frozen=True)
class Cell:
    """The runs of one configuration.

    Attributes:
        name: what tables call it.
        axes: for each axis of the study its value here.
        rows: of the runs that have finished.
        failed: of those that have failed.
        stated: figure -> the value that a document states.
        excluded: why the study left it out; None if it did not.
        tuned: how many configurations were tried to choose its settings; None where the study does not say.
    """

    name: str
    axes: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    stated: dict[str, float] = field(default_factory=dict)
    excluded: str | None = None
    tuned: int | None = None

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> the figure, where it is known; the mean of a seed's runs if it has several."""
        found: dict[int, list[float]] = {}
        for index, row in enumerate(self.rows):
            value = row.get(metric)
            if is_number(value):
                # Runs without a seed cannot be paired: each is one of its own.
                found.setdefault(-1 - index if row["seed"] is None else row["seed"], []).append(float(value))
        return {seed: math.fsum(v) / len(v) for seed, v in found.items()}

    def mean(self, metric: str) -> float | None:
        """The mean of a figure over the seeds; None where it is not known."""
        values = self.values(metric).values()
        return math.fsum(values) / len(values) if values else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the runs were trained with, `a.b.c` -> value, of the first run; seeds and places left out."""
        return _settings(self.rows[0]) if self.rows else {}


@dataclass(frozen=True)
class Results:
    """What was found: cells in the study's order, and a line for each row that was skipped.

    `metrics` are the figures that count by the plans of the studies, the first before all; none for other runs.
    `folders` are what was read.
    """

    name: str
    cells: list[Cell]
    asks: str | None = None
    problems: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for cell in self.cells for row in cell.rows]

    @property
    def metric(self) -> str:
        """The studies' first figure that some run has, or their first; `val_accuracy` for runs of no study."""
        known = [name for name in self.metrics if any(is_number(row.get(name)) for row in self.rows)]
        return [*known, *self.metrics, "val_accuracy"][0]

    def cell(self, name: str, option: str = "--baseline") -> Cell:
        """The cell of a name. UserError with the nearest name for an unknown one."""
        found = {cell.name: cell for cell in self.cells}
        if name not in found:
            raise UserError(f"{option}: no cell is called {name!r}; {nearest(name, found)}")
        return found[name]

    def check_metric(self, metric: str) -> None:
        """UserError, with the nearest name, unless some row or round has the figure, or METRICS names it."""
        numbers = {k for row in self.rows for k, v in row.items() if is_number(v) and k not in ("seed", "schema")}
        known = dict.fromkeys([*METRICS, *sorted(numbers)])
        if metric not in known:
            raise UserError(f"--metric: there is no figure {metric!r}; {nearest(metric, known)}")


def collect(folders: Sequence[str | Path]) -> Results:
    """The results of one or more folders of runs or studies.

    Runs of no study that have the same name and settings but their seed are one cell; where a name has several
    settings, the cells are told apart by what differs. Runs that have not ended or were stopped by a pruner, and rows
    that are damaged, are named in `problems` and skipped.

    Raises:
        UserError: no such folder, or no run in it has left a row.
    """
    problems: list[str] = []
    cells: dict[Any, Cell] = {}
    plans = [read_mapping(StudyFolder(Path(folder)).plan) or {} for folder in folders]
    several = len({str(folder) for folder in folders}) > 1
    for index, (folder, plan) in enumerate(zip(folders, plans, strict=True)):
        prefix = f"{plan['name']}: " if several and plan else ""
        for planned in plan.get("cells", []):
            about = {"stated": plan.get("stated", {}).get(planned["cell"], {})}
            about["tuned"] = plan.get("tuned", {}).get(planned["cell"])
            cells[index, planned["digest"]] = Cell(f"{prefix}{planned['cell']}", planned["axes"], **about)
        for name, reason in plan.get("excluded", {}).items():
            stated = plan.get("stated", {}).get(name, {})
            cells[index, "excluded", name] = Cell(f"{prefix}{name}", stated=stated, excluded=reason)
        for row in rows(folder, on_problem=problems.append):
            _add(cells, index, row, problems)
    if not any(cell.rows or cell.failed or cell.excluded for cell in cells.values()):
        shown = ", ".join(map(str, folders))
        raise UserError("\n".join([f"no rows of finished runs in {shown}: `smallnets fit` writes them", *problems]))
    asks = "; ".join(plan["asks"] for plan in plans if plan) or None
    title = ", ".join(
        plan.get("name") or Path(folder).resolve().name for folder, plan in zip(folders, plans, strict=True)
    )
    metrics = list(dict.fromkeys(metric for plan in plans for metric in plan.get("metrics", [])))
    return Results(title, _told_apart(list(cells.values())), asks, problems, metrics, list(map(str, folders)))


def _add(cells: dict[Any, Cell], index: int, row: dict[str, Any], problems: list[str]) -> None:
    key: Any = (index, row["digest"])
    if key not in cells:
        key = (row["cell"], json.dumps(_settings(row), sort_keys=True))
    if row["status"] == "failed":
        if row.get("config") is None and key not in cells:
            key = (row["cell"], "failed")
        cells.setdefault(key, Cell(row["cell"], row["axes"], stated=row["stated"])).failed.append(row)
    elif row["status"] == "finished":
        cells.setdefault(key, Cell(row["cell"], row["axes"], stated=row["stated"])).rows.append(row)
    elif row["status"] == "pruned":
        epochs = row["epochs"]
        problems.append(f"{row['folder']} was stopped by its search's pruner (epochs: {epochs}); it is left out")
    else:
        problems.append(f"{row['folder']} has not ended (status {row['status']}); it is left out")


def _settings(row: dict[str, Any]) -> dict[str, Any]:
    config = row.get("config") or {}
    trainer = config.get("trainer") or {}
    if isinstance(trainer.get("callbacks"), list):
        config = {**config, "trainer": {**trainer, "callbacks": _by_class(trainer["callbacks"])}}
    return {k: v for k, v in flatten(config).items() if not k.startswith(_NO_SETTINGS)}


def _by_class(callbacks: list[dict[str, Any]]) -> dict[str, Any]:
    """Callbacks by their class's name, without what is another for each seed."""
    found: dict[str, Any] = {}
    for each in callbacks:
        name = str(each.get("class_path")).rpartition(".")[2]
        arguments = {k: v for k, v in (each.get("init_args") or {}).items() if k not in _OF_A_SEED}
        name = f"{name}-{len(found)}" if name in found else name
        found[name] = {"class_path": each.get("class_path"), "init_args": arguments}
    return found


def _told_apart(cells: list[Cell]) -> list[Cell]:
    """Cells of one name, of runs with different settings, get what differs into their names."""
    found = []
    for cell in cells:
        same = [other for other in cells if other.name == cell.name]
        if len(same) > 1:
            keys = differing([other.settings for other in same if other.rows])
            values = {key.rpartition(".")[2]: str(cell.settings.get(key))[:30] for key in keys[:3] if cell.rows}
            shown = [f"{name}={value}" for name, value in values.items()]
            runs = [str(row["run"]) for row in [*cell.rows, *cell.failed]]
            cell = replace(cell, name=f"{cell.name} ({', '.join(shown or runs[:1])})")
        found.append(cell)
    return found


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names whose values are not the same in all."""
    names = dict.fromkeys(k for each in settings for k in each)
    return [k for k in names if any(each.get(k) != settings[0].get(k) for each in settings)]


def nearest(name: str, known: Iterable[str]) -> str:
    """`nearest: ...`, or all that is allowed if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"nearest: {near[0]}" if near else f"allowed: {', '.join(known)}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a row's value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
