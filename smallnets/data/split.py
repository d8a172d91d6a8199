"""Stratified splits that depend on nothing but the labels, the shares and one seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smallnets.data.seeds import permutation
from smallnets.errors import UserError


def stratified_split(labels: ArrayLike, shares: Sequence[int], split_seed: int) -> tuple[NDArray[np.int64], ...]:
    """Divides the images 0 .. N - 1 into as many disjoint parts as there are shares, class by class.

    Laws: the parts are disjoint and cover all images; a pure function of the arguments, of no library's random
    numbers; part sizes are N * share / sum(shares) rounded by largest remainder, so 45,000 and 5,000 of 50,000 images
    at shares 9 : 1; within a class too, each part's count is its proportional one, rounded up or down (the first part
    has what the others leave). Each part has at least one image of each class: on tiny sets this comes before the
    proportions.

    Within a class, images are ordered by a SplitMix64 hash of (split_seed, index).

    Args:
        labels: N integers.
        shares: relative sizes of the parts, positive integers, for example (45, 5, 10) for train, val and test.
        split_seed: any integer.

    Returns:
        One sorted int64 array of indices a part.

    Raises:
        UserError: a share below 1, or a class with fewer images than there are parts.
    """
    labels = np.asarray(labels)
    if not shares or min(shares) < 1:
        raise UserError(f"the shares of a split are positive integers, not {list(shares)}")
    classes, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(labels) == 0 or counts.min() < len(shares):
        which = f"class {classes[counts.argmin()]} has {counts.min()}" if len(labels) else "there are no images"
        raise UserError(f"each class needs at least {len(shares)} images, one for each part of the split; {which}")
    quotas = _quotas(counts.tolist(), list(shares))
    order = permutation(split_seed, len(labels))
    # A stable sort by class keeps the hash order within each class.
    by_class = np.split(order[np.argsort(members[order], kind="stable")], np.cumsum(counts)[:-1])
    pieces = [np.split(ids, np.cumsum(row)[:-1]) for ids, row in zip(by_class, quotas, strict=True)]
    return tuple(np.sort(np.concatenate(part)) for part in zip(*pieces, strict=True))


def _quotas(counts: list[int], shares: list[int]) -> list[list[int]]:
    """For each class, how many of its images go to each part; rows sum to the counts."""
    parts, whole = len(shares), sum(shares)
    totals = _apportion([sum(counts) * s for s in shares], whole, sum(counts), [len(counts)] * parts, None)
    left = list(counts)
    rows = [[0] * parts for _ in counts]
    # From the last part to the second; what is left is the first part.
    for part in range(parts - 1, 0, -1):
        most = [n - part for n in left]
        column = _apportion([n * shares[part] for n in counts], whole, totals[part], [1] * len(counts), most)
        for i, n in enumerate(column):
            rows[i][part] = n
            left[i] -= n
    for row, n in zip(rows, left, strict=True):
        row[0] = n
    return rows


def _apportion(ideal: list[int], whole: int, total: int, least: list[int], most: list[int] | None) -> list[int]:
    """Integers near ideal / whole that sum to `total`, by largest remainder, each within its bounds.

    Ties go to the earlier entry. Exact: all arithmetic is on integers.
    """
    most = most or [total] * len(ideal)
    entries = range(len(ideal))
    given = [min(max(n // whole, low), high) for n, low, high in zip(ideal, least, most, strict=True)]
    while sum(given) < total:
        given[max((i for i in entries if given[i] < most[i]), key=lambda i: ideal[i] - whole * given[i])] += 1
    while sum(given) > total:
        given[min((i for i in entries if given[i] > least[i]), key=lambda i: ideal[i] - whole * given[i])] -= 1
    return given
