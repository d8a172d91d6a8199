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
from smallnets.studies.needs import filled, has_place, in_order
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
    """A cell and what it comes to.

    Attributes:
        cell: its name.
        axes: for each axis the value here.
        digest: of its settings; a cell that needs another has that one's digest in its own.
        settings: what decides the result of a run, but the seed.
        arguments: of `fit`, with `{name}` for the folders of runs that are needed.
        needs: name in braces -> digest of the cell that is needed.
    """

    cell: str
    axes: dict[str, Any]
    digest: str
    settings: dict[str, Any]
    arguments: list[str]
    needs: dict[str, str] = field(default_factory=dict)


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
    tuned: dict[str, int] = field(default_factory=dict)

    def runs(self) -> Iterator[Run]:
        """All runs, the first seed of every cell before the second of any; each behind those that it needs."""
        there = self._folders()
        cells = in_order(self.cells, lambda cell: cell.digest, lambda cell: cell.needs.values())
        for seed in self.seeds:
            for cell in cells:
                yield _run(cell, seed, there)

    def needed(self, run: Run) -> dict[str, Run]:
        """Name in braces -> the run of the same seed that a run needs."""
        if not run.cell.needs:
            return {}
        there, cells = self._folders(), {cell.digest: cell for cell in self.cells}
        return {name: _run(cells[digest], run.seed, there) for name, digest in run.cell.needs.items()}

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
        places = {name: str(self.run_folder(each).path) for name, each in self.needed(run).items()}
        arguments = [filled(each, places) for each in run.cell.arguments]
        return ["smallnets", "fit", *arguments, *ours, *(["--ckpt_path=last"] if resume else [])]

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


def _run(cell: PlannedCell, seed: int, there: dict[str, str]) -> Run:
    end = f"-seed{seed}-{cell.digest}"
    return Run(there.get(end, f"{cell.cell[:_LONGEST]}{end}"), cell, seed)


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
    for cell in in_order(study.cells, lambda cell: cell.name, lambda cell: cell.needs.values()):
        where = f"study {study.file}: cell {cell.name}"
        if lost := [each for each in cell.needs.values() if each in excluded]:
            excluded[cell.name] = f"it needs {lost[0]}, which is left out"
            continue
        needs = {name: each.digest for name, wanted in cell.needs.items() for each in cells if each.cell == wanted}
        plain = arguments(study, cell)
        try:
            settings = resolver.settings(_with_digests(plain, needs))
            over = resolver.over_budget(_without_runs(plain, needs), study.budget) if study.budget else []
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if over:
            excluded[cell.name] = "; ".join(over)
            continue
        if needs:
            settings["needs"] = list(needs.values())
        digest = settings_digest(settings)
        if same := [c.cell for c in cells if c.digest == digest]:
            raise UserError(f"{where} is the same as {same[0]}: their settings do not differ")
        cells.append(PlannedCell(cell.name, cell.axes, digest, settings, arguments(study, cell, folder), needs))
    names = [cell.name for cell in study.cells]
    cells.sort(key=lambda cell: names.index(cell.cell))
    if not cells:
        name, reason = next(iter(excluded.items()))
        raise UserError(f"study {study.file}: every cell is over the budget, {name} with {reason}")
    copies = {copy: path.read_text() for path, copy in _copies(study, folder).items()}
    if _source(study) != source:
        raise UserError(f"study {study.file}: it or a config of it was changed while it was read; start again")
    what: dict[str, Any] = {"name": study.name, "asks": study.asks, "seeds": study.seeds, "metrics": study.metrics}
    rest: dict[str, Any] = {"stated": study.stated, "test": study.test, "source": source, "excluded": excluded}
    rest["tuned"] = study.tuned
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


def arguments(study: Study, cell: Cell, copies_in: StudyFolder | None = None) -> list[str]:
    """The arguments of `fit` that make a cell; its configs as they stand, or their copies in a study's folder."""
    files = [*study.base, *map(Path, cell.options.get("config", []))]
    if copies_in is not None:
        files = [_copies(study, copies_in)[file] for file in files]
    values = {k: v for k, v in cell.options.items() if k != "config"}
    return [a for f in files for a in ("--config", str(f))] + [f"--{k}={_text(v)}" for k, v in values.items()]


def _with_digests(arguments: list[str], needs: dict[str, str]) -> list[str]:
    """Arguments that name what made the runs that are needed, and neither their cells' names nor their folders."""
    return [filled(each, {name: f"{{{digest}}}" for name, digest in needs.items()}) for each in arguments]


def _without_runs(arguments: list[str], needs: dict[str, str]) -> list[str]:
    """Arguments of a network that is built before there is a run to take its weights from."""
    return [each for each in arguments if not (each.startswith("--model.init_from=") and has_place(each, needs))]


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
