"""Where the curves of two lotteries cross, at which share of one network's weights, and in words what that rests on."""

from dataclasses import dataclass

from smallnets.report.densities import together
from smallnets.report.lottery import Lottery, crossings, height
from smallnets.report.stats import summary
from smallnets.report.verdict import DENSE, TICKET, Point, by_seed


@dataclass(frozen=True)
class CurvePoint:
    """The mean over `n` seeds at a density; `remaining` is the share of another network's weights that this is."""

    density: float
    remaining: float
    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """A lottery's dense network and tickets by rising share; `seeds` has each seed's own line."""

    points: list[CurvePoint]
    seeds: dict[int, list[tuple[float, float]]]

    @property
    def line(self) -> list[tuple[float, float]]:
        """(remaining, mean accuracy), rising."""
        return [(point.remaining, point.mean) for point in self.points]


@dataclass(frozen=True)
class Crossing:
    """Two curves compared where both were measured.

    Attributes:
        places: (share, accuracy) where the means cross, rising.
        low, high: the shares between which both were measured.
        leads: the first's mean accuracy less the second's, at each measured share from low to high.
        by_seed: seed -> shares where that seed's two lines cross.
        n: seeds that both means have at every point, at least.
    """

    places: list[tuple[float, float]]
    low: float
    high: float
    leads: list[tuple[float, float]]
    by_seed: dict[int, list[float]]
    n: int


def curve(lottery: Lottery, weights: int) -> Curve:
    """The dense network and the tickets of a lottery, at shares of so many weights."""
    groups: dict[float, list[Point]] = {}
    own = [point for point in lottery.points if point.series in (DENSE, TICKET)]
    one = together(point.density for point in own)
    for point in own:
        groups.setdefault(1.0 if point.series == DENSE else one[point.density], []).append(point)
    found: list[CurvePoint] = []
    seeds: dict[int, list[tuple[float, float]]] = {}
    for density in sorted(groups):
        values = by_seed(groups[density])
        about = summary(list(values.values()))
        assert about is not None
        share = density * lottery.weights / weights
        found.append(CurvePoint(density, share, about.mean, about.sd, about.n))
        for seed, value in values.items():
            seeds.setdefault(seed, []).append((share, value))
    return Curve(found, seeds)


def compare(one: Curve, other: Curve) -> Crossing | None:
    """Where two curves cross; None where their shares do not overlap."""
    if not one.points or not other.points:
        return None
    low = max(one.line[0][0], other.line[0][0])
    high = min(one.line[-1][0], other.line[-1][0])
    if low > high:
        return None
    inside = [point for each in (one, other) for point in each.points if low <= point.remaining <= high]
    shares = sorted({point.remaining for point in inside})
    leads = [(x, height(one.line, x) - height(other.line, x)) for x in shares]
    places = [(x, height(one.line, x)) for x in crossings(one.line, other.line)]
    both = sorted(one.seeds.keys() & other.seeds.keys())
    each = {seed: crossings(one.seeds[seed], other.seeds[seed]) for seed in both}
    return Crossing(places, low, high, leads, each, min(point.n for point in inside))


def in_words(network: str, one: str, other: str, found: Crossing | None) -> str:
    """One paragraph: where the curve of `one` crosses that of `other`, who is ahead where, and by how many seeds."""
    if found is None:
        return f"{network}: {one} and {other} were not measured at common shares of the real network's weights."
    rests = "one seed" if found.n == 1 else f"the means of {found.n} seeds"
    where = f"between {_percent(found.low)} and {_percent(found.high)} of the real network's weights"
    leads = [lead for _, lead in found.leads]
    if not found.places:
        ahead, by = (one, leads) if max(leads) > -min(leads) else (other, [-lead for lead in leads])
        if not any(leads):
            return f"{network}: by {rests}, {one} and {other} are equal {where}, where both were measured."
        return (
            f"{network}: by {rests}, {one} and {other} do not cross {where}, where both were measured: {ahead} is"
            f" ahead, by {100 * min(by):.1f} to {100 * max(by):.1f} points.{_seeds(found)}"
        )
    at = " and ".join(_percent(x) for x, _ in found.places)
    heights = " and ".join(f"{100 * y:.1f}" for _, y in found.places)
    first = next(lead for lead in leads if lead)
    below, above = (one, other) if first > 0 else (other, one)
    sides = (
        f"below it {below} is ahead, by up to {100 * _most(found, below == one, 0):.1f} points, above it {above}, by"
        f" up to {100 * _most(found, above == one, 1):.1f}"
        if len(found.places) == 1
        else f"at the smallest share {below} is ahead; where curves cross more than once they run together"
    )
    return (
        f"{network}: by {rests}, {one} and {other} cross at {at} of the real network's weights (accuracy"
        f" {heights} %); {sides}."
        f" Compared {where}.{_seeds(found)}"
    )


def _most(found: Crossing, of_one: bool, side: int) -> float:
    """The largest lead below (0) or above (1) the only crossing."""
    place = found.places[0][0]
    leads = [lead if of_one else -lead for x, lead in found.leads if (x > place) == bool(side)]
    return max(leads, default=0.0)


def _seeds(found: Crossing) -> str:
    if len(found.by_seed) < 2:
        return ""
    crossing = [places for places in found.by_seed.values() if places]
    if not crossing:
        return f" None of the {len(found.by_seed)} seeds crosses by itself."
    every = [place for places in crossing for place in places]
    return (
        f" Seed by seed, {len(crossing)} of {len(found.by_seed)} cross, between {_percent(min(every))} and"
        f" {_percent(max(every))}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
