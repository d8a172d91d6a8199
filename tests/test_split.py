"""The split law: exact, stratified, disjoint, a function of the seed alone; and the integers behind randomness."""

import numpy as np
import pytest

from smallnets.data.seeds import global_seed, hashes, mix, permutation
from smallnets.data.split import stratified_split
from smallnets.errors import UserError


def test_cifars_split_is_exact_and_stratified() -> None:
    labels = np.arange(50_000) % 10
    train, val = stratified_split(labels, (9, 1), 0)
    assert (len(train), len(val)) == (45_000, 5_000)
    assert np.bincount(labels[train]).tolist() == [4_500] * 10
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(50_000))
    assert train.dtype == np.int64
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(val) > 0)


def test_three_parts_in_uneven_classes() -> None:
    labels = np.repeat([0, 1, 2], [60, 120, 7])
    train, val, test = stratified_split(labels, (45, 5, 10), 3)
    # 187 images: 140.25, 15.58 and 31.17 by share; the largest remainder is val's.
    assert (len(train), len(val), len(test)) == (140, 16, 31)
    assert np.bincount(labels[test]).tolist() == [10, 20, 1]
    # 5, 10 and 0.58: the third class has the only remainder.
    assert np.bincount(labels[val]).tolist() == [5, 10, 1]
    assert len(set(train) | set(val) | set(test)) == 187


@pytest.mark.parametrize("seed", [0, 1, -5, 2**70])
def test_totals_and_proportions_hold_for_random_class_sizes(seed: int) -> None:
    sizes = np.random.default_rng(abs(seed) % 2**32).integers(20, 300, size=30)
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(30), sizes))
    train, val = stratified_split(labels, (9, 1), seed)
    assert abs(len(val) - len(labels) / 10) <= 0.5
    counts = np.bincount(labels[val], minlength=30)
    assert np.all(np.abs(counts - sizes / 10) < 1)
    assert not set(train) & set(val)
    assert len(train) + len(val) == len(labels)


def test_a_function_of_the_seed_and_not_of_global_generators() -> None:
    labels = np.arange(400) % 4
    np.random.seed(1)
    first = stratified_split(labels, (9, 1), 5)
    np.random.seed(2)
    again = stratified_split(labels.tolist(), [9, 1], 5)
    other = stratified_split(labels, (9, 1), 6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


def test_the_split_stays_what_it_is() -> None:
    # Written down once: a change of these numbers changes every result that was ever compared.
    assert stratified_split([0] * 10 + [1] * 10, (9, 1), 0)[1].tolist() == [4, 18]


def test_tiny_classes_get_one_image_in_each_part() -> None:
    labels = np.repeat(np.arange(10), 3)
    train, val = stratified_split(labels, (9, 1), 0)
    assert np.bincount(labels[val]).tolist() == [1] * 10
    assert np.bincount(labels[train]).tolist() == [2] * 10


def test_errors_name_the_class() -> None:
    with pytest.raises(UserError, match=r"at least 2 images.*class 1 has 1"):
        stratified_split([0, 0, 1], (9, 1), 0)
    with pytest.raises(UserError, match="there are no images"):
        stratified_split([], (9, 1), 0)
    with pytest.raises(UserError, match=r"positive integers, not \[1, 0\]"):
        stratified_split([0, 0], (1, 0), 0)


def _reference(state: int) -> int:
    """SplitMix64 in Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_hashes_are_splitmix64() -> None:
    # The published first output of the generator seeded with 0.
    assert _reference(0) == 0xE220A8397B1DCDAF
    start = _reference(9)
    golden = 0x9E3779B97F4A7C15
    assert hashes(9, 4).tolist() == [_reference((start + i * golden) % 2**64) for i in range(4)]


def test_mix_depends_on_each_value_and_its_position() -> None:
    seen = {mix(0), mix(1), mix(0, 0), mix(0, 1), mix(1, 0), mix(0, 0, 0), mix(0, 0, 1), mix(0, 1, 0), mix(-1)}
    assert len(seen) == 9
    assert all(0 <= s < 2**63 for s in seen)
    assert mix(4, 2) == _reference(_reference(4) ^ 2) >> 1


def test_permutation_is_one() -> None:
    assert sorted(permutation(3, 100)) == list(range(100))
    assert permutation(3, 100).tolist() != permutation(4, 100).tolist()


def test_global_seed_is_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert global_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert global_seed() == 17
