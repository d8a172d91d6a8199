"""`verdict`: what a lottery's runs say of the hypothesis, by a rule that is written down."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from smallnets.errors import UserError
from smallnets.report.densities import together
from smallnets.report.stats import Difference, Summary, difference, summary

DENSE, TICKET, REINITIALISED = "dense", "ticket", "random_reinit"
# Half a point of accuracy.
MARGIN = 0.005
# The hypothesis speaks of 10-20 % of the weights, or less.
MOST_DENSITY = 0.2

Judgement = Literal["matching", "worse", "open"]
Finding = Literal["supported", "refuted", "undecided"]


class Point(NamedTuple):
    """One trained network: `series` is `dense`, `ticket` or a control's name, `density` the share of weights kept.

    `epochs` is how long it was trained, None where that is not known.
    """

    series: str
    seed: int
    density: float
    accuracy: float
    epochs: float | None = None


@dataclass(frozen=True)
class Line:
    """One series at one density: its accuracies, its differences to the dense network, paired by seed, and the rule.

    `ticket_less` is what the ticket of that density is above it, paired by seed; None for ticket and dense network, and
    where no ticket was trained. `epochs` is how long its networks were trained, their mean; None where none says it.
    """

    series: str
    density: float
    accuracy: Summary
    less_dense: Difference | None
    judgement: Judgement
    ticket_less: Difference | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What `verdict` found.

    Attributes:
        finding: of the hypothesis.
        sentence: the finding and why, in one sentence.
        lines: one for each series and density, the dense network first, then by falling density.
        smallest_matching: the smallest density at which the ticket is matching; None for none.
        margin, most_density: what the rule was asked with.
    """

    finding: Finding
    sentence: str
    lines: tuple[Line, ...]
    smallest_matching: float | None
    margin: float
    most_density: float

    def records(self) -> list[dict[str, Any]]:
        """A plain mapping for each line, accuracies as shares of 1."""
        found = []
        for line in self.lines:
            about, less, ticket = line.accuracy, line.less_dense, line.ticket_less
            found.append(
                {
                    "series": line.series,
                    "density": line.density,
                    "n": about.n,
                    "epochs": line.epochs,
                    "mean": about.mean,
                    "sd": about.sd,
                    "low": about.low,
                    "high": about.high,
                    "pairs": less.pairs if less else None,
                    "difference": less.mean if less else None,
                    "difference_low": less.low if less else None,
                    "difference_high": less.high if less else None,
                    "judgement": line.judgement,
                    "ticket_less": ticket.mean if ticket else None,
                    "ticket_less_low": ticket.low if ticket else None,
                    "ticket_less_high": ticket.high if ticket else None,
                }
            )
        return found


def judge(less_dense: Difference | None, margin: float = MARGIN) -> Judgement:
    """The rule for one series at one density, by the 95 % t interval of its differences to dense, paired by seed.

    - `matching`: the interval lies above -margin: the loss is smaller than the margin.
    - `worse`: it lies below -margin.
    - `open`: -margin lies within it, or there are fewer than two pairs and so no interval.
    """
    if less_dense is None or less_dense.low is None or less_dense.high is None:
        return "open"
    if less_dense.low >= -margin:
        return "matching"
    return "worse" if less_dense.high < -margin else "open"


def verdict(
    points: Iterable[Point | Mapping[str, Any]], margin: float = MARGIN, most_density: float = MOST_DENSITY
) -> Verdict:
    """Whether these runs support the lottery ticket hypothesis (Frankle and Carbin 2019).

    The hypothesis: at a density of at most `most_density` there is a ticket that is matching in at most as many
    epochs as the dense network had, and the same ticket with weights drawn anew is not. Rule, at each such density:

        - it *supports*: the ticket is `matching`, in at most the dense epochs, and `random_reinit` is `worse`;
        - it *refutes*: the ticket is `worse`, or both are `matching`;
        - else it leaves the question open: a judgement is `open`, the control was not run, or the ticket that is
          matching was trained for longer.

    `supported` if one density supports it, `refuted` if every one refutes it, `undecided` otherwise, also where no
    ticket was measured at so low a density. The intervals are those of single densities: with k densities the chance
    that some matching ticket is one by luck is up to k times 2.5 %.

    Args:
        points: the trained networks, each a `Point`, or mappings with their names, as rows of a data frame are.
        margin: a loss that does not count, as a share of 1.
        most_density: what the hypothesis speaks of.

    Raises:
        UserError: no dense network or no ticket among the points, or a density out of (0, 1].
    """
    found = [point if isinstance(point, Point) else Point(**point) for point in points]
    for point in found:
        if not 0 < point.density <= 1:
            raise UserError(f"a density lies between 0 and 1, got {point.density} for {point.series}")
    groups: dict[tuple[str, float], list[Point]] = {}
    one = together(point.density for point in found)
    for point in found:
        groups.setdefault((point.series, 1.0 if point.series == DENSE else one[point.density]), []).append(point)
    for needed in (DENSE, TICKET):
        if not any(series == needed for series, _ in groups):
            raise UserError(f"a verdict needs points of {needed!r}; there are {sorted({s for s, _ in groups})}")
    dense = by_seed(groups[DENSE, 1.0])
    lines = {}
    for (series, density), members in sorted(groups.items(), key=_order):
        values = by_seed(members)
        about = summary(list(values.values()))
        assert about is not None
        less = None if series == DENSE else difference(values, dense)
        ticket = None if series in (DENSE, TICKET) else difference(by_seed(groups.get((TICKET, density), [])), values)
        judgement: Judgement = "matching" if less is None else judge(less, margin)
        long = [point.epochs for point in members if point.epochs is not None]
        epochs = sum(long) / len(long) if long else None
        lines[series, density] = Line(series, density, about, less, judgement, ticket, epochs)
    matching = [d for (series, d), line in lines.items() if series == TICKET and line.judgement == "matching"]
    finding, reason = _decide(lines, groups, most_density)
    within = f"at {100 * most_density:g} % of the weights or less"
    sentence = f"The lottery ticket hypothesis ({within}) is {finding} by these runs: {reason}."
    return Verdict(finding, sentence, tuple(lines.values()), min(matching, default=None), margin, most_density)


