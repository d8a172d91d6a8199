"""Training curves with bands over seeds, bars over the layers of pruned networks, and all that documents state."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from report_helpers import in_study, put, row, study, write_curve

from smallnets.cli import main
from smallnets.models import ResNet
from smallnets.models.spec import spec_of
from smallnets.pruning import prune_layers
from smallnets.report.collect import collect
from smallnets.report.curves import CurvesFigure, _thinned, read_epochs
from smallnets.report.figures import spec
from smallnets.report.stated import StatedTable


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Cells of three seeds, two seeds and one; the last one's file is cut short."""
    folder = study(tmp_path / "runs", {"three": {}, "two": {}, "one": {}, "cut": {}}, [0, 1, 2])
    for cell, seeds in (("three", (0, 1, 2)), ("two", (0, 1)), ("one", (0,)), ("cut", (0,))):
        for seed in seeds:
            made = in_study(folder, cell, seed, 0.5)
            accuracies = [0.5 + seed / 10, None, 0.7 + seed / 10]  # no validation in the epoch between
            write_curve(folder, made["run"], val_accuracy=accuracies, train_loss=[2.0, 1.0 + seed, 0.5])
    path = folder / in_study(folder, "cut", 0, 0.5)["run"] / "metrics.csv"
    path.write_text(path.read_text().replace("0.7", "0.x"))
    return folder


def test_a_band_is_an_interval_from_three_seeds_on_and_a_range_of_two(trained: Path) -> None:
    """Of 0.5, 0.6 and 0.7 the t interval is 0.6 +- 4.30265 * 0.1 / sqrt 3 = 0.248414."""
    figure = CurvesFigure(collect([trained]))
    frame = figure.frame().set_index(["cell", "epoch"])
    assert [key for key in frame.index if key[0] == "three"] == [("three", 0), ("three", 2)]
    three, two, one = (frame.loc[(cell, 0)] for cell in ("three", "two", "one"))
    assert (three["n"], three["band"], three["mean"]) == (3, "95 % interval", pytest.approx(0.6))
    assert (three["low"], three["high"]) == (pytest.approx(0.351586, abs=1e-6), pytest.approx(0.848414, abs=1e-6))
    assert (two["n"], two["band"], two["low"], two["high"]) == (2, "lowest to highest", 0.5, 0.6)
    assert (one["n"], one["band"], one["low"], one["high"]) == (1, "one seed", 0.5, 0.5)
    assert "cut" not in frame.index.get_level_values("cell")
    loss = CurvesFigure(collect([trained]), "train/loss").frame().set_index(["cell", "epoch"])
    assert loss.loc[("two", 1), "mean"] == 1.5 and loss.loc[("three", 1), "n"] == 3
    drawn = json.dumps(spec(figure.plot()))
    assert '"domain": ["three", "two", "one"]' in drawn and ".3~p" in drawn


def test_a_long_training_is_drawn_by_some_of_its_epochs(tmp_path: Path) -> None:
    made = row("a", "run-1", 0, 0.5)
    put(tmp_path, made)
    write_curve(tmp_path, "run-1", val_accuracy=[epoch / 1000 for epoch in range(1000)])
    frame = CurvesFigure(collect([tmp_path])).frame()
    drawn = _thinned(frame)
    assert len(frame) == 1000 and 150 <= len(drawn) <= 202
    assert drawn["epoch"].iloc[0] == 0 and drawn["epoch"].iloc[-1] == 999
    assert len(read_epochs({**made, "folder": str(tmp_path / "run-1")})) == 1000 and read_epochs(made) == {}


def checkpoint(net: ResNet, run: Path) -> None:
    about = {"net": spec_of(net), "image_size": 8, "in_channels": 3, "mean": [], "std": [], "classes": [],
             "data": None, "split_seed": None}  # fmt: skip
    (run / "checkpoints").mkdir()
    (run / "config.yaml").write_text("{}")
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    torch.save({"smallnets": about, "state_dict": state}, run / "checkpoints" / "best.ckpt")


def test_curves_layers_and_stated_values_are_on_the_page(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, sizes = ResNet(10, blocks=[1], channels=[10]), {"bytes": 1, "macs": 1}
    dense = in_study(trained, "three", 0, 0.5)
    checkpoint(net, trained / dense["run"])
    prune_layers(net, {"stages.0.0.conv1": 0.3}, "l1", seed=0, image_size=8, in_channels=3)
    record = {
        "callback": "ChannelPruning",
        "before": {"parameters": 1000, **sizes},
        "after": {"parameters": 9, **sizes},
    }
    slim = in_study(trained, "cut", 0, 0.5, pruning=[record])
    checkpoint(net, trained / slim["run"])
    plan = trained / "study" / "plan.json"
    stated = {"cut": {"val_accuracy": 0.6, "parameters": 900}, "two": {"test_accuracy": 0.75}}
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "stated": stated}))
    out = tmp_path / "out"
    assert main(["report", str(trained), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "| cut | val_accuracy (%) | 60.00 | 1 | 50.00 | -10.00 |" in said
    assert "| cut | parameters | 900 | 1 | 1,000 | +100 |" in said
    assert "| two | test_accuracy (%) | 75.00 | 0 | not measured | not measured |" in said
    assert StatedTable(collect([trained])).frame()["metric"].tolist() == ["test_accuracy", "val_accuracy", "parameters"]
    page = (out / "index.html").read_text()
    for heading in ("What the documents state", "Training curves", "Layer by layer"):
        assert f"<h2>{heading}</h2>" in page, heading
    assert len(pd.read_csv(out / "curves-val-accuracy.csv")) == 6 and (out / "curves-train-loss.svg").is_file()
    bars = pd.read_csv(out / "layers-filters.csv").set_index(["net", "layer"])
    assert bars.loc[("three", "stages.0.0.conv1"), "filters"] == 10
    assert bars.loc[("cut", "stages.0.0.conv1"), "filters"] == 7


def test_curves_alone_and_one_that_is_not_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["report", str(trained), "--figure", "curves", "--curve", "train/loss", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {f"curves-train-loss.{k}" for k in ("csv", "png", "svg", "html")}
    assert main(["report", str(trained), "--curve", "val/acc"]) == 2
    assert "no run here has 'val/acc' by epoch; nearest: val/accuracy" in capsys.readouterr().err.replace("\n", " ")
    put(tmp_path / "bare", row("bare", "run-1", 0, 0.5))
    assert main(["report", str(tmp_path / "bare"), "--figure", "curves"]) == 2
    assert "no run here has a metrics.csv" in capsys.readouterr().err
