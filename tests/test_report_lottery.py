"""From rows to a lottery's points, the crossing of two curves, and the figure of both."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from report_helpers import control_record, in_study, lottery_record, put, row, study

from smallnets.report.collect import collect
from smallnets.report.figures import save, spec
from smallnets.report.lottery import Lottery, crossings, height, lotteries
from smallnets.report.lottery_figure import LotteryFigure
from smallnets.report.parents import dense_parent
from smallnets.report.verdict import Point, verdict
from smallnets.report.write import Asked, write_report


def test_rounds_and_controls_become_points(tmp_path: Path) -> None:
    folder = study(tmp_path / "lot", {"ticket": {}, "reinit": {}, "again": {}}, [0, 1, 10, 11])
    for seed in (0, 1):
        made = in_study(folder, "ticket", seed, 0.8, pruning=[lottery_record([0.9, 0.91, 0.8])])
        start = f"lightning_logs/lot/{made['run']}/checkpoints/round-2.ckpt"
        # A control of another seed belongs to its lottery's.
        record = control_record("random_reinit", 0.25, start, 2)
        in_study(folder, "reinit", seed + 10, 0.7, pruning=[record], epochs=10)
        in_study(folder, "again", seed, 0.79, pruning=[control_record("ticket", 0.25, start, 2)], epochs=10)
    (lottery,), problems = lotteries(collect([folder]))
    assert not problems and (lottery.name, lottery.weights) == ("ticket", 1000)
    assert sorted(p for p in lottery.points if p.seed == 1) == [
        Point("dense", 1, 1.0, 0.9, 10), Point("random_reinit", 1, 0.25, 0.7, 10), Point("ticket", 1, 0.25, 0.8, 10),
        Point("ticket", 1, 0.5, 0.91, 10), Point("ticket_again", 1, 0.25, 0.79, 10),
    ]  # fmt: skip
    (last,), _ = lotteries(collect([folder]), "val_accuracy_last")
    # Of the last epochs, by a round's own name for it; the controls' rows have none.
    assert {(p.series, p.accuracy) for p in last.points} == {("dense", 0.89), ("ticket", 0.9), ("ticket", 0.79)}


def test_other_rewindings_of_one_dense_training_are_series_of_its_lottery(tmp_path: Path) -> None:
    """And every control is one of the verdict's lines, beside the ticket of its density."""
    put(tmp_path / "a", row("a", "run-1", 4, 0.7, pruning=[lottery_record([0.9, 0.8, 0.7])]))
    start = "logs/a/run-1/checkpoints/round-{}.ckpt"
    for name, rewind, accuracies in (("rate", "rate", [0.9, 0.85, 0.75]), ("fine", "none", [0.9, 0.6, 0.5])):
        record = {**lottery_record(accuracies), "from_round": start.format(0)}
        record["plan"]["rewind"] = rewind
        put(tmp_path / name, row(name, "run-1", 9, accuracies[-1], pruning=[record]))
    own = {**lottery_record([0.9, 0.79]), "from_round": start.format(0)}
    put(tmp_path / "own", row("own", "run-1", 4, 0.79, pruning=[own]))
    controls = {"narrow": (0.25, 2), "one_shot_as_long": (0.25, 2), "ticket": (1.0, 0)}
    for name, (density, number) in controls.items():
        record = control_record(name, density, start.format(number), number)
        put(tmp_path / name, row(name, "run-1", 4, 0.66, pruning=[record]))
    (a, other), problems = lotteries(collect([tmp_path]))
    assert not problems and (a.name, other.name, len(other.points)) == ("a", "own", 2)
    found = {(p.series, p.density): (p.seed, p.accuracy) for p in a.points}
    assert found == {
        ("dense", 1.0): (4, 0.9), ("ticket", 0.5): (4, 0.8), ("ticket", 0.25): (4, 0.7),
        ("rate_rewinding", 0.5): (4, 0.85), ("rate_rewinding", 0.25): (4, 0.75),
        ("fine_tuning", 0.5): (4, 0.6), ("fine_tuning", 0.25): (4, 0.5),
        ("narrow", 0.25): (4, 0.66), ("one_shot_as_long", 0.25): (4, 0.66), ("dense_again", 1.0): (4, 0.66),
    }  # fmt: skip
    lines = {(line.series, line.density): line for line in verdict(a.points).lines}
    assert lines.keys() == found.keys()
    for series in ("rate_rewinding", "fine_tuning", "narrow", "one_shot_as_long"):
        line = lines[series, 0.25]
        assert line.ticket_less is not None and line.less_dense is not None, series
        assert line.ticket_less.mean == pytest.approx(0.7 - found[series, 0.25][1]), series