def _decide(
    lines: Mapping[tuple[str, float], Line], groups: Mapping[tuple[str, float], list[Point]], most: float
) -> tuple[Finding, str]:
    low = [density for series, density in lines if series == TICKET and density <= most]
    if not low:
        return "undecided", "no ticket was trained at so few weights"
    judged = {density: _at(density, lines, groups) for density in low}
    supporting = [d for d, (finding, _) in judged.items() if finding == "supported"]
    if supporting:
        density = min(supporting)
        return "supported", f"at {_percent(density)} {judged[density][1]}"
    finding: Finding = "refuted" if all(f == "refuted" for f, _ in judged.values()) else "undecided"
    chosen = [d for d, (each, _) in judged.items() if each == finding]
    told = "; ".join(f"at {_percent(density)} {judged[density][1]}" for density in chosen[:3])
    return finding, told + (f"; and at {len(chosen) - 3} more" if len(chosen) > 3 else "")


def _at(
    density: float, lines: Mapping[tuple[str, float], Line], groups: Mapping[tuple[str, float], list[Point]]
) -> tuple[Finding, str]:
    ticket = lines[TICKET, density]
    control = lines.get((REINITIALISED, density))
    told = f"the ticket is {_judged(ticket)}"
    if ticket.judgement != "matching":
        finding: Finding = "refuted" if ticket.judgement == "worse" else "undecided"
        return finding, told + (f" and {_beside(control)}" if control else "")
    longest = [max((p.epochs for p in groups[key] if p.epochs is not None), default=None) for key in
               ((TICKET, density), (DENSE, 1.0))]  # fmt: skip
    if longest[0] is not None and longest[1] is not None and longest[0] > longest[1]:
        return (
            "undecided",
            f"{told}, but was trained for {longest[0]:g} epochs and the dense network for {longest[1]:g}",
        )
    if control is None:
        return "undecided", f"{told}, but no reinitialised one was trained"
    told += f", the reinitialised one {_judged(control)}, and {_beside(control)}"
    if control.judgement == "worse":
        return "supported", told
    return ("refuted" if control.judgement == "matching" else "undecided"), told


def _judged(line: Line) -> str:
    less = line.less_dense
    if less is None or less.low is None or less.high is None:
        return "not decided (fewer than two pairs of seeds)"
    words = {"matching": "matching", "worse": "worse", "open": "not decided"}[line.judgement]
    return f"{words} ({100 * less.mean:+.2f} points, {100 * less.low:+.2f} to {100 * less.high:+.2f}, n = {less.pairs})"


def _beside(control: Line) -> str:
    """How far the ticket is above the reinitialised one, with the interval of the differences of the same seeds."""
    less = control.ticket_less
    if less is None or less.low is None or less.high is None:
        return "beside the reinitialised one not measured (fewer than two pairs of seeds)"
    interval = f"{100 * less.low:+.2f} to {100 * less.high:+.2f}, n = {less.pairs}"
    return f"{100 * less.mean:+.2f} points beside the reinitialised one ({interval})"


def by_seed(points: Iterable[Point]) -> dict[int, float]:
    """Seed -> accuracy; the mean of a seed's points if it has several."""
    values: dict[int, list[float]] = {}
    for point in points:
        values.setdefault(point.seed, []).append(point.accuracy)
    return {seed: sum(v) / len(v) for seed, v in values.items()}


def _order(item: tuple[tuple[str, float], list[Point]]) -> tuple[Any, ...]:
    series, density = item[0]
    rank = {DENSE: 0, TICKET: 1, REINITIALISED: 2}.get(series, 3)
    return (series != DENSE, -density, rank, series)


def _percent(density: float) -> str:
    return f"{100 * density:.3g} %"
