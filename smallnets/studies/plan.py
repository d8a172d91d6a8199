"""`Plan`: a study's cells with their digests, its runs, and the command line of each."""

import hashlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from smallnets import __version__
from smallnets.errors import UserError
from smallnets.results.provenance import flatten
from smallnets.results.row import write_json, write_text
from smallnets.results.run import RunFolder
from smallnets.results.study_folder import StudyFolder, read_mapping
from smallnets.studies.cells import Cell
from smallnets.studies.digest import settings_digest
from smallnets.studies.study import Study

_SCHEMA = 1
# Folder names may be 255 bytes long; seed, digest and the names of files beside them need some.
_LONGEST = 160


class Resolver(Protocol):
    """What a plan must know of `fit`; it takes seconds to load, so it is given, and built only where it is used."""

    def settings(self, arguments: list[str]) -> dict[str, Any]:
        """The essential settings of `fit` with these arguments. Raises UserError for a wrong one."""

    def over_budget(self, arguments: list[str], budget: dict[str, Any]) -> list[str]:
        """One sentence for each limit that the network of these arguments exceeds."""

    def prepare(self, arguments: list[str]) -> None:
        """Fetches and converts the data of `fit` with these arguments, where that is to be done."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell and what it comes to: the digest of its settings, the arguments of `fit` that make it."""

    cell: str
    axes: dict[str, Any]
    digest: str
    settings: dict[str, Any]
    arguments: list[str]


@dataclass(frozen=True)
class Run:
    """One cell and seed. `name` is its folder: the cell, the seed and the digest of the cell's settings."""

    name: str
    cell: PlannedCell
    seed: int


@dataclass(frozen=True)
class Plan:
    """A study as it is to be run in a folder.

    A run is told by (digest, seed): a cell that is renamed keeps its runs, a cell whose settings change gets new ones.
    """

    name: str
    asks: str
    folder: StudyFolder
    root: Path
    cells: list[PlannedCell]
    seeds: list[int]
    metrics: list[str]
    stated: dict[str, dict[str, float]]
    excluded: dict[str, str]
    test: bool
    source: str
    # Path -> what it says: the configs that the command lines name.
    copies: dict[Path, str] = field(default_factory=dict, compare=False, repr=False)

    def runs(self) -> Iterator[Run]:
        """All runs, the first seed of every cell before the second of any."""
        there = self._folders()
        for seed in self.seeds:
            for cell in self.cells:
                end = f"-seed{seed}-{cell.digest}"
                yield Run(there.get(end, f"{cell.cell[:_LONGEST]}{end}"), cell, seed)

    def _folders(self) -> dict[str, str]:
        """The end of a run's name -> its name, of the runs that were begun, also under another cell name."""
        records = [p.stem for p in self.folder.runs.glob("*.json")] if self.folder.runs.is_dir() else []
        names = [*records, *(p.name for p in self.folder.path.iterdir())] if self.folder.path.is_dir() else records
        return {name[name.rindex("-seed") :]: name for name in names if "-seed" in name}

    def run_folder(self, run: Run) -> RunFolder:
        return RunFolder(self.folder.path / run.name)

    def fit_command(self, run: Run, resume: bool = False) -> list[str]:
        """`smallnets fit ...` for a run, anew or from its last checkpoint."""
        ours = [f"--seed_everything={run.seed}", f"--name={self.name}", f"--run={run.name}"]
        if self.root != Path():
            ours.append(f"--trainer.default_root_dir={self.root}")
        return ["smallnets", "fit", *run.cell.arguments, *ours, *(["--ckpt_path=last"] if resume else [])]

    def test_command(self, run: Run, reread: bool = False) -> list[str]:
        """`smallnets test ...` for a run that was trained."""
        return ["smallnets", "test", "--config", str(self.run_folder(run).config), *(["--reread_test=true"] * reread)]

    def commands(self) -> Iterator[str]:
        """For each run the line, or two, that it is made with, to be pasted."""
        for run in self.runs():
            yield shlex.join(self.fit_command(run))
            if self.test:
                yield shlex.join(self.test_command(run))

    def write(self) -> None:
        """Writes the copies of the configs, and `plan.json` by rename."""
        plain = {k: v for k, v in vars(self).items() if k not in ("folder", "root", "cells", "copies")}
        for folder in (self.folder.runs, self.folder.configs):
            folder.mkdir(parents=True, exist_ok=True)
        for path, text in self.copies.items():
            if not path.is_file():
                write_text(path, text)
        write_json(self.folder.plan, {"schema": _SCHEMA, **plain, "cells": [asdict(c) for c in self.cells]})