@pytest.mark.parametrize("home", [True, False])
def test_a_report_of_other_rewindings_with_and_without_their_lottery(tmp_path: Path, home: bool) -> None:
    """Their dense parent is their lottery's round 0, of the seed there; round 0 itself is told of the lottery alone."""
    for seed in (1, 2):
        if home:
            put(tmp_path / "in", row("a", f"run-{seed}", seed, 0.7, pruning=[lottery_record([0.9, 0.8, 0.7])]))
        for name, rewind in (("rate", "rate"), ("fine", "none")):
            record = lottery_record([0.9, 0.85, 0.75 + seed / 100])
            record["plan"]["rewind"] = rewind
            record["from_round"] = f"logs/a/run-{seed}/checkpoints/round-0.ckpt"
            run = f"{name}-{seed}"
            put(tmp_path / "in", row(name, run, seed + 10, 0.75 + seed / 100, pruning=[record]))
    out = tmp_path / "out"
    problems = write_report(collect([tmp_path / "in"]), out, Asked()).problems
    checklist = pd.read_csv(out / "checklist.csv").set_index("cell")
    rounds = pd.read_csv(out / "rounds.csv")
    told = {name: list(zip(each["series"], each["round"], strict=True)) for name, each in rounds.groupby("cell")}
    others = {"rate": "rate_rewinding", "fine": "fine_tuning"}
    expected = {name: [(series, 1), (series, 2)] for name, series in others.items()}
    if not home:
        assert told == expected
        assert len(problems) == 4 and all("is not here; left out" in problem for problem in problems)
        assert not checklist["dense_parent"].any()
        return
    assert told == {"a": [("ticket", 0), ("ticket", 1), ("ticket", 2)], **expected} and not problems
    assert checklist["parent"].to_dict() == {"a": "round 0", "rate": "a, round 0", "fine": "a, round 0"}
    assert checklist["pairs"].to_dict() == dict.fromkeys(("a", "rate", "fine"), 2)
    assert checklist.loc["rate", "difference"] == pytest.approx(0.765 - 0.9)


def test_a_lottery_of_no_rounds_has_no_dense_parent_of_another(tmp_path: Path) -> None:
    """One that ended within its dense training, beside the only lottery of its network."""
    put(tmp_path, row("a", "run-1", 1, 0.7, pruning=[lottery_record([0.9, 0.8])]))
    put(tmp_path, row("cut", "run-2", 1, 0.5, pruning=[lottery_record([])]))
    results = collect([tmp_path])
    parents = {
        cell.name: dense_parent(cell, cell.rows[0]["pruning"][0], results, "val_accuracy") for cell in results.cells
    }
    assert parents["cut"] is None and parents["a"] is not None


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.9), ("b", 0.6)):
        put(tmp_path / name, row(name, "run-1", 0, accuracy, pruning=[lottery_record([accuracy, accuracy])]))
    start = "logs/b/run-1/checkpoints/round-1.ckpt"
    put(tmp_path / "c", row("c", "run-1", 0, 0.5, pruning=[control_record("random_mask", 0.5, start, 1)]))
    stray = control_record("random_mask", 0.5, "logs/gone/run-7/checkpoints/round-1.ckpt", 1)
    put(tmp_path / "d", row("d", "run-1", 0, 0.5, pruning=[stray]))
    found, problems = lotteries(collect([tmp_path]))
    assert {each.name: len(each.points) for each in found} == {"a": 2, "b": 3}
    assert len(problems) == 1 and "gone/run-7" in problems[0]


def test_a_control_of_several_rounds_gives_a_point_for_each(tmp_path: Path) -> None:
    put(tmp_path / "a", row("a", "run-1", 0, 0.7, pruning=[lottery_record([0.9, 0.8, 0.7])]))
    record = control_record("random_mask", 0.25, "logs/a/run-1/checkpoints/round-2.ckpt", 2)
    record["rounds"] = [
        {"round": number, "density": density, "epochs": 10, "val_accuracy": best - 0.02, "val_accuracy_best": best}
        for number, density, best in ((1, 0.5, 0.6), (2, 0.25, 0.4))
    ]
    put(tmp_path / "b", row("b", "run-1", 0, 0.4, pruning=[record], test_accuracy=0.39))
    expected = {"val_accuracy": [(0.5, 0.6), (0.25, 0.4)], "val_accuracy_last": [(0.5, 0.58), (0.25, 0.38)]}
    # The row's test figure is that of the last round alone.
    for metric, points in {**expected, "test_accuracy": [(0.25, 0.39)]}.items():
        (lottery,), _ = lotteries(collect([tmp_path]), metric)
        found = [(p.density, p.accuracy) for p in lottery.points if p.series == "random_mask"]
        assert found == [(density, pytest.approx(accuracy)) for density, accuracy in points], metric


