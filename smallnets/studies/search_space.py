"""`Search`: what a search's YAML file says, read and checked; its space, and the options of `fit` that are drawn."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallnets import __version__
from smallnets.errors import UserError
from smallnets.results.run import check_name
from smallnets.studies.cells import check_options, label
from smallnets.studies.search_methods import grid_size, read_pruner, read_sampler
from smallnets.studies.spec_file import LIMITS, as_list, mapping, only, quick_part, read_spec

KEYS = (
    "name", "asks", "base", "set", "space", "objectives", "budget", "sampler", "pruner", "seed", "trials", "confirm",
    "quick",
)  # fmt: skip
QUICK_KEYS = ("set", "trials", "confirm")
_RANGE, _CHOICE = ("low", "high", "log", "step", "when"), ("choices", "when")


@dataclass(frozen=True)
class Dimension:
    """One thing that a search chooses.

    Attributes:
        name: an option of `fit`, or a name whose choices are sets of options.
        choices: what a choice is called -> the options that it sets; empty for a range.
        low, high, log, step: of a range, both ends included.
        whole: whether a range is one of whole numbers.
        when: earlier dimension or option -> the values (or their names) with which this one is chosen at all.
    """

    name: str
    choices: dict[str, dict[str, Any]]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    when: dict[str, list[str]] | None = None


Suggest = Callable[[Dimension], Any]


@dataclass(frozen=True)
class Search:
    """A space of configurations, and what is sought in it.

    The file's keys: `name`; `asks`, one sentence; `base`, config files, from the search file's folder; `set`, options
    of `fit` for all trials; `space: {option: {low, high, log, step} | {choices: [...]}}`, each with `when: {earlier
    option: value or values}` if it is chosen under a condition; a choice may be a name with the options that it sets;
    `objectives: {figure of the row: max or min}`, by default `val_accuracy: max`; `budget`, limits that a network must
    keep to be trained; `sampler`, `tpe`, `random`, `nsga2` or `grid`; `pruner`, `median`, `hyperband` or null, or one
    with the arguments of Optuna's class; `seed` of sampler and training; `trials`, how many there are to be; `confirm:
    {set, seeds}`, how the best is trained anew; `quick`, what `--quick` puts in the place of these.
    """

    file: Path
    name: str
    asks: str
    base: list[Path]
    fixed: dict[str, Any]
    space: list[Dimension]
    objectives: dict[str, str]
    budget: dict[str, Any]
    sampler: tuple[str, dict[str, Any]]
    pruner: dict[str, dict[str, Any]]
    seed: int
    trials: int
    confirm: dict[str, Any]
    source: str

    @classmethod
    def read(cls, file: str | Path, quick: bool = False) -> "Search":
        """The search in a file; its quick form is a search of its own, called `<name>-quick`.

        Raises:
            UserError: the file is missing, is not YAML, or says something that a search cannot be made of.
        """
        return read_spec(file, "search", lambda path, spec: cls._made(path, spec, quick))

    @classmethod
    def _made(cls, path: Path, spec: dict[str, Any], quick: bool) -> "Search":
        only(spec, KEYS, "a search")
        over = quick_part(spec, QUICK_KEYS, quick)
        fixed = check_options(mapping(spec, "set"), "set")
        if quick:
            fixed |= check_options(mapping(over, "set"), "quick: set")
            spec = {**spec, **{k: v for k, v in over.items() if k != "set"}}
        if "config" in fixed:
            raise UserError("set: config is not set here: base says it")
        name = str(spec.get("name") or path.stem) + ("-quick" if quick else "")
        check_name("name", name)
        asks = spec.get("asks")
        if not isinstance(asks, str) or not asks.strip():
            raise UserError("asks: one sentence that says what the search asks is expected")
        space = _space(mapping(spec, "space"), fixed)
        objectives = mapping(spec, "objectives") or {"val_accuracy": "max"}
        for metric, direction in objectives.items():
            if str(metric).startswith("test_"):
                raise UserError(f"objectives: {metric}: the test set is not searched on")
            if direction not in ("max", "min"):
                raise UserError(f"objectives: {metric}: max or min is expected, got {direction!r}")
        sampler = read_sampler(spec.get("sampler", "tpe"), space, len(objectives))
        pruner = read_pruner(spec.get("pruner"), len(objectives))
        budget = mapping(spec, "budget")
        only(budget, LIMITS, "budget")
        confirm = mapping(spec, "confirm")
        only(confirm, ("set", "seeds"), "confirm")
        check_options(mapping(confirm, "set"), "confirm: set")
        base = [path.parent / str(each) for each in as_list(spec.get("base"))]
        if missing := [each for each in base if not each.is_file()]:
            raise UserError(f"there is no config {missing[0]} (paths are from the search's own folder)")
        # What the trials are made by: a storage holds trials of one such text.
        texts = [__version__, json.dumps([spec.get(k) for k in KEYS[2:10]] + [fixed], sort_keys=True, default=str)]
        source = hashlib.sha256("\0".join([*texts, *(each.read_text() for each in base)]).encode()).hexdigest()[:16]
        return cls(
            path, name, " ".join(asks.split()), base, fixed, space, objectives, budget, sampler, pruner,
            _count(spec, "seed", 0, 0), _count(spec, "trials", 20, 1), confirm, source,
        )  # fmt: skip

    def at_most(self, trials: int) -> int:
        """So many trials, or as many as a grid has combinations, if these are fewer."""
        return min(trials, grid_size(self.space)) if self.sampler[0] == "grid" else trials

    def draw(self, suggest: Suggest) -> dict[str, Any]:
        """The options of a trial, each dimension that its conditions allow chosen by `suggest`, in the file's order."""
        options, known = dict(self.fixed), {k: label(v) for k, v in self.fixed.items()}
        for dimension in self.space:
            if any(known.get(k) not in allowed for k, allowed in (dimension.when or {}).items()):
                continue
            value = suggest(dimension)
            known[dimension.name] = label(value)
            options |= dimension.choices[value] if dimension.choices else {dimension.name: value}
        return options

    def arguments(self, options: dict[str, Any]) -> list[str]:
        """The arguments of `fit` for such options: a class before its arguments."""
        ordered = sorted(options.items(), key=lambda item: item[0].count("."))
        texts = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in ordered]
        return [word for file in self.base for word in ("--config", str(file))] + texts


def _space(spec: dict[str, Any], fixed: dict[str, Any]) -> list[Dimension]:
    if not spec:
        raise UserError("space: options of fit with their ranges or choices are expected")
    found: list[Dimension] = []
    for name, what in spec.items():
        if not isinstance(what, dict):
            raise UserError(f"space: {name}: {{low, high}} or {{choices: [...]}} is expected, got {what!r}")
        dimension = _choices(name, what) if "choices" in what else _range(name, what)
        for earlier, allowed in (dimension.when or {}).items():
            before = next((each for each in found if each.name == earlier), None)
            if before is None and earlier not in fixed:
                raise UserError(f"space: {name}: when: {earlier} is not chosen before it")
            if before and before.choices and (wrong := [a for a in allowed if a not in before.choices]):
                raise UserError(f"space: {name}: when: {earlier} has no {wrong[0]!r}; {', '.join(before.choices)}")
        found.append(dimension)
    return found


def _when(name: str, what: dict[str, Any]) -> dict[str, list[str]] | None:
    when = what.get("when")
    if when is not None and (not isinstance(when, dict) or not when):
        raise UserError(f"space: {name}: when: earlier options with their values are expected, got {when!r}")
    return {k: [label(v) for v in as_list(values)] for k, values in when.items()} if when else None


def _choices(name: str, what: dict[str, Any]) -> Dimension:
    only(what, _CHOICE, f"space: {name}")
    given = what["choices"]
    if isinstance(given, dict):
        sets = {label(k): v if isinstance(v, dict) and "class_path" not in v else {name: v} for k, v in given.items()}
    else:
        values = as_list(given)
        sets = {label(value): {name: value} for value in values}
        if len(sets) < len(values):
            raise UserError(f"space: {name}: two choices have one name: give them names, as in {{name: value}}")
    if not sets:
        raise UserError(f"space: {name}: choices: at least one value is expected")
    return Dimension(
        name, {k: check_options(v, f"space: {name}: {k}") for k, v in sets.items()}, when=_when(name, what)
    )


def _range(name: str, what: dict[str, Any]) -> Dimension:
    only(what, _RANGE, f"space: {name}")
    check_options({name: 0}, "space")
    low, high = _number(name, what, "low"), _number(name, what, "high")
    step = _number(name, what, "step") if what.get("step") is not None else None
    log = what.get("log", False)
    whole = all(isinstance(what.get(k), (int, type(None))) for k in ("low", "high", "step"))
    if log not in (True, False):
        raise UserError(f"space: {name}: log: true or false is expected, got {log!r}")
    if not low <= high or (log and low <= 0) or (step is not None and (step <= 0 or log)):
        raise UserError(
            f"space: {name}: low <= high, above 0 with log, and a step above 0 without log are expected, got {what}"
        )
    return Dimension(name, {}, low, high, log, step, whole, _when(name, what))


def _number(name: str, what: dict[str, Any], key: str) -> float:
    try:
        value = float(what[key])  # YAML takes 1e-4 for a text
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"space: {name}: {key}: a number is expected, got {what.get(key)!r}") from error
    if not math.isfinite(value):
        raise UserError(f"space: {name}: {key}: a finite number is expected, got {value}")
    return value


def _count(spec: dict[str, Any], key: str, default: int, least: int) -> int:
    value = spec.get(key, default)
    if type(value) is not int or value < least:
        raise UserError(f"{key}: a whole number of at least {least} is expected, got {value!r}")
    return int(value)
