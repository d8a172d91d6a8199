"""A budget: limits on what a network may hold and do, checked exactly."""

import re
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from smallnets.errors import RunError, UserError
from smallnets.measure.count import Counts

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_NUMBER = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s*([kmg]?)", re.IGNORECASE)


class BudgetExceeded(RunError):
    """A network is over its budget: which count, which limit, and the largest layers."""


def _limit(name: str, value: Any) -> int:
    """`value` as a whole number: 5000000, "5M", "200k", "1.5M". Raises UserError for anything else."""
    allowed = f"budget {name} must be a whole number of at least 1, such as 5000000, 200k, 1.5M or 1G, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UserError(allowed)
    if isinstance(value, int):
        exact = Decimal(value)
    else:
        match = _NUMBER.fullmatch(str(value).strip())
        if match is None:
            raise UserError(allowed)
        exact = Decimal(match[1]) * SUFFIXES[match[2].upper()]
    if exact < 1 or exact != exact.to_integral_value():
        raise UserError(allowed)
    return int(exact)


@dataclass(frozen=True)
class Budget:
    """Upper limits, at least one of them: all trainable parameters, those not 0, MACs of one image, stored bytes,
    and bytes of activations that one image's inference holds at once (`Counts.activation_bytes`).

    A limit is a whole number or a string with K = 1e3, M = 1e6 or G = 1e9, such as "5M"; it is kept as the number. A
    network exactly at its limit is within it. Raises UserError for a limit that is not such a number, or none at all.

    >>> from smallnets.measure import Budget
    >>> Budget(parameters="1.5M", macs=100).limits()
    {'parameters': 1500000, 'macs': 100}
    """

    parameters: int | str | None = None
    nonzero_parameters: int | str | None = None
    macs: int | str | None = None
    bytes: int | str | None = None
    activation_bytes: int | str | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]
        for name in names:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _limit(name, value))
        if not self.limits():
            raise UserError(f"a budget needs at least one limit of {', '.join(names)}, got none")

    def limits(self) -> dict[str, int]:
        """The limits that are set, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def over(self, counts: Counts) -> dict[str, tuple[int, int]]:
        """(count, limit) for each limit that `counts` exceed, by name."""
        found = {name: (getattr(counts, name), limit) for name, limit in self.limits().items()}
        return {name: pair for name, pair in found.items() if pair[0] > pair[1]}

    def check(self, counts: Counts) -> list[str]:
        """One sentence for each limit that `counts` exceed; none when the network is within its budget."""
        return [f"{name} {have:,} > limit {limit:,}" for name, (have, limit) in self.over(counts).items()]

    def require(self, counts: Counts, name: str) -> None:
        """Raise BudgetExceeded when `counts`, those of the network called `name`, exceed a limit.

        The message gives the counts, the limits, and the three layers that are largest in the first count exceeded
        (in parameters for bytes and activation bytes).
        """
        broken = self.check(counts)
        if not broken:
            return
        first = next(iter(self.over(counts)))
        by = "parameters" if first in ("bytes", "activation_bytes") else first
        layers = counts.largest(3, by=by)
        largest = ", ".join(f"{layer.name or layer.kind} {getattr(layer, by):,}" for layer in layers)
        raise BudgetExceeded(f"{name} is over its budget: {'; '.join(broken)}\nlargest layers by {by}: {largest}")
