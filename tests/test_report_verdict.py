"""The lottery's verdict: planted accuracies, and the rule recovered from them."""

import pandas as pd
import pytest

from smallnets.errors import UserError
from smallnets.report.crossing import curve
from smallnets.report.densities import together
from smallnets.report.lottery import Lottery
from smallnets.report.lottery_figure import LotteryFigure
from smallnets.report.sections import verdict_table
from smallnets.report.stats import difference
from smallnets.report.verdict import Point, Verdict, judge, verdict

SEEDS = range(4)
# Differences of deviation 0.001 about their mean: the half width is 3.182 * 0.00115 / 2 = 0.0018
WOBBLE = (0.001, -0.001, 0.001, -0.001)


def plant(**drops: dict[float, float]) -> list[Point]:
    """A dense network at 0.9, and each series at each density so much below it."""
    points = [Point("dense", seed, 1.0, 0.9 + seed / 100, 20) for seed in SEEDS]
    for series, by_density in drops.items():
        for density, drop in by_density.items():
            points += [Point(series, s, density, 0.9 + s / 100 - drop + WOBBLE[s], 20) for s in SEEDS]
    return points


def line(found: Verdict, series: str, density: float) -> str:
    return next(each.judgement for each in found.lines if (each.series, each.density) == (series, density))


def test_a_ticket_that_matches_where_a_reinitialised_one_does_not_supports() -> None:
    found = verdict(plant(ticket={0.5: 0.0, 0.1: 0.0, 0.01: 0.3}, random_reinit={0.1: 0.05}))
    assert found.finding == "supported" and found.smallest_matching == 0.1
    assert "supported by these runs: at 10 % the ticket is matching" in found.sentence
    assert [line(found, *at) for at in (("ticket", 0.1), ("ticket", 0.01), ("random_reinit", 0.1))] == [
        "matching", "worse", "worse",
    ]  # fmt: skip


def test_tickets_that_are_worse_everywhere_refute_whatever_larger_ones_do() -> None:
    found = verdict(plant(ticket={0.5: 0.0, 0.2: 0.02, 0.1: 0.05}, random_reinit={0.2: 0.05}))
    assert (found.finding, found.smallest_matching) == ("refuted", 0.5)


def test_a_reinitialised_ticket_that_matches_as_well_refutes() -> None:
    found = verdict(plant(ticket={0.1: 0.0}, random_reinit={0.1: 0.0}))
    assert found.finding == "refuted" and "reinitialised one matching" in found.sentence


def test_the_ticket_is_set_beside_its_controls_by_seed() -> None:
    """Differences of 0.05 + 2 WOBBLE: mean +5, deviation 0.0023094, half width 3.18245 * 0.0023094 / 2 = 0.003675."""
    flipped = [p._replace(accuracy=p.accuracy - 2 * WOBBLE[p.seed]) for p in plant(random_reinit={0.1: 0.05})[4:]]
    found = verdict([*plant(ticket={0.1: 0.0, 0.05: 0.3}, random_mask={0.2: 0.1}), *flipped])
    beside = {(each.series, each.density): each.ticket_less for each in found.lines}
    assert {key for key, less in beside.items() if less} == {("random_reinit", 0.1)}
    less = beside["random_reinit", 0.1]
    assert less is not None and (less.pairs, less.mean) == (4, pytest.approx(0.05))
    assert (less.low, less.high) == (pytest.approx(0.05 - 0.003675, abs=1e-6), pytest.approx(0.053675, abs=1e-6))
    assert "+5.00 points beside the reinitialised one (+4.63 to +5.37, n = 4)" in found.sentence
    (line,) = [each for each in found.records() if each["series"] == "random_reinit"]
    assert [line[k] for k in ("ticket_less", "ticket_less_low", "ticket_less_high")] == [less.mean, less.low, less.high]


def test_a_ticket_that_is_not_decided_stands_beside_the_reinitialised_one_too() -> None:
    told = verdict(plant(ticket={0.1: 0.005}, random_reinit={0.1: 0.105})).sentence
    assert "not decided" in told and "and +10.00 points beside the reinitialised one (+10.00 to +10.00, n = 4)" in told
    alone = verdict(plant(ticket={0.1: 0.005})).sentence
    assert "beside" not in alone


def test_what_was_not_run_or_is_not_clear_leaves_it_undecided() -> None:
    assert verdict(plant(ticket={0.1: 0.0})).finding == "undecided"  # no control
    assert verdict(plant(ticket={0.1: 0.0}, random_reinit={0.2: 0.1})).finding == "undecided"  # at another density
    assert verdict(plant(ticket={0.1: 0.005}, random_reinit={0.1: 0.1})).finding == "undecided"  # astride the margin
    assert verdict(plant(ticket={0.1: 0.0}, random_reinit={0.1: 0.005})).finding == "undecided"
    mixed = plant(ticket={0.2: 0.0, 0.1: 0.1})
    assert verdict(mixed).finding == "undecided"  # 10 % refutes, and at 20 % the control was not run
    large = verdict(plant(ticket={0.5: 0.0}, random_reinit={0.5: 0.1}))
    assert large.finding == "undecided" and "no ticket was trained at so few weights" in large.sentence