def study_folder(study: Study, root: Path) -> StudyFolder:
    """`ROOT/lightning_logs/<study>`."""
    return StudyFolder(root / "lightning_logs" / study.name)


def stored_plan(study: Study, root: Path) -> Plan | None:
    """The plan that was written of this very study file and its configs; None if there is none."""
    folder = study_folder(study, root)
    plan = read_mapping(folder.plan)
    if plan is None or plan.pop("schema", None) != _SCHEMA or plan["source"] != _source(study):
        return None
    cells = [PlannedCell(**cell) for cell in plan.pop("cells")]
    return Plan(**plan, cells=cells, folder=folder, root=root)


def make_plan(study: Study, root: Path, resolver: Resolver) -> Plan:
    """The plan of a study; nothing is written.

    Raises:
        UserError: a cell's options are wrong, two cells are the same, or none is within the budget.
    """
    source = _source(study)
    folder = study_folder(study, root)
    cells: list[PlannedCell] = []
    excluded: dict[str, str] = {}
    for cell in study.cells:
        where = f"study {study.file}: cell {cell.name}"
        try:
            settings = resolver.settings(_arguments(study, cell))
            over = resolver.over_budget(_arguments(study, cell), study.budget) if study.budget else []
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if over:
            excluded[cell.name] = "; ".join(over)
            continue
        digest = settings_digest(settings)
        if same := [c.cell for c in cells if c.digest == digest]:
            raise UserError(f"{where} is the same as {same[0]}: their settings do not differ")
        cells.append(PlannedCell(cell.name, cell.axes, digest, settings, _arguments(study, cell, folder)))
    if not cells:
        name, reason = next(iter(excluded.items()))
        raise UserError(f"study {study.file}: every cell is over the budget, {name} with {reason}")
    copies = {copy: path.read_text() for path, copy in _copies(study, folder).items()}
    if _source(study) != source:
        raise UserError(f"study {study.file}: it or a config of it was changed while it was read; start again")
    what: dict[str, Any] = {"name": study.name, "asks": study.asks, "seeds": study.seeds, "metrics": study.metrics}
    rest: dict[str, Any] = {"stated": study.stated, "test": study.test, "source": source, "excluded": excluded}
    return Plan(folder=folder, root=root, cells=cells, copies=copies, **what, **rest)


def old_runs(plan: Plan) -> list[str]:
    """One sentence for each cell that runs were made of with other settings than it has now, or that is gone.

    Their folders stay as they are, and their rows are told apart (`smallnets.results.rows(..., old=True)`).
    """
    now = {cell.cell: cell for cell in plan.cells}
    digests = {cell.digest for cell in plan.cells}
    records = (
        [read_mapping(p) or {} for p in sorted(plan.folder.runs.glob("*.json"))] if plan.folder.runs.is_dir() else []
    )
    found: dict[str, list[int]] = {}
    for record in records:
        name, digest = record.get("cell"), record.get("digest")
        if name is None or digest in digests:
            continue
        if name in now:
            said = f"{name} had other settings ({_difference(record.get('settings', {}), now[name].settings)})"
        else:
            said = f"{name} is no longer a cell of the study"
        found.setdefault(said, []).append(record["seed"])
    return [f"{said}: {len(seeds)} old run{'s' * (len(seeds) > 1)} kept apart" for said, seeds in found.items()]


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    a, b = flatten(before), flatten(after)
    differ = [f"{k} {a.get(k, 'default')} -> {b.get(k, 'default')}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    return ", ".join(differ[:3]) + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")


def _arguments(study: Study, cell: Cell, copies_in: StudyFolder | None = None) -> list[str]:
    """The arguments of `fit` that make a cell; its configs as they stand, or their copies in a study's folder."""
    files = [*study.base, *map(Path, cell.options.get("config", []))]
    if copies_in is not None:
        files = [_copies(study, copies_in)[file] for file in files]
    values = {k: v for k, v in cell.options.items() if k != "config"}
    return [a for f in files for a in ("--config", str(f))] + [f"--{k}={_text(v)}" for k, v in values.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _copies(study: Study, folder: StudyFolder) -> dict[Path, Path]:
    """Config file -> the copy of what it says now, named by its contents."""
    return {path: folder.configs / f"{path.stem}-{_digest(path.read_bytes())}.yaml" for path in study.configs()}


def _source(study: Study) -> str:
    """Digest of all that a plan is made from."""
    texts = [path.read_bytes() for path in (study.file, *study.configs())]
    return _digest(b"\0".join([__version__.encode(), study.name.encode(), *texts]))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:8]
