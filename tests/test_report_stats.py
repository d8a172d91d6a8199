"""Means, paired differences, Holm and sample sizes: by hand, by SciPy and by tables of power."""

import math
import random

import pytest
from scipy import stats

from smallnets.report.stats import difference, holm, seeds_needed, summary


def test_a_mean_one_can_check_in_the_head() -> None:
    about = summary([1.0, 2.0, 3.0])
    assert about is not None
    assert (about.n, about.mean, about.sd) == (3, 2.0, 1.0)
    # t of 2 degrees of freedom at 97.5 % is 4.3027
    assert about.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert about.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_no_value_one_value_and_equal_values() -> None:
    assert summary([]) is None
    one = summary([0.5])
    assert one is not None and (one.n, one.mean, one.sd, one.low, one.high) == (1, 0.5, None, None, None)
    equal = summary([0.1] * 3)
    assert equal is not None and (equal.sd, equal.high - equal.low) == (0.0, 0.0)  # type: ignore[operator]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_the_interval_and_the_tests_are_scipys(n: int) -> None:
    draw = random.Random(n)
    ours = {seed: draw.gauss(0.9, 0.01) for seed in range(n)}
    base = {seed: draw.gauss(0.88, 0.01) for seed in range(n)}
    found = difference(ours, base)
    reference = stats.ttest_rel([*ours.values()], [*base.values()])
    low, high = reference.confidence_interval(0.95)
    assert found is not None and found.pairs == n and found.p == pytest.approx(reference.pvalue, rel=1e-5)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-7)
    if n == 8:
        signed = stats.wilcoxon([round(ours[s] - base[s], 9) for s in ours], method="exact").pvalue
        assert found.p_wilcoxon == pytest.approx(signed)
    else:
        assert found.p_wilcoxon is None


def test_differences_are_paired_by_seed_and_not_by_place() -> None:
    found = difference({2: 3.0, 0: 1.0, 1: 2.0, 7: 100.0}, {0: 0.0, 1: 1.0, 2: 1.0, 9: -100.0})
    # 1, 1, 2: the seeds that only one has are left out
    assert found is not None and (found.pairs, found.mean) == (3, pytest.approx(4 / 3))
    assert found.sd == pytest.approx(math.sqrt(1 / 3))


def test_few_pairs_give_no_test() -> None:
    assert difference({}, {0: 1.0}) is None
    none = difference({0: 3.0}, {1: 1.0})
    assert none is not None and (none.pairs, none.mean, none.p, none.low) == (0, 2.0, None, None)
    one = difference({0: 3.0}, {0: 1.0})
    assert one is not None and (one.pairs, one.mean, one.p) == (1, 2.0, None)


def test_equal_differences_have_no_p_though_floats_round() -> None:
    found = difference({0: 0.9, 1: 0.7, 2: 0.3}, {0: 0.8, 1: 0.6, 2: 0.2})
    assert found is not None and (found.sd, found.p, found.seeds_needed) == (0.0, None, None)
    assert found.low == found.high == pytest.approx(0.1)


def test_five_pairs_cannot_reach_a_signed_rank_of_five_per_cent_and_six_can() -> None:
    zeros = dict.fromkeys(range(6), 0.0)
    five = difference({s: 1.0 + s for s in range(5)}, zeros)
    six = difference({s: 1.0 + s for s in range(6)}, zeros)
    assert five is not None and five.p_wilcoxon is None
    assert six is not None and six.p_wilcoxon == 2 / 2**6


def test_holm_by_hand() -> None:
    # 0.01 * 3, then 0.02 * 2, then the last, which may not fall below
    assert holm([0.035, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_sample_sizes_of_the_tables(effect: float, n: int) -> None:
    """Those that tables and programs of power give for a paired t test, two-sided 5 %, power 0.8."""
    assert seeds_needed(effect, 1.0) == seeds_needed(-effect * 3, 3.0) == n


def test_that_many_pairs_find_it_four_times_in_five() -> None:
    draw = random.Random(0)
    samples = [[draw.gauss(1.2, 1.0) for _ in range(seeds_needed(1.2, 1.0) or 0)] for _ in range(2000)]
    share = sum(stats.ttest_1samp(sample, 0).pvalue < 0.05 for sample in samples) / 2000
    assert 0.8 - 0.03 < share < 0.9


def test_no_effect_needs_no_number_and_a_huge_one_two() -> None:
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(1.0, 0.0) is None
    assert seeds_needed(0.001, 1.0) is None  # some eight million
    assert seeds_needed(1e9, 1.0) == 2
    assert seeds_needed(2.68, 1.0) == 4