def test_one_density_that_supports_outweighs_others_that_refute() -> None:
    found = verdict(plant(ticket={0.2: 0.0, 0.1: 0.1}, random_reinit={0.2: 0.1, 0.1: 0.1}))
    assert found.finding == "supported"


def test_one_seed_decides_nothing() -> None:
    points = [p for p in plant(ticket={0.1: 0.0}, random_reinit={0.1: 0.5}) if p.seed == 0]
    found = verdict(points)
    assert found.finding == "undecided" and line(found, "ticket", 0.1) == "open"
    assert "fewer than two pairs" in found.sentence


def test_a_ticket_that_was_trained_for_longer_does_not_support() -> None:
    points = plant(ticket={0.1: 0.0}, random_reinit={0.1: 0.1})
    longer = [p._replace(epochs=30) if p.series == "ticket" else p for p in points]
    found = verdict(longer)
    assert found.finding == "undecided" and "trained for 30 epochs and the dense network for 20" in found.sentence
    assert verdict([p._replace(epochs=None) for p in points]).finding == "supported"


def test_a_control_that_was_trained_for_less_is_seen() -> None:
    points = plant(ticket={0.1: 0.0}, random_reinit={0.1: 0.1}, snip={0.1: 0.1})
    shorter = [p._replace(epochs={"random_reinit": 5 + p.seed, "snip": None}.get(p.series, 20)) for p in points]
    found = verdict(shorter)
    epochs = {line["series"]: line["epochs"] for line in found.records()}
    assert epochs == {"dense": 20, "ticket": 20, "random_reinit": 6.5, "snip": None}
    header, *lines = verdict_table(found)
    assert [line[header.index("epochs")] for line in lines] == ["20", "20", "6.5", "-"]


def test_the_margin_moves_the_line() -> None:
    points = plant(ticket={0.1: 0.01}, random_reinit={0.1: 0.1})
    assert verdict(points).finding == "refuted"
    assert verdict(points, margin=0.02).finding == "supported"


def test_the_rule_at_its_edges() -> None:
    base = {0: 0.0, 1: 0.0}
    exact = difference({0: -0.005, 1: -0.005}, base)  # an interval of no width, on the margin
    assert judge(exact) == "matching"
    assert judge(difference({0: -0.006, 1: -0.006}, base)) == "worse"
    assert judge(None) == judge(difference({0: 0.1}, base)) == "open"


def test_rows_of_a_data_frame_do_as_well_and_pairs_are_of_seeds() -> None:
    points = plant(ticket={0.1: 0.0}, random_reinit={0.1: 0.1})
    frame = pd.DataFrame(points[::-1])
    assert verdict(frame.to_dict("records")) == verdict(points)
    # By seed the deviation is that of the wobble; by place it would be that of the seeds' own 0.01 steps.
    (ticket,) = [each for each in verdict(points).lines if each.series == "ticket"]
    assert ticket.less_dense is not None and ticket.less_dense.sd == pytest.approx(0.001 * (4 / 3) ** 0.5)


def test_sparse_densities_are_told_apart_and_those_of_one_round_are_one() -> None:
    """By their ratio: 0.5^12 and 0.5^13, and two below 0.0001, to four decimals 0.0002 and 0.0001, and 0.0 twice."""
    sparse = {0.5**12: 0.1, 0.5**13: 0.15, 6e-5: 0.2, 3e-5: 0.3}
    points = plant(ticket=sparse, random_reinit={0.5**13: 0.4})
    found = verdict(points)
    tickets = [each for each in found.lines if each.series == "ticket"]
    assert [each.density for each in tickets] == list(sparse) and {each.accuracy.n for each in tickets} == {4}
    (control,) = [each for each in found.lines if each.series == "random_reinit"]
    assert control.ticket_less is not None and control.ticket_less.mean == pytest.approx(0.25)
    figure = LotteryFigure([Lottery("one", 50_000, points)]).frame()
    drawn = figure[(figure["series"] == "ticket") & (figure["n"] == 4) & (figure["density"] < 1)]
    assert drawn["remaining"].tolist() == list(sparse)
    # Counts of 5,000 and 5,001 out of 50,000 are one density, their mean.
    near = [Point("dense", seed, 1.0, 0.9) for seed in (0, 1)]
    near += [Point("ticket", seed, 0.1 + seed / 50_000, 0.9) for seed in (0, 1)]
    (ticket,) = verdict(near).lines[1:]
    assert (ticket.density, ticket.accuracy.n) == (pytest.approx(0.10001), 2)
    assert len(curve(Lottery("one", 50_000, near), 50_000).points) == 2
    assert len(set(together([0.1, 0.10001, 0.1002]).values())) == 2


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(UserError, match="needs points of 'dense'"):
        verdict([p for p in plant(ticket={0.1: 0.0}) if p.series != "dense"])
    with pytest.raises(UserError, match="needs points of 'ticket'"):
        verdict(plant())
    with pytest.raises(UserError, match=r"between 0 and 1, got 12\.5"):
        verdict(plant(ticket={12.5: 0.0}))
