"""Pruning schedules by hand-worked values."""

import copy
import dataclasses
import itertools

import pytest

from smallnets.errors import UserError
from smallnets.pruning.schedules import OneShot, Time, cubic, geometric, linear, one_shot


def test_times_are_numbers_with_a_unit() -> None:
    assert Time.parse("500it").steps() == 500
    assert Time.parse("2ep").steps(391) == 782
    assert [str(Time.parse(each)) for each in ("0it", "12ep")] == ["0it", "12ep"]


@pytest.mark.parametrize("text", ["500", "ep", "-1it", "1.5ep", "2 ep", "2epochs", "", "٣it", 5, None])
def test_other_times_are_refused(text) -> None:
    with pytest.raises(UserError, match="a time is a whole number with its unit, such as 500it or 2ep, got"):
        Time.parse(text)


def test_epochs_need_their_length() -> None:
    with pytest.raises(UserError, match="2ep needs the number of steps of an epoch"):
        one_shot(0.5, "2ep").density_at(0)


def test_one_shot_before_at_and_after() -> None:
    assert [one_shot(0.2).density_at(step) for step in (0, 1, 99)] == [0.2, 0.2, 0.2]
    assert [one_shot(0.2, "10it").density_at(step) for step in (0, 9, 10, 11)] == [1.0, 1.0, 0.2, 0.2]
    after = one_shot(0.2, "2ep")
    after.check(run_steps=10, steps_per_epoch=5)
    assert [after.density_at(step, 5) for step in (0, 9, 10)] == [1.0, 1.0, 0.2]
    assert after.changes(5) == [10]


def test_linear_in_the_head() -> None:
    schedule = linear(0.5, end="10it", start="5it")
    assert [schedule.density_at(step) for step in (0, 5, 6, 7, 9, 10, 99)] == pytest.approx(
        [1, 1, 0.9, 0.8, 0.6, 0.5, 0.5]
    )
    assert schedule.changes() == [6, 7, 8, 9, 10]


def test_geometric_keeps_the_same_share_of_what_is_left() -> None:
    schedule = geometric(0.0625, end="4ep", every="1ep")
    assert [schedule.density_at(step, 10) for step in range(0, 41, 10)] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert schedule.density_at(19, 10) == 0.5
    assert schedule.changes(10) == [10, 20, 30, 40]


def test_cubic_is_that_of_zhu_and_gupta() -> None:
    """Their own formula, in sparsities: s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3."""
    schedule = cubic(0.1, end="2200it", start="200it", every="100it", initial=0.9)
    for step in range(200, 2201, 100):
        sparsity = 0.9 + (0.1 - 0.9) * (1 - (step - 200) / (20 * 100)) ** 3
        assert schedule.density_at(step) == pytest.approx(1 - sparsity, abs=1e-12)
        assert schedule.density_at(step + 99) == schedule.density_at(step)
    assert cubic(0.2, end="2it").density_at(1) == pytest.approx(0.2 + 0.8 / 8)
    assert schedule.density_at(199) == 1.0
    assert schedule.changes()[0] == 200


@pytest.mark.parametrize("build", [linear, geometric, cubic])
def test_ramps_are_exact_at_their_ends_and_never_rise(build) -> None:
    schedule = build(0.1, end="3ep", start="1ep", every="7it", initial=0.7)
    values = [schedule.density_at(step, 30) for step in range(120)]
    assert values[:30] == [1.0] * 30
    assert values[30] == 0.7 and values[89] > 0.1
    assert set(values[90:]) == {0.1}
    assert all(a >= b for a, b in itertools.pairwise(values))
    # The density changes where it says, and nowhere else; the last round is shorter if `every` does not divide.
    assert [step for step in range(1, 120) if values[step] != values[step - 1]] == schedule.changes(30)
    assert schedule.changes(30) == [*range(30, 90, 7), 90]


def test_schedules_are_plain_values() -> None:
    schedule = cubic(0.1, end="3ep")
    assert schedule == copy.deepcopy(schedule) == type(schedule)(**dataclasses.asdict(schedule))
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.final = 0.2  # type: ignore[misc]


def test_a_schedule_that_ends_after_the_run_is_refused() -> None:
    schedule = linear(0.1, end="30ep", every="1ep")
    schedule.check(run_steps=30 * 391, steps_per_epoch=391)
    message = r"^the pruning schedule ends at 30ep \(step 11,730\), after the run, which takes 11,729 steps$"
    with pytest.raises(UserError, match=message):
        schedule.check(run_steps=30 * 391 - 1, steps_per_epoch=391)
    with pytest.raises(UserError, match="ends at 5it"):
        OneShot(0.5, "5it").check(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: one_shot(1.5), "density must be a density from 0 to 1, the share that is kept, got 1.5"),
        (lambda: one_shot(float("nan")), "got nan"),
        (lambda: one_shot(True), "got True"),
        (lambda: one_shot(0.5, "5"), "a time is a whole number"),
        (lambda: linear(-0.1, "5it"), "final must be a density from 0 to 1"),
        (lambda: linear(0.5, "5it", initial=0.4), "must not rise: initial is 0.4, final 0.5"),
        (lambda: geometric(0.0, "5it"), "never reaches a final density of 0"),
        (lambda: cubic(0.5, "5it", start="5it"), "must end after its start 5it, got end 5it"),
        (lambda: cubic(0.5, "0ep"), "must end after its start 0it, got end 0ep"),
        (lambda: cubic(0.5, "5it", start="1ep").density_at(0, 5), "must end after its start 1ep"),
        (lambda: cubic(0.5, "5it", every="0it"), "every must be at least 1it"),
        (lambda: type(cubic(0.5, "5it"))("quartic", 0.5, "5it"), "curve must be one of linear, geometric, cubic"),
    ],
)
def test_mistakes(make, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
