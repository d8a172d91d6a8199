"""Means over seeds, differences paired by seed, and how many seeds a difference would need."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
# With fewer pairs no signed-rank test can fall below 0.05: two-sided it reaches 2 / 2^n, 0.0625 for five.
_WILCOXON_FROM = 6
_MOST_SEEDS = 10_000
# Of an effect so many deviations large two pairs are enough; SciPy's noncentral t fails far beyond.
_CERTAIN = 20.0


@dataclass(frozen=True)
class Summary:
    """Mean of n values; `sd` (n - 1) and the interval `low`..`high` are None for a single one."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """Values less a baseline's.

    Attributes:
        pairs: seeds that both have; 0 where they share none.
        mean: of the differences; without pairs, the difference of the means.
        sd, low, high: of the differences (n - 1), and the t interval of their mean; None below two pairs.
        p: two-sided paired t test; None below two pairs, or where all differences are equal.
        p_wilcoxon: two-sided signed-rank test, from six pairs on that differ.
        seeds_needed: pairs with which a difference of this size and deviation would be found (`seeds_needed`).
    """

    pairs: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_wilcoxon: float | None = None
    seeds_needed: int | None = None


def summary(values: Sequence[float], confidence: float = CONFIDENCE) -> Summary | None:
    """Mean, standard deviation (n - 1) and the t interval of the mean; None for no values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None, None)
    # Equal values have the deviation 0, and not what rounding their mean leaves.
    sd = 0.0 if len(set(values)) == 1 else math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """`values` less `baseline`, both seed -> value, paired by seed; None if one of them is empty.

    A seed gives both runs the same initialisation and order of images, so what they share cancels; seeds that only one
    of them has are left out.
    """
    if not values or not baseline:
        return None
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return Difference(0, math.fsum(values.values()) / len(values) - math.fsum(baseline.values()) / len(baseline))
    # Figures are stored with six digits: what lies below is the rounding of the subtraction.
    found = [round(values[seed] - baseline[seed], 9) for seed in seeds]
    about = summary(found, confidence)
    assert about is not None
    if about.sd is None:
        return Difference(1, about.mean)
    if about.sd == 0:
        return Difference(about.n, about.mean, 0.0, about.low, about.high)
    t = about.mean / (about.sd / math.sqrt(about.n))
    return Difference(
        about.n, about.mean, about.sd, about.low, about.high,
        p=float(2 * stats.t.sf(abs(t), about.n - 1)),
        p_wilcoxon=_wilcoxon(found),
        seeds_needed=seeds_needed(about.mean, about.sd),
    )  # fmt: skip


def _wilcoxon(differences: Sequence[float]) -> float | None:
    differing = [d for d in differences if d != 0]
    if len(differing) < _WILCOXON_FROM:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that ties make the test approximate
        return float(stats.wilcoxon(differing).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for being several (Holm 1979): the smallest times m, the next times m - 1, never falling.

    None stays None and is not counted.

    >>> from smallnets.report.stats import holm
    >>> holm([0.25, 0.125, None])
    [0.25, 0.25, None]
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, index) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        adjusted[index] = least
    return adjusted


def seeds_needed(mean: float, sd: float, power: float = POWER, alpha: float = 1 - CONFIDENCE) -> int | None:
    """The fewest pairs with which a two-sided paired t test finds a mean difference with probability `power`.

    For differences of this mean and deviation; None if they are 0, or if it takes more than 10,000.
    """
    if mean == 0 or sd == 0:
        return None
    effect = abs(mean) / sd
    if effect > _CERTAIN:
        return 2
    high = 2
    while high <= _MOST_SEEDS and _power(effect, high, alpha) < power:
        high *= 2
    low = high // 2  # power rises with n: not enough at low, enough at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, alpha) >= power else (middle, high)
    return high if high <= _MOST_SEEDS else None


def _power(effect: float, n: int, alpha: float) -> float:
    limit, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * math.sqrt(n)
    return float(stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift))
