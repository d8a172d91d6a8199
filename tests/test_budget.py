"""Budgets: what they accept, and that they are exact."""

import pytest

from smallnets.errors import RunError, UserError
from smallnets.measure import Budget, BudgetExceeded, Counts, LayerCount
from smallnets.measure import count as count_of
from smallnets.models import ResNet

LAYERS = (
    LayerCount("first", "Conv2d", 10, 4, 900, (2, 4, 4)),
    LayerCount("middle", "Conv2d", 40, 1, 90, (2, 4, 4)),
    LayerCount("last", "Conv2d", 30, 9, 9, (2, 4, 4)),
    LayerCount("", "Net", 20, 20, 1, (5,)),
)
COUNTS = Counts(parameters=100, nonzero_parameters=34, macs=1000, bytes=400, layers=LAYERS)


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (5, 5),
        ("5", 5),
        ("5M", 5_000_000),
        ("200k", 200_000),
        ("200K", 200_000),
        ("1.5M", 1_500_000),
        ("0.5k", 500),
        ("1.13M", 1_130_000),
        ("2G", 2_000_000_000),
        ("5_000_000", 5_000_000),
        ("5e6", 5_000_000),
        (5e6, 5_000_000),
        (" 5 M ", 5_000_000),
    ],
)
def test_limits_are_exact_numbers(given: int | str, number: int) -> None:
    assert Budget(parameters=given) == Budget(parameters=number)
    assert Budget(parameters=given).parameters == number


@pytest.mark.parametrize("given", [0, -1, "0", "-5M", "1.5", "1.0005k", "5T", "five", "", "M", 2.5, True, "nan", [5]])
def test_other_limits_are_refused_in_one_line(given: object) -> None:
    with pytest.raises(UserError) as caught:
        Budget(macs=given)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith("budget macs must be") and repr(given) in message and "\n" not in message


def test_a_budget_needs_a_limit() -> None:
    with pytest.raises(
        UserError, match="at least one limit of parameters, nonzero_parameters, macs, bytes, activation_bytes, got"
    ):
        Budget()


@pytest.mark.parametrize("name", ["parameters", "nonzero_parameters", "macs", "bytes"])
def test_equal_to_the_limit_is_within_and_one_more_is_not(name: str) -> None:
    have = getattr(COUNTS, name)
    within = Budget(**{name: have})
    assert within.check(COUNTS) == []
    within.require(COUNTS, "net")
    assert Budget(**{name: have - 1}).check(COUNTS) == [f"{name} {have:,} > limit {have - 1:,}"]


def test_every_broken_limit_is_named() -> None:
    budget = Budget(parameters=99, macs="1k", bytes=1)
    assert budget.limits() == {"parameters": 99, "macs": 1000, "bytes": 1}
    assert budget.check(COUNTS) == ["parameters 100 > limit 99", "bytes 400 > limit 1"]


@pytest.mark.parametrize(
    ("limit", "largest"),
    [
        ({"parameters": 1}, "parameters: middle 40, last 30, Net 20"),
        ({"nonzero_parameters": 1}, "nonzero_parameters: Net 20, last 9, first 4"),
        ({"macs": 1}, "macs: first 900, middle 90, last 9"),
        ({"bytes": 1}, "parameters: middle 40, last 30, Net 20"),
    ],
)
def test_the_three_largest_layers_are_named(limit: dict[str, int], largest: str) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        Budget(**limit).require(COUNTS, "mynet")
    lines = str(caught.value).splitlines()
    name = next(iter(limit))
    assert lines == [
        f"mynet is over its budget: {name} {getattr(COUNTS, name):,} > limit 1",
        f"largest layers by {largest}",
    ]
    assert isinstance(caught.value, RunError) and caught.value.exit_code == 1


def test_rows_over_the_budget_of_document_002() -> None:
    budget = Budget(parameters="5M")
    for channels, within in (([128, 100, 164, 200], True), ([32, 64, 128, 256], False)):
        net = ResNet(channels=channels, blocks=[3, 3, 3, 3] if within else [3, 4, 6, 3])
        assert (budget.check(count_of(net)) == []) is within
    with pytest.raises(BudgetExceeded, match=r"parameters 5,326,506 > limit 5,000,000"):
        budget.require(count_of(net), "row 5")
