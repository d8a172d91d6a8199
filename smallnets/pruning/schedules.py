"""Pruning schedules: the density as a pure function of the training step.

Times are written with their unit: `500it` is 500 optimizer steps, `2ep` two epochs. "At step s" means: after s
optimizer steps have been taken and before the next, so `0it` is before training and the run's length is after it.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from smallnets.errors import UserError

Curve = Literal["linear", "geometric", "cubic"]


@dataclass(frozen=True)
class Time:
    """A place in a run: so many optimizer steps (`it`) or epochs (`ep`) after its start."""

    count: int
    unit: Literal["it", "ep"]

    @classmethod
    def parse(cls, text: str) -> "Time":
        """`500it` or `2ep`; UserError for anything else."""
        found = re.fullmatch(r"(\d+)(it|ep)", text, re.ASCII) if isinstance(text, str) else None
        if found is None:
            raise UserError(f"a time is a whole number with its unit, such as 500it or 2ep, got {text!r}")
        return cls(int(found[1]), "it" if found[2] == "it" else "ep")

    def steps(self, steps_per_epoch: int | None = None) -> int:
        """The optimizer step; UserError for epochs whose length is not given."""
        if self.unit == "it":
            return self.count
        if steps_per_epoch is None or steps_per_epoch < 1:
            raise UserError(f"{self} needs the number of steps of an epoch, got {steps_per_epoch}")
        return self.count * steps_per_epoch

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


@dataclass(frozen=True)
class OneShot:
    """Everything before `at`, `density` from then on; `at` may be 0 (before training) and the run's end (after it).

    Raises UserError for a density outside 0 to 1 or a time that is not one.
    """

    density: float
    at: str = "0it"

    def __post_init__(self) -> None:
        _check_density("density", self.density)
        Time.parse(self.at)

    def density_at(self, step: int, steps_per_epoch: int | None = None) -> float:
        """Share kept after `step` optimizer steps; `steps_per_epoch` is needed if times are in epochs."""
        return self.density if step >= Time.parse(self.at).steps(steps_per_epoch) else 1.0

    def changes(self, steps_per_epoch: int | None = None) -> list[int]:
        """The steps at which the density takes a new value."""
        return [Time.parse(self.at).steps(steps_per_epoch)]

    def check(self, run_steps: int, steps_per_epoch: int | None = None) -> None:
        """UserError if the schedule ends after a run of `run_steps` optimizer steps."""
        _check_end(self.at, run_steps, steps_per_epoch)


@dataclass(frozen=True)
class Ramp:
    """1 before `start`, `initial` there, `final` from `end` on; between them a new value every `every`.

    With x = (time of the latest round - start) / (end - start), exactly `initial` at x = 0 and `final` at x = 1:

    - linear: initial + (final - initial) x
    - geometric: initial (final / initial)^x: each round keeps the same share of what was left
    - cubic: final + (initial - final) (1 - x)^3 (Zhu and Gupta 2017, "To prune, or not to prune")

    Raises:
        UserError: densities outside 0 to 1 or rising, a geometric one that ends at 0, a time that is not one, an `end`
            that is not after `start` (found when used, if one is in steps and one in epochs), or `every` of 0.
    """

    curve: Curve
    final: float
    end: str
    start: str = "0it"
    every: str = "1it"
    initial: float = 1.0

    def __post_init__(self) -> None:
        if self.curve not in get_args(Curve):
            raise UserError(f"curve must be one of {', '.join(get_args(Curve))}, got {self.curve!r}")
        _check_density("final", self.final)
        _check_density("initial", self.initial)
        if self.final > self.initial:
            raise UserError(f"the density must not rise: initial is {self.initial}, final {self.final}")
        if self.curve == "geometric" and self.final == 0:
            raise UserError("a geometric schedule never reaches a final density of 0: take a linear or cubic one")
        start, end, every = Time.parse(self.start), Time.parse(self.end), Time.parse(self.every)
        if every.count == 0:
            raise UserError(f"every must be at least 1it, got {self.every}")
        if start.unit == end.unit or end.count == 0:
            self._check_order(start.count, end.count)

    def density_at(self, step: int, steps_per_epoch: int | None = None) -> float:
        """Share kept after `step` optimizer steps; `steps_per_epoch` is needed if times are in epochs."""
        start, end, every = self._steps(steps_per_epoch)
        if step < start:
            return 1.0
        if step >= end:
            return self.final
        rounds = (step - start) // every
        x = rounds * every / (end - start)
        if x == 0:
            return self.initial
        if self.curve == "linear":
            return self.initial + (self.final - self.initial) * x
        if self.curve == "geometric":
            return self.initial * (self.final / self.initial) ** x
        return self.final + (self.initial - self.final) * (1 - x) ** 3

    def changes(self, steps_per_epoch: int | None = None) -> list[int]:
        """The steps at which the density takes a new value; `start` is among them if `initial` is below 1."""
        start, end, every = self._steps(steps_per_epoch)
        return [*range(start if self.initial < 1 else start + every, end, every), end]

    def check(self, run_steps: int, steps_per_epoch: int | None = None) -> None:
        """UserError if the schedule ends after a run of `run_steps` optimizer steps."""
        self._steps(steps_per_epoch)
        _check_end(self.end, run_steps, steps_per_epoch)

    def _steps(self, steps_per_epoch: int | None) -> tuple[int, int, int]:
        start, end, every = (Time.parse(each).steps(steps_per_epoch) for each in (self.start, self.end, self.every))
        self._check_order(start, end)
        return start, end, every

    def _check_order(self, start: int, end: int) -> None:
        if end <= start:
            raise UserError(f"a schedule must end after its start {self.start}, got end {self.end}")


Schedule = OneShot | Ramp


def one_shot(density: float, at: str = "0it") -> OneShot:
    """Prune once; see `OneShot`."""
    return OneShot(density, at)


def linear(final: float, end: str, start: str = "0it", every: str = "1it", initial: float = 1.0) -> Ramp:
    """The same number of weights every round; see `Ramp`."""
    return Ramp("linear", final, end, start, every, initial)


def geometric(final: float, end: str, start: str = "0it", every: str = "1it", initial: float = 1.0) -> Ramp:
    """The same share of what is left every round; see `Ramp`."""
    return Ramp("geometric", final, end, start, every, initial)


def cubic(final: float, end: str, start: str = "0it", every: str = "1it", initial: float = 1.0) -> Ramp:
    """Fast first, slow at the end (Zhu and Gupta 2017); see `Ramp`."""
    return Ramp("cubic", final, end, start, every, initial)


def schedule_of(
    curve: Literal["one_shot"] | Curve,
    density: float,
    at: str | None = None,
    start: str | None = None,
    end: str | None = None,
    every: str | None = None,
    initial: float = 1.0,
) -> Schedule:
    """A schedule by the name of its curve: `one_shot` takes `at`; the others take `end`, and may take `start` (`0it`),
    `every` (`1ep`) and `initial`.

    Raises UserError for a time that is missing or that the curve does not take, and what `OneShot` and `Ramp` refuse.
    """
    _check_density("density", density)
    if curve == "one_shot":
        if at is None:
            raise UserError("a one_shot schedule needs `at`: 0it is before training, 500it or 2ep later")
        if given := [name for name, time in {"start": start, "end": end, "every": every}.items() if time is not None]:
            raise UserError(f"a one_shot schedule has `at` and no {given[0]}; a linear, geometric or cubic one has")
        if initial != 1:
            raise UserError(f"a one_shot schedule has no initial density, got {initial}")
        return OneShot(density, at)
    if at is not None:
        raise UserError(f"`at` is for one_shot; a {curve} schedule has start and end")
    if end is None:
        raise UserError(f"a {curve} schedule needs `end`: 500it or 2ep")
    return Ramp(curve, density, end, start or "0it", every or "1ep", initial)


def _check_density(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or not 0 <= value <= 1:
        raise UserError(f"{name} must be a density from 0 to 1, the share that is kept, got {value!r}")


def _check_end(end: str, run_steps: int, steps_per_epoch: int | None) -> None:
    last = Time.parse(end).steps(steps_per_epoch)
    if last > run_steps:
        raise UserError(
            f"the pruning schedule ends at {end} (step {last:,}), after the run, which takes {run_steps:,} steps"
        )
