"""Whether a learning-rate schedule fits the run it is used in."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

from smallnets.optim.schedules import LinearWarmup, planned_rates

# A rise, or a fall not yet made, under 1 % of the highest rate is of no consequence.
_NEGLIGIBLE = 0.01
_FROZEN = 1e-3
Schedule = LRScheduler | ReduceLROnPlateau


@dataclass(frozen=True)
class Length:
    """How long a run is: `epochs` of them, `steps` optimizer steps in all."""

    epochs: int
    steps: int

    def of(self, interval: Literal["epoch", "step"]) -> int:
        return self.epochs if interval == "epoch" else self.steps


def plan_findings(
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    make_schedule: Callable[[Optimizer], Schedule | None],
    interval: Literal["epoch", "step"],
    run: Length,
) -> tuple[list[tuple[str, str]], float]:
    """What is wrong with a schedule in a run, as (kind, sentence) pairs, and the highest rate that the run uses.

    Kinds: `schedule_beyond_run` (milestones never reached, or an end beyond the run that leaves over 1 % of the
    highest rate unchanged), `schedule_climbs` (falls and then rises by over 1 %; schedules that are cyclic by design
    are exempt), `schedule_frozen` (at most 1e-3 of the highest rate for more than half of the run),
    `schedule_ends_early` (LinearLR or PolynomialLR constant for the last tenth or more; the last milestone within the
    first twentieth). These are document 000's milestones, document 004's cosine and StepLR, and document 003's
    schedule counted in batches.

    Raises:
        RunError: the schedule refuses to be stepped as often as the run is long (OneCycleLR).
    """
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(optimizer)
    length = run.of(interval)
    if schedule is None or isinstance(schedule, ReduceLROnPlateau) or length < 1:
        return [], float(optimizer.param_groups[0]["lr"])
    horizon = _horizon(schedule)
    # Past ten times the run nothing needs replaying: such an end is out of reach whatever the rates are.
    replayed = max(length, min(horizon or 0, 10 * length)) + 1
    if isinstance(schedule, OneCycleLR) and horizon is not None and horizon < length:
        replayed = length + 1  # raises
    rates = planned_rates(make_optimizer, make_schedule, replayed)
    used = rates[:length]
    peak = max(used)
    subject = (
        f"{describe(schedule)} is stepped once per {interval} and the run has {length} {interval}{'s' * (length != 1)}"
    )
    found: list[tuple[str, str]] = []

    def add(kind: str, sentence: str) -> None:
        found.append((kind, f"{subject}: {sentence}{_hint(horizon, interval, run)}"))

    main, offset = _unwrap(schedule)
    if isinstance(main, MultiStepLR):
        missed = sorted({m for m in main.milestones.elements() if m + offset >= length})
        if missed:
            plural = "s" if len(missed) > 1 else ""
            verb = "are" if plural else "is"
            add("schedule_beyond_run", f"milestone{plural} {', '.join(map(str, missed))} {verb} never reached")
    elif isinstance(main, StepLR):
        if horizon is not None and horizon >= length:
            add("schedule_beyond_run", f"the rate never falls; the first fall would be at {horizon}")
    elif horizon is not None and horizon > length:
        left = abs(rates[min(horizon, len(rates) - 1)] - rates[length])
        if horizon > 10 * length or left > _NEGLIGIBLE * max(rates):
            add("schedule_beyond_run", f"it ends at {horizon}, beyond the run, whose last rate is {used[-1]:.3g}")
    trough = _climb(used, _NEGLIGIBLE * peak)
    if trough is not None and not any(isinstance(s, CyclicLR | CosineAnnealingWarmRestarts) for s in _parts(schedule)):
        add("schedule_climbs", f"the rate climbs back, from {trough[0]:.3g} to {trough[1]:.3g} of at most {peak:.3g}")
    low = [rate <= _FROZEN * peak * (1 + 1e-9) for rate in used]
    if peak > 0 and 2 * sum(low) > length:
        add(
            "schedule_frozen",
            f"the rate is at most 1e-3 of its highest ({peak:g}) for {sum(low)} of them, first at {low.index(True)}",
        )
    if horizon is not None and _ends_early(main, horizon, length):
        add("schedule_ends_early", f"it ends at {horizon} and the rate stays at {used[-1]:.3g} to the end")
    return found, peak


def describe(schedule: Schedule) -> str:
    """The class and its plain numbers: `CosineAnnealingLR(T_max=200, eta_min=0)`."""
    if isinstance(schedule, LinearWarmup):
        main = f", then {describe(schedule.main)}" if schedule.main is not None else ""
        return f"warmup {schedule.warmup}{main}"
    names = [n for n in inspect.signature(type(schedule).__init__).parameters if n != "last_epoch"]
    values: dict[str, Any] = {name: getattr(schedule, name) for name in names if hasattr(schedule, name)}
    if isinstance(schedule, CyclicLR):
        up = schedule.total_size * schedule.step_ratio
        values = {"base_lr": schedule.base_lrs[0], "max_lr": schedule.max_lrs[0], "step_size_up": up, **values}
    shown = [f"{name}={text}" for name, value in values.items() if (text := _number(value)) is not None]
    return f"{type(schedule).__name__}({', '.join(shown)})"


def _number(value: Any) -> str | None:
    if isinstance(value, Counter):
        return str(sorted(value.elements()))
    if isinstance(value, bool | str):
        return repr(value)
    return f"{value:.6g}" if isinstance(value, int | float) else None


def _unwrap(schedule: LRScheduler) -> tuple[LRScheduler | None, int]:
    """The schedule behind a warm-up, and the warm-up's length."""
    return (schedule.main, schedule.warmup) if isinstance(schedule, LinearWarmup) else (schedule, 0)


