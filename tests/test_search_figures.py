"""Figures of a search: their numbers are the trials', and `search show --out` writes each beside its picture."""

import math
from pathlib import Path

import pandas as pd
import pytest
from test_search import LR, MOMENTUM, SPACE, TWO, StandIn, quiet, search

from smallnets.cli import main
from smallnets.report.search_figures import Axis, Found, FrontFigure, HistoryFigure, ImportanceFigure, ParallelFigure
from smallnets.studies.search import Trials


def found(**more) -> Found:
    trials = [
        {"number": 0, "values": {"val_accuracy": 0.5, "macs": 10}, "chosen": {"net": "a", "lr": 0.01}},
        {"number": 3, "values": {"val_accuracy": 0.4, "macs": 30}, "chosen": {"net": "b", "lr": 1.0, "momentum": 0.5}},
        {"number": 2, "values": {"val_accuracy": 0.9, "macs": 20}, "chosen": {"net": "c", "lr": 0.1}},
    ]
    axes = [Axis("net", ["a", "b", "c"]), Axis("lr", (), 0.01, 1, True), Axis("momentum", (), 0, 1)]
    return Found("s", "Which?", TWO, axes, trials, {"lr": 0.2, "net": 0.7}, **more)


def test_the_history_keeps_the_best_so_far():
    assert HistoryFigure(found(), "val_accuracy").frame().to_dict("list") == {
        "trial": [0, 2, 3], "val_accuracy": [0.5, 0.9, 0.4], "best": [0.5, 0.9, 0.9],
    }  # fmt: skip
    assert HistoryFigure(found(), "macs").frame()["best"].tolist() == [10, 10, 10]


def test_importances_are_sorted():
    assert ImportanceFigure(found()).frame().to_dict("list") == {"dimension": ["net", "lr"], "share": [0.7, 0.2]}


def test_parallel_coordinates_stand_between_the_ends_of_their_axis():
    frame = ParallelFigure(found()).frame()
    at = {(line.trial, line.axis): line.position for line in frame.itertuples()}
    assert [at[n, "net"] for n in (0, 3, 2)] == [0, 0.5, 1]
    assert at[2, "lr"] == pytest.approx(0.5) and at[0, "lr"] == 0 and at[3, "lr"] == 1, "on the scale of its logarithm"
    assert at[3, "momentum"] == 0.5 and (0, "momentum") not in at, "not drawn, not there"
    assert [at[n, "macs"] for n in (0, 3, 2)] == [0, 1, 0.5]
    lr = frame[frame["axis"] == "lr"].iloc[0]
    assert (lr["low"], lr["high"], lr["value"], lr["val_accuracy"]) == ("0.01", "1", "0.01", 0.5)
    assert Axis("x", ["only"]).position("only") == Axis("y", (), 2, 2).position(2) == 0.5


def test_the_front_is_of_those_that_no_other_beats():
    frame = FrontFigure(found(), "macs").frame()
    assert frame.to_dict("list") == {
        "trial": [0, 3, 2], "val_accuracy": [0.5, 0.4, 0.9], "macs": [10, 30, 20], "front": [True, False, True],
    }  # fmt: skip


def test_show_writes_the_figures_of_a_finished_search(here, capsys):
    """Stand-in trials with two objectives: each figure's numbers and picture, and a page of all."""
    made, journal = search(here, objectives=TWO, sampler="random"), "trials.log"
    assert main(["search", "show", str(made.file), "--storage", journal, "--out=figures"]) == 2
    assert "no trial of s was trained to its end: there is nothing to draw" in capsys.readouterr().err
    trials = Trials(made, storage=journal)
    trials.work(12, StandIn(here), quiet)
    assert main(["search", "show", str(made.file), "--storage", journal, "--out=figures"]) == 0
    assert "11 files in figures; open figures/index.html" in capsys.readouterr().out

    names = ["front-macs", "history-macs", "history-val_accuracy", "importances", "parallel"]
    assert sorted(p.name for p in Path("figures").iterdir()) == sorted(
        [*(f"{name}.{kind}" for name in names for kind in ("csv", "svg")), "index.html"]
    )
    read = {name: pd.read_csv(f"figures/{name}.csv") for name in names}
    done = [t for t in trials.ended() if t.state == "done"]
    assert len(done) > 4
    assert read["history-macs"]["macs"].tolist() == [t.values["macs"] for t in done]
    assert sorted(read["front-macs"].query("front")["trial"]) == sorted(t.number for t in trials.best())
    shares = dict(zip(read["importances"]["dimension"], read["importances"]["share"], strict=True))
    assert shares == {name.rpartition(".")[2]: pytest.approx(share) for name, share in trials.importances().items()}
    parallel = read["parallel"]
    assert parallel["position"].between(0, 1).all()
    assert (parallel["axis"] == "momentum").sum() == sum(MOMENTUM in t.chosen for t in done) < len(done)
    lr = next(t.chosen[LR] for t in done)
    low, high = float(SPACE[LR]["low"]), float(SPACE[LR]["high"])
    drawn = parallel[(parallel["axis"] == "lr") & (parallel["trial"] == done[0].number)]
    assert drawn["position"].item() == pytest.approx(math.log(lr / low) / math.log(high / low))
    svg = {name: Path(f"figures/{name}.svg").read_text() for name in names}
    assert all(text.startswith("<svg") for text in svg.values())
    assert "momentum" in svg["parallel"] and "share of the variance of val_accuracy" in svg["importances"]
    page = Path("figures/index.html").read_text()
    assert page.count("data-spec=") >= 5 and "What mattered for val_accuracy" in page
