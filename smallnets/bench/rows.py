"""`Row`: two times and their ratio, with the bar that it was to reach."""

from dataclasses import dataclass, replace
from operator import eq, ge, le
from typing import Any, Literal


@dataclass(frozen=True)
class Bar:
    """What a figure was to be at most (`<=`), at least (`>=`) or exactly (`==`)."""

    figure: str
    value: float
    relation: Literal["<=", ">=", "=="]
    limit: float

    @property
    def met(self) -> bool:
        """Whether it is, in this run."""
        return {"<=": le, ">=": ge, "==": eq}[self.relation](self.value, self.limit)

    def plain(self) -> dict[str, Any]:
        """As plain data, with `met`."""
        return {
            "figure": self.figure,
            "value": self.value,
            "relation": self.relation,
            "limit": self.limit,
            "met": self.met,
        }


@dataclass(frozen=True)
class Row:
    """A and B, measured by turns.

    Attributes:
        name: of what is measured.
        a, b: what the two sides are.
        median_a_seconds, median_b_seconds: over the rounds; None where operations are counted and nothing is timed.
        ratio: A : B, the median of the rounds' own ratios, which may differ a little from the ratio of the medians:
            the two sides of a round are neighbours in time.
        ratio_low, ratio_high: quartiles of the rounds' ratios; the wider apart, the less the ratio says.
        rounds: how often each side was timed.
        note: of what the seconds are.
        bar: what was to be reached; None where nothing was.
    """

    name: str
    a: str
    b: str
    median_a_seconds: float | None
    median_b_seconds: float | None
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    note: str
    bar: Bar | None = None

    def with_bar(
        self, relation: Literal["<=", ">=", "=="], limit: float, figure: str = "ratio", value: float | None = None
    ) -> "Row":
        """This row with a bar, on its ratio unless a figure and its value are given."""
        return replace(self, bar=Bar(figure, self.ratio if value is None else value, relation, limit))

    def plain(self) -> dict[str, Any]:
        """As plain data; `bar` is there where there is one."""
        row = {k: v for k, v in self.__dict__.items() if k != "bar"}
        return row if self.bar is None else {**row, "bar": self.bar.plain()}


def with_rate(row: Row, size: int, expected: int | None = None) -> Row:
    """The row with both sides' images a second in its note, where a time is that of `size` images.

    `expected` is how many of ours an H200-class GPU is expected to do: it is named, and no bar.
    """
    rates = [
        f"{side} {size / seconds:,.0f}"
        for side, seconds in ((row.a, row.median_a_seconds), (row.b, row.median_b_seconds))
        if seconds
    ]
    hope = "" if expected is None else f"; expected on an H200-class GPU: {expected:,}"
    return replace(row, note=f"{row.note}; images/s: {', '.join(rates)}{hope}")
