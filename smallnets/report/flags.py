"""What a reader must know of a cell before its mean is compared with another's."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from smallnets.report.collect import Cell, differing

# Of a set whose size a row does not hold (validation, in rows of earlier versions).
_IMAGES = 1000
_SHOWN = 4


def flags(cell: Cell, baseline: Cell | None, metric: str, limits: Mapping[str, int] | None = None) -> list[str]:
    """Short sentences, none for a cell without reproach.

    - `over budget`: a count of a run above its limit, or why the study left the cell out.
    - `diverged`, `failed`: runs that ended with an error; they are in no mean.
    - `at chance`: an accuracy up to five standard deviations above 1 / classes, on as many images as it was measured
      on, or 1,000 where that is not known.
    - `differs`: settings other than the baseline's, save those that the study's axes name and those that belong to
      another class.
    - `epochs`: other than the baseline's, or not the same in all runs.
    - `test set read n times`, for a figure of the test set.

    Args:
        cell: of the results.
        baseline: the cell that it is compared with; None for nothing to compare.
        metric: the figure that is shown.
        limits: count -> the most that is allowed.
    """
    found = [f"over budget: {cell.excluded}"] if cell.excluded else []
    found += _over(cell, limits or {}) + _failed(cell) + _at_chance(cell, metric)
    if metric.startswith("test"):
        found += [
            f"test set read {n} times" for n in sorted({row.get("test_reads") or 0 for row in cell.rows}) if n > 1
        ]
    if not cell.rows:
        return found
    epochs = sorted({row["epochs"] for row in cell.rows if row.get("epochs") is not None})
    if len(epochs) > 1:
        found.append(f"epochs {', '.join(map(str, epochs))}")
    if baseline is None or baseline is cell or not baseline.rows:
        return found
    other = sorted({row["epochs"] for row in baseline.rows if row.get("epochs") is not None})
    if other and epochs and other != epochs and len(epochs) == 1:
        found.append(f"epochs {epochs[0]} (baseline {', '.join(map(str, other))})")
    names = beyond_axes(cell, baseline)
    if names:
        shown = ", ".join(_change(name, cell.settings, baseline.settings) for name in names[:_SHOWN])
        found.append(f"differs: {shown}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}")
    return found


def unequal_tuning(cells: Iterable[Cell]) -> dict[str, str]:
    """Cell -> one sentence, where the cells' settings were not all chosen from as many tried configurations.

    A cell of which the study does not say it is told too, where another's is known.
    """
    tried = {cell.name: cell.tuned for cell in cells}
    known = sorted({n for n in tried.values() if n is not None})
    if len(set(tried.values())) < 2:
        return {}
    least = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
    return {
        name: f"unequal tuning effort: {'not known how many' if n is None else n} tried (cells: {least})"
        for name, n in tried.items()
    }


def measured_on(row: Mapping[str, Any], metric: str) -> int | None:
    """How many images an accuracy of a row was measured on; None where it does not say."""
    part = metric.partition("_")[0]
    return row.get(f"{part}_size") if part in ("val", "test") else None


def resolution(rows: Iterable[Mapping[str, Any]], metric: str) -> str | None:
    """One sentence: the smallest difference that an accuracy of these rows can have; None where it is not known."""
    sizes = sorted({size for row in rows if (size := measured_on(row, metric))})
    if "accuracy" not in metric or not sizes:
        return None
    part = "validation" if metric.startswith("val") else "test"
    told = " or ".join(f"{size:,} {part} images, one is {100 / size:.2g} points" for size in sizes)
    return f"Resolution: {told}."


def beyond_axes(cell: Cell, baseline: Cell) -> list[str]:
    """Names of the settings in which two cells differ, though no axis of the study says so."""
    mine, theirs = cell.settings, baseline.settings
    axes = {*cell.axes, *baseline.axes}
    found = []
    for name in differing([mine, theirs]):
        parent = name.rpartition(".")[0]
        of_a_class = (name not in mine or name not in theirs) and mine.get(parent) != theirs.get(parent)
        if not of_a_class and not any(name == axis or name.endswith(f".{axis}") for axis in axes):
            found.append(name)
    return found


def _change(name: str, mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    values = [str(each.get(name, "none")) for each in (mine, theirs)]
    return name if max(map(len, values)) > 30 else f"{name} {values[0]} (baseline {values[1]})"


def _over(cell: Cell, limits: Mapping[str, int]) -> list[str]:
    found = {}
    for name, limit in limits.items():
        most = max((row[name] for row in cell.rows if row.get(name) is not None), default=0)
        if most > limit:
            found[name] = f"over budget: {name} {most:,} > limit {limit:,}"
    return list(found.values())


def _failed(cell: Cell) -> list[str]:
    found = []
    for row in cell.failed:
        error = (str(row.get("error") or "no error is known").splitlines() or [""])[-1]
        word = "diverged" if any(sign in error.lower() for sign in ("nan", "inf ", "infinite")) else "failed"
        found.append(f"{word}: seed {row.get('seed')} ({error[:80]})")
    return found


def _at_chance(cell: Cell, metric: str) -> list[str]:
    if not metric.endswith("accuracy") and not metric.endswith("accuracy_last"):
        return []
    found = []
    for row in cell.rows:
        value, classes = row.get(metric), row.get("num_classes")
        if value is None or not classes:
            continue
        images = measured_on(row, metric) or _IMAGES
        share = 1 / classes
        if value <= share + 5 * math.sqrt(share * (1 - share) / images):
            found.append(f"seed {row['seed']} ({value:.4f} of 1/{classes})")
    return [f"at chance: {', '.join(found)}"] if found else []