def _parts(schedule: Any) -> Iterator[Any]:
    yield schedule
    inner = [schedule.main] if isinstance(schedule, LinearWarmup) else getattr(schedule, "_schedulers", [])
    for part in inner:
        yield from _parts(part)


def _horizon(schedule: LRScheduler) -> int | None:
    """The scheduler step at which the schedule has done what its numbers say; None where they say nothing."""
    main, offset = _unwrap(schedule)
    match main:
        case None:
            return offset
        case CosineAnnealingLR():
            end = main.T_max
        case MultiStepLR():
            end = max(main.milestones, default=0)
        case StepLR():
            end = main.step_size
        case OneCycleLR():
            end = main.total_steps
        case CyclicLR():
            end = round(main.total_size)
        case LinearLR() | PolynomialLR() | ConstantLR():
            end = main.total_iters
        case _:
            return None
    return offset + int(end)


def _climb(rates: list[float], tolerance: float) -> tuple[float, float] | None:
    """(lowest rate, highest after it) if the rate falls and then rises again by more than `tolerance`."""
    high, low, top = rates[0], float("inf"), float("-inf")
    best: tuple[float, float] | None = None
    for rate in rates:
        high = max(high, rate)
        if rate < min(low, high - tolerance):
            low, top = rate, rate
        top = max(top, rate)
        if low < float("inf") and top > low + tolerance and (best is None or top - low > best[1] - best[0]):
            best = (low, top)
    return best


def _ends_early(main: LRScheduler | None, horizon: int, length: int) -> bool:
    if isinstance(main, LinearLR | PolynomialLR):
        return horizon < 0.9 * length
    return isinstance(main, MultiStepLR) and 0 < horizon < 0.05 * length


def _hint(horizon: int | None, interval: Literal["epoch", "step"], run: Length) -> str:
    """Numbers in epochs with a schedule that counts steps, or the other way round."""
    if horizon is None or run.steps < 4 * run.epochs:
        return ""
    if interval == "step" and horizon <= 2 * run.epochs:
        return f" (the run has {run.epochs} epochs: should `interval` be epoch?)"
    if interval == "epoch" and horizon >= run.steps / 2:
        return f" (the run has {run.steps} steps: should `interval` be step?)"
    return ""
