"""From axes, zipped groups and named cells to the cells of a grid: each a name and its options of `fit`."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from smallnets.errors import UserError
from smallnets.studies.needs import check_needs, check_places

# Options whose values are names of their own: `resnet20` says enough without `net=`.
_NAMED = ("model.net", "model.optimizer", "model.scheduler", "data")
# What the study itself says of each run.
_OURS = {
    "name": "name", "run": "the study", "seed_everything": "seeds", "ckpt_path": "the study",
    "trainer.default_root_dir": "--folder",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One configuration of a study.

    Attributes:
        name: what tables and folders call it.
        axes: for each axis the value here: a number, or the value's name.
        options: option of `fit` -> value, in the order of the command line; `config` holds files. `{name}` in a value
            stands for the folder of a run that is needed.
        needs: name in braces -> the cell whose run of the same seed is made first.
    """

    name: str
    axes: dict[str, Any]
    options: dict[str, Any]
    needs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Level:
    """One value of an axis: what it is called, what a table shows in which column, what it sets."""

    label: str
    axes: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


def make_cells(spec: dict[str, Any], first: dict[str, Any], last: dict[str, Any]) -> list[Cell]:
    """The cells of a study: its named `cells`, `axes` and `zip` groups, all crossed, in the file's order.

    An axis is `option: [value, ...]`, `option: {name: value, ...}`, or `name: {value's name: {option: value, ...}}`. A
    zip group is `{option: [...], option: [...]}` of equally long lists that are walked in step.

    A named set of options may have `needs`, names of its axis or of cells: the run of the cell that has that name here,
    and else is the same, comes first, and `{name}` in a value stands for its folder.

    Args:
        spec: the study as read; `cells`, `axes` and `zip` are looked at.
        first: options of all cells, which a cell may override.
        last: options of all cells that override the cell's.

    Raises:
        UserError: an axis without values, lists of unequal lengths, an option in two axes, two cells of one name, a
            need that is no cell or goes in a circle.
    """
    named, axes, groups = spec.get("cells") or {}, spec.get("axes") or {}, spec.get("zip") or []
    groups = [groups] if isinstance(groups, dict) else groups
    for key, value in (("cells", named), ("axes", axes)):
        if not isinstance(value, dict):
            raise UserError(f"{key}: a mapping is expected, got {type(value).__name__}")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise UserError(
            f"zip: a mapping from options to lists of values, or a list of such, is expected, got {groups!r}"
        )
    for option in [*axes, *(k for group in groups for k in group)]:
        if not isinstance(option, str) or option == "needs":
            raise UserError(f"axes: {option!r} is no option of fit")
    options = [k for k in axes if not _is_named_axis(axes[k])] + [k for group in groups for k in group]
    short = short_names(options)
    levels = [_sets_of_options("cells", named)] if named else []
    for key, values in axes.items():
        levels.append(_sets_of_options(key, values) if _is_named_axis(values) else _axis(key, values, short))
    levels += [_zipped(group, short) for group in groups]
    cells = [_cell(combination, levels, first, last) for combination in product(*levels)]
    if repeated := _first_repeated(cell.name for cell in cells):
        raise UserError(f"two cells are called {repeated!r}: give the values names, as in `axis: {{name: value}}`")
    check_needs({cell.name: cell.needs for cell in cells})
    names = {cell.name for cell in cells} | {each.label for level in levels for each in level}
    for cell in cells:
        check_places(cell.name, cell.options, cell.needs, names)
    return cells


def _cell(
    levels: tuple[_Level, ...], all_levels: Sequence[Sequence[_Level]], first: dict[str, Any], last: dict[str, Any]
) -> Cell:
    chosen: dict[str, Any] = {}
    for level in levels:
        if clash := set(chosen) & set(level.options) - {"config", "needs"}:
            raise UserError(f"{min(clash)} is set by two axes: put what belongs together into one `zip` group")
        configs = [*chosen.get("config", []), *level.options.get("config", [])]
        chosen |= {k: v for k, v in level.options.items() if k != "needs"}
        if configs:
            chosen["config"] = configs
    axes = {k: v for level in levels for k, v in level.axes.items()}
    # A class before its arguments, whatever the order of the axes.
    options = dict(sorted({**first, **chosen, **last}.items(), key=lambda item: item[0].count(".")))
    return Cell(",".join(level.label for level in levels) or "base", axes, options, _needs(levels, all_levels))


def _needs(levels: tuple[_Level, ...], all_levels: Sequence[Sequence[_Level]]) -> dict[str, str]:
    """Name in braces -> cell: the same but for the axis that says it, where the axis has the name."""
    found = {}
    for place, level in enumerate(levels):
        labels = [each.label for each in levels]
        for name in level.options.get("needs", []):
            labels[place] = _clean(name)
            of_the_axis = labels[place] in [each.label for each in all_levels[place]]
            found[name] = ",".join(labels) if of_the_axis else name
    return found


