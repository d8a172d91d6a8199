"""How far a study is, and how long it still takes: from what its runs have taken so far."""

import csv
from collections.abc import Iterable
from statistics import mean

from smallnets.studies.plan import Plan, Run
from smallnets.studies.state import State, read_record

_LIGHTNING_EPOCHS = 100  # `fit` without trainer.max_epochs


def seconds_left(
    plan: Plan,
    runs: dict[str, Run],
    states: dict[str, State],
    took: dict[str, float],
    running: dict[str, float],
    slots: int,
) -> float | None:
    """Seconds until all runs are done in so many slots; None as long as nothing tells.

    A run takes what the runs of its cell took, else what all took, else what the running ones will at their speed.

    Args:
        plan: the study's plan.
        runs: its runs by name.
        states: run's name -> where it stands.
        took: run's name -> seconds that it took, of those that are done.
        running: run's name -> seconds since it was started, of those that are at work.
        slots: how many runs work at once.
    """
    of_cells: dict[str, list[float]] = {}
    for name, seconds in took.items():
        of_cells.setdefault(runs[name].cell.digest, []).append(seconds)
    means = {digest: mean(values) for digest, values in of_cells.items()}
    if means:
        usual = mean(means.values())
    else:
        known = [s / part for name, s in running.items() if (part := trained_share(plan, runs[name])) > 0]
        if not known:
            return None
        usual = mean(known)
    left = [
        max(0.0, means.get(runs[name].cell.digest, usual) - running.get(name, 0.0))
        for name, state in states.items()
        if state not in (State.DONE, State.FAILED)
    ]
    return max(sum(left) / slots, max(left, default=0.0))


def seconds_taken(plan: Plan, run: Run) -> float | None:
    """Seconds that a run worked, over all its starts; None where it was not this study that started it."""
    seconds = read_record(plan, run).get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else None


def trained_share(plan: Plan, run: Run) -> float:
    """How much of its epochs a run has behind it, by its `metrics.csv`; 0 where that cannot be told."""
    epochs = run.cell.settings.get("trainer", {}).get("max_epochs", _LIGHTNING_EPOCHS)
    try:
        with (plan.run_folder(run).path / "metrics.csv").open(newline="") as file:
            done = max((int(float(row["epoch"])) + 1 for row in csv.DictReader(file) if row.get("epoch")), default=0)
    except (OSError, ValueError):
        return 0.0
    return min(1.0, done / epochs) if isinstance(epochs, int) and epochs > 0 else 0.0


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def counts(states: Iterable[State], running: int) -> str:
    """`5 done, 2 running, 1 half-done, 1 failed, 3 to do`, without what there is none of."""
    found = list(states)
    half = found.count(State.BEGUN) + found.count(State.TRAINED)
    parts = [
        (found.count(State.DONE), "done"), (running, "running"), (half, "half-done"),
        (found.count(State.FAILED), "failed"), (found.count(State.NEW), "to do"),
    ]  # fmt: skip
    return ", ".join(f"{n} {what}" for n, what in parts if n) or "nothing to do"
