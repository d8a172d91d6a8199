"""`Study`: what a study's YAML file says, read and checked."""

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smallnets.errors import UserError
from smallnets.results.run import check_name
from smallnets.studies.cells import Cell, check_options, make_cells
from smallnets.studies.needs import check_needs
from smallnets.studies.spec_file import LIMITS, as_list, mapping, only, quick_part, read_spec

KEYS = (
    "name", "asks", "base", "set", "axes", "zip", "cells", "seeds", "metrics", "stated", "budget", "test", "tuned",
    "quick",
)  # fmt: skip
QUICK_KEYS = ("base", "set", "axes", "zip", "cells", "seeds", "budget", "test", "keep")


@dataclass(frozen=True)
class Study:
    """A grid of configurations and seeds, and what is asked of it.

    The file's keys: `name`; `asks`, one sentence; `base`, config files, from the study file's folder; `set`, options
    of `fit` for all cells; `axes`, `zip` and `cells`, crossed (see `make_cells`), where a cell may have `needs`,
    another cell whose run of the same seed comes first; `seeds`, a list or how many; `metrics`, the figures of the row
    that count, the first before all; `stated: {cell: {metric: value}}`, what a document says; `budget`, limits that a
    cell's network must keep, or the cell is left out; `test: false` to leave the test set unread; `quick`, what
    `--quick` puts in the place of these: its `set` overrides every cell's options, its `keep` is the number of cells
    that stay, or their names. `tuned` says how many configurations were tried to choose the settings: a number for all
    cells, or `{cell: number}`.
    """

    file: Path
    name: str
    asks: str
    base: list[Path]
    cells: list[Cell]
    seeds: list[int]
    metrics: list[str]
    stated: dict[str, dict[str, float]] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    test: bool = True
    tuned: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str | Path, quick: bool = False) -> "Study":
        """The study in a file; its quick form is a study of its own, called `<name>-quick`.

        Raises:
            UserError: the file is missing, is not YAML, or says something that a study cannot be made of.
        """
        return read_spec(file, "study", lambda path, spec: cls._made(path, spec, quick))

    @classmethod
    def _made(cls, path: Path, spec: dict[str, Any], quick: bool) -> "Study":
        only(spec, KEYS, "a study")
        over = quick_part(spec, QUICK_KEYS, quick)
        for where, options in (("set", mapping(spec, "set")), ("quick: set", mapping(over, "set"))):
            for option, who in (("config", "base says it, or a cell"), ("needs", "a cell says it")):
                if option in options:
                    raise UserError(f"{where}: {option} is not set here: {who}")
        last = check_options(mapping(over, "set"), "quick: set") if quick else {}
        spec = {**spec, **{k: v for k, v in over.items() if k not in ("set", "keep")}} if quick else spec
        name = str(spec.get("name") or path.stem) + ("-quick" if quick else "")
        check_name("name", name)
        asks = spec.get("asks")
        if not isinstance(asks, str) or not asks.strip():
            raise UserError("asks: one sentence that says what the study asks is expected")
        cells = make_cells(spec, check_options(mapping(spec, "set"), "set"), last)
        stated = {str(k): v for k, v in mapping(spec, "stated").items()}
        _check_stated(stated, cells, quick)
        cells = _kept(cells, over.get("keep") if quick else None)
        check_needs({cell.name: cell.needs for cell in cells}, "`keep` of quick leaves it out")
        if not cells:
            raise UserError("it has no cells: an axis or `cells` without a value")
        test = spec.get("test", True)
        if not isinstance(test, bool):
            raise UserError(f"test: true or false is expected, got {test!r}")
        metrics = spec.get("metrics", ["val_accuracy", "test_accuracy"] if test else ["val_accuracy"])
        if not isinstance(metrics, list) or not metrics or not all(isinstance(m, str) for m in metrics):
            raise UserError(f"metrics: a list of a row's figures is expected, got {metrics!r}")
        budget = mapping(spec, "budget")
        only(budget, LIMITS, "budget")
        tuned = _tuned(spec.get("tuned"), cells, quick)
        base = [_file(path, name) for name in as_list(spec.get("base"))]
        for_each = [replace(c, options=_with_files(path, c.options)) for c in cells]
        return cls(
            path, name, " ".join(asks.split()), base, for_each, _seeds(spec.get("seeds", 1)), metrics, stated,
            budget, test, tuned,
        )  # fmt: skip

    def configs(self) -> list[Path]:
        """All config files of all cells, each once."""
        files = [*self.base, *(Path(f) for cell in self.cells for f in cell.options.get("config", []))]
        return list(dict.fromkeys(files))


def _file(study: Path, name: Any) -> Path:
    path = study.parent / str(name)
    if not path.is_file():
        raise UserError(f"there is no config {path} (paths are from the study's own folder)")
    return path


def _with_files(study: Path, options: dict[str, Any]) -> dict[str, Any]:
    if "config" not in options:
        return options
    return {**options, "config": [str(_file(study, name)) for name in options["config"]]}


def _seeds(value: Any) -> list[int]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return list(range(value))
    whole = isinstance(value, list) and value and all(type(s) is int and s >= 0 for s in value)
    if not whole or len(set(value)) < len(value):
        raise UserError(f"seeds: how many, or a list of different whole numbers, is expected, got {value!r}")
    return value


def _kept(cells: list[Cell], keep: Any) -> list[Cell]:
    if keep is None:
        return cells
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1:
        return cells[:keep]
    for name in as_list(keep):
        _known(name, cells, "quick: keep")
    return [cell for cell in cells if cell.name in as_list(keep)]


def _tuned(value: Any, cells: list[Cell], quick: bool) -> dict[str, int]:
    """Cell -> how many configurations were tried for it; empty where the study does not say."""
    for_all = {} if value is None else dict.fromkeys([cell.name for cell in cells], value)
    found = {str(k): v for k, v in value.items()} if isinstance(value, dict) else for_all
    if wrong := [v for v in found.values() if type(v) is not int or v < 1]:
        raise UserError(f"tuned: how many configurations were tried, 1 or more, is expected, got {wrong[0]!r}")
    for name in () if quick else found:  # which may have other cells
        _known(name, cells, "tuned")
    return found


def _check_stated(stated: dict[str, Any], cells: list[Cell], quick: bool) -> None:
    for name, values in stated.items():
        numbers = isinstance(values, dict) and all(type(v) in (int, float) for v in values.values())
        if not numbers:
            raise UserError(f"stated: {name}: figures (metric: number) are expected, got {values!r}")
        if percent := [v for k, v in values.items() if "accuracy" in k and not 0 <= v <= 1]:
            raise UserError(f"stated: {name}: an accuracy is a share of 1, got {percent[0]}")
        if not quick:  # which may have other cells
            _known(name, cells, "stated")


def _known(name: Any, cells: list[Cell], where: str) -> None:
    names = [cell.name for cell in cells]
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4) or names[:5]
        raise UserError(f"{where}: no cell is called {name!r}; nearest: {', '.join(near)}")
