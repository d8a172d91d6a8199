"""`together`: which densities of several runs are one, told by their ratio, for sparse networks as for dense ones."""

import math
from collections.abc import Iterable

# Counts of one density may differ in the last weights from seed to seed, where shapes do not; rounds never lie so near.
TOLERANCE = 1e-3


def together(densities: Iterable[float]) -> dict[float, float]:
    """Density -> the mean of those that are one with it: they are up to 0.1 % above the smallest among them.

    Counted as often as they are given. Rounded to so many decimals, densities below them would all be one, or 0.

    >>> from smallnets.report.densities import together
    >>> together([0.5, 0.25, 0.25, 0.000125, 0.00025])
    {0.000125: 0.000125, 0.00025: 0.00025, 0.25: 0.25, 0.5: 0.5}
    """
    groups: list[list[float]] = []
    for density in sorted(densities):
        if groups and density <= groups[-1][0] * (1 + TOLERANCE):
            groups[-1].append(density)
        else:
            groups.append([density])
    # Equal ones stay what they are, without the rounding of a mean.
    return {
        density: density if group[0] == group[-1] else math.fsum(group) / len(group)
        for group in groups
        for density in group
    }