def _is_named_axis(values: Any) -> bool:
    """Whether the values of an axis are sets of options, each with a name."""
    sets = list(values.values()) if isinstance(values, dict) else []
    return bool(sets) and all(isinstance(s, dict) and "class_path" not in s for s in sets)


def _sets_of_options(axis: str, values: dict[str, Any]) -> list[_Level]:
    levels = []
    for name, options in values.items():
        if not isinstance(options, (dict, type(None))):
            raise UserError(f"{axis}: {name}: options of fit (a mapping) are expected, got {options!r}")
        levels.append(_Level(_clean(str(name)), {axis: str(name)}, check_options(options or {}, f"{axis}: {name}")))
    return levels


def _axis(option: str, values: Any, short: dict[str, str]) -> list[_Level]:
    if isinstance(values, dict) and values and "class_path" not in values:
        return [
            _Level(_clean(str(name)), {short[option]: str(name)}, check_options({option: value}, f"axes: {option}"))
            for name, value in values.items()
        ]
    if not isinstance(values, list) or not values:
        raise UserError(f"axes: {option}: a list of values is expected, got {values!r}")
    return _zipped({option: values}, short)


def _zipped(group: dict[str, Any], short: dict[str, str]) -> list[_Level]:
    if not group or not all(isinstance(v, list) and v for v in group.values()):
        raise UserError(f"zip: a mapping from options to lists of values is expected, got {group!r}")
    lengths = {option: len(values) for option, values in group.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"zip: lists of equal lengths are expected, got {', '.join(f'{k}: {n}' for k, n in lengths.items())}"
        )
    levels = []
    for values in zip(*group.values(), strict=True):
        pairs = dict(zip(group, values, strict=True))
        labels = [
            name if k in _NAMED else f"{short[k]}={name}" for k, name in ((k, label(v)) for k, v in pairs.items())
        ]
        shown = {short[k]: _shown(v) for k, v in pairs.items()}
        levels.append(_Level(",".join(labels), shown, check_options(pairs, "axes")))
    if repeated := _first_repeated(level.label for level in levels):
        example = f"{next(iter(group))}: {{name: value, ...}}"
        raise UserError(f"two values of an axis are both called {repeated!r}: give them names, as in `{example}`")
    return levels


def check_options(options: dict[str, Any], where: str) -> dict[str, Any]:
    """Options with classes taken apart (`{class_path: SGD, init_args: {lr: 1}}` is two options), `config` a list.

    Raises:
        UserError: an option that is the study's own to set, or no option's name.
    """
    flat: dict[str, Any] = {}
    for option, value in options.items():
        if not isinstance(option, str):
            raise UserError(f"{where}: {option!r} is no option of fit")
        if option in _OURS:
            raise UserError(f"{where}: {option} is not set here: {_OURS[option]} says it")
        if option == "needs":
            flat[option] = [value] if isinstance(value, str) else value
            if not isinstance(flat[option], list) or not all(isinstance(name, str) for name in flat[option]):
                raise UserError(f"{where}: needs: a cell's name, or a list of such, is expected, got {value!r}")
        elif option == "config":
            flat[option] = [value] if isinstance(value, str) else value
        elif isinstance(value, dict) and "class_path" in value:
            flat[option] = value["class_path"]
            flat |= {f"{option}.{k}": v for k, v in (value.get("init_args") or {}).items()}
        else:
            flat[option] = value
    return flat


def short_names(options: list[str]) -> dict[str, str]:
    """Option -> the shortest end of its dotted name that no other of the options ends with: `lr`, `data.name`."""
    found = {}
    for option in options:
        parts = option.rstrip("+").split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [o.rstrip("+") for o in options if o != option]
        found[option] = next((e for e in ends if not any(f".{o}".endswith(f".{e}") for o in others)), option)
    return found


def label(value: Any) -> str:
    """What a value is called in a folder's name: `0.1`, `SGD`, `crop-flip`."""
    if isinstance(value, dict):
        value = value.get("class_path", "-".join(f"{k}={label(v)}" for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return "-".join(map(label, value)) or "none"
    if isinstance(value, str):
        return _clean(value.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value) else value)
    return _clean(json.dumps(value))


def _shown(value: Any) -> Any:
    """A number as a number (YAML takes 1e-4 for a text), anything else by its name."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return label(value)
    return value if isinstance(value, (bool, int, float)) else label(value)


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+=,-]+", "-", text).strip("-.") or "none"


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