def test_a_test_figure_is_that_of_the_last_round(tmp_path: Path) -> None:
    put(tmp_path, row("a", "run-1", 3, 0.8, test_accuracy=0.77, pruning=[lottery_record([0.9, 0.91, 0.8])]))
    (lottery,), _ = lotteries(collect([tmp_path]), "test_accuracy")
    assert lottery.points == [Point("ticket", 3, 0.25, 0.77, 10)]


def test_curves_cross_where_their_straight_lines_do_on_a_logarithmic_axis() -> None:
    falling, level = [(0.01, 0.0), (1.0, 1.0)], [(0.001, 0.5), (1.0, 0.5)]
    assert crossings(falling, level) == pytest.approx([0.1])  # half way between 1/100 and 1
    assert height(falling, 0.1) == pytest.approx(0.5)
    zigzag = [(0.125, 0.0), (0.25, 1.0), (0.5, 0.0), (1.0, 1.0)]
    found = crossings(zigzag, level)
    assert found == pytest.approx([0.125 * math.sqrt(2), 0.25 * math.sqrt(2), 0.5 * math.sqrt(2)])
    assert crossings(level, zigzag) == pytest.approx(found)


def test_no_crossing_where_curves_touch_or_share_nothing() -> None:
    level = [(0.1, 0.5), (0.2, 0.5), (1.0, 0.5)]
    assert crossings([(0.1, 0.7), (0.2, 0.5), (1.0, 0.9)], level) == []
    assert crossings([(0.1, 0.7), (0.2, 0.5), (1.0, 0.2)], level) == [0.2]  # through a point of both: there
    assert crossings([(0.01, 0.7), (0.05, 0.2)], level) == []
    assert crossings([], level) == []


def two() -> list[Lottery]:
    """A large network, and one of a quarter of its weights that is better where few are left."""
    big = [Point("dense", s, 1.0, 0.9 + s / 100, 9) for s in (0, 1)]
    big += [Point("ticket", s, d, a + s / 100, 9) for d, a in ((0.25, 0.8), (0.0625, 0.4)) for s in (0, 1)]
    small = [Point("dense", 0, 1.0, 0.7, 9), Point("ticket", 0, 0.25, 0.7, 9)]
    return [Lottery("real", 400, big), Lottery("quaternion", 100, small)]


def test_the_figures_numbers_are_shares_of_the_largest(tmp_path: Path) -> None:
    figure = LotteryFigure(two(), stated=[{"series": "paper", "remaining": 0.5, "accuracy": 0.6}])
    frame = figure.frame().set_index(["lottery", "series", "remaining"])
    real = frame.loc[("real", "ticket", 0.25)]
    assert (real["n"], real["mean"]) == (2, pytest.approx(0.805))
    assert real["band_high"] - real["mean"] == pytest.approx(0.01 / math.sqrt(2))
    assert frame.loc[("quaternion", "dense", 0.25), "mean"] == 0.7  # dense, and a quarter of the real one's
    assert frame.loc[("quaternion", "ticket", 0.0625), "density"] == 0.25
    assert frame.loc[("stated", "paper", 0.5), "source"] == "stated"
    assert frame["source"].tolist().count("crossing") == 1
    ((x, y),) = figure.crossings()
    assert 0.0625 < x < 0.25 and y == pytest.approx(0.7)
    files = save(figure, tmp_path / "out" / "lottery")
    assert [path.suffix for path in files] == [".csv", ".png", ".svg", ".html"]
    assert all(path.stat().st_size > 500 for path in files) and len(list(files[0].parent.iterdir())) == 4


def test_two_masks_of_one_seed_are_one_of_n() -> None:
    points = [
        Point("dense", 0, 1.0, 0.9),
        *(Point("random_mask", s, 0.5, a) for s, a in ((0, 0.2), (0, 0.4), (1, 0.6))),
    ]
    frame = LotteryFigure([Lottery("one", 100, points)]).frame().set_index("series")
    assert (frame.loc["random_mask", "n"], frame.loc["random_mask", "mean"]) == (2, pytest.approx(0.45))


@pytest.mark.parametrize("halving", [False, True])
def test_the_axis_of_halvings_is_reversed(halving: bool) -> None:
    drawn = json.dumps(spec(LotteryFigure(two(), halving=halving).plot()))
    assert ('"reverse": true' in drawn) is halving
    assert ("[1.0, 0.5, 0.25, 0.125, 0.0625]" in drawn) is halving
