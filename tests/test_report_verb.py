"""`smallnets report`: the files, the page, the layers of checkpoints, and what is refused in one line."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from report_helpers import in_study, lottery_record, put, row, study
from torch import nn

from smallnets.cli import main
from smallnets.models import ResNet
from smallnets.models.spec import spec_of
from smallnets.pruning import prune_layers
from smallnets.report import rows as rows_module
from smallnets.report.collect import collect
from smallnets.report.layers import LayersFigure, aligned, layers_of
from smallnets.report.page import Page
from smallnets.report.rows import can_parquet, write_rows
from smallnets.results import frame
from smallnets.surgery.names import make


def refused(capsys: pytest.CaptureFixture[str], *command: str, code: int = 2) -> str:
    """The one error of a command that must exit with `code`."""
    assert main(["report", *command]) == code
    text = capsys.readouterr().err.strip()
    assert text.startswith("smallnets: error: ") and "Traceback" not in text
    return text.removeprefix("smallnets: error: ")


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """A study with a lottery of three seeds, a hostile name and a run that has not ended."""
    folder = study(tmp_path / "tickets", {"ticket": {}, "<b>&</script>": {}}, [0, 1, 2])
    for seed in range(3):
        accuracies = [0.9 + seed / 1000, 0.9 + seed / 500, 0.6 + seed / 1000]
        in_study(folder, "ticket", seed, 0.6, pruning=[lottery_record(accuracies, fraction=0.7)])
        put(folder, row("tickets", f"x-seed{seed}-00000001", seed, 0.5, status="interrupted" if seed else "finished"))
    return folder


def test_everything_of_a_study(tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "here"
    assert main(["report", str(tickets), "--out", str(out), "--baseline", "ticket"]) == 0
    said = capsys.readouterr()
    assert "| ticket | 3 | 60.00 ± 0.00 |" in said.out and "hypothesis (at 20 % of the weights or less) is" in said.out
    assert said.err.count("left out:") == 2 and "x-seed1-00000001 has not ended" in said.err
    expected = {"table.md", "table.csv", "table.tex", "verdict.md", "verdict.csv", "checklist.md", "checklist.csv"}
    expected |= {"rows.csv", "rounds.md", "rounds.csv", "rounds-layers.csv"}
    expected |= {"rows.parquet"} if can_parquet() else set()
    figures = [f"{name}.{kind}" for name in ("lottery", "pareto-parameters", "pareto-macs", "pareto-bytes")
               for kind in ("csv", "png", "svg", "html")]  # fmt: skip
    assert {path.name for path in out.iterdir()} == {*expected, *figures, "index.html"}
    assert (out / "lottery.png").read_bytes().startswith(b"\x89PNG")
    judged = pd.read_csv(out / "verdict.csv")
    assert list(judged["density"]) == [1.0, 0.3, 0.09] and list(judged["n"]) == [3, 3, 3]
    page = (out / "index.html").read_text()
    # From disk, without a network: no address is loaded from; and no name of a cell is markup.
    assert not re.search(r"(src|href)=", page.split('<script type="module">')[0])
    assert not re.search(r"<(link|script[^>]+src)", page)
    assert "&lt;b&gt;&amp;&lt;/script&gt;" in page and "<b>&" not in page
    assert page.count("</script>") == page.count("<script") == 4 + 1
    assert "Which one?" in page and "has not ended" in page
    for text in re.findall(r'<script type="application/json" id="[^"]*">(.*?)</script>', page, re.DOTALL):
        assert json.loads(text)["width"] == "container"


def test_the_first_metric_of_the_study_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The value that a document states is of that metric; a figure that no run has gives way to the next."""
    metrics = ["test_accuracy", "val_accuracy"]
    folder = study(tmp_path / "s", {"a": {}}, [0], metrics=metrics, stated={"a": {"test_accuracy": 0.95}})
    in_study(folder, "a", 0, 0.8)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "val_accuracy (%)" in capsys.readouterr().out
    in_study(folder, "a", 0, 0.8, test_accuracy=0.9)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "test_accuracy (%)" in said and "| 95.00 | -5.00 |" in said
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert (table["mean"][0], table["stated"][0]) == (0.9, 0.95)
    assert '<td class="figure">-5.00</td>' in (tmp_path / "out" / "index.html").read_text()
    assert main(["report", str(folder), "--metric", "val_accuracy", "--out", str(tmp_path / "out")]) == 0
    assert "val_accuracy (%)" in capsys.readouterr().out


def test_a_page_without_charts_has_no_script() -> None:
    page = Page("a & b")
    page.table([["cell", "n"], ["x", "1"]])
    page.text("found", finding=True)
    text = page.html()
    assert "<script" not in text and "<title>a &amp; b</title>" in text and 'name="viewport"' in text
    assert '<td class="figure">1</td>' in text and '<p class="finding">found</p>' in text


def test_one_line_a_run(tickets: Path, tmp_path: Path) -> None:
    """As `smallnets.results.frame` gives it, failed and interrupted runs with it; of several folders one file."""
    out = tmp_path / "out"
    out.mkdir()
    assert write_rows(collect([tickets]), out)[0] == out / "rows.csv"
    read = pd.read_csv(out / "rows.csv")
    assert read.equals(pd.read_csv(io.StringIO(frame(tickets).to_csv(index=False)))) and len(read) == 6
    assert list(read.columns[:3]) == ["cell", "seed", "status"] and "interrupted" in set(read["status"])
    put(tmp_path / "more", row("more", "run-1", 7, 0.5))
    write_rows(collect([tickets, tmp_path / "more"]), out)
    read = pd.read_csv(out / "rows.csv")
    assert len(read) == 7 and read["seed"].iloc[-1] == 7


def test_rows_as_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One type a column: an axis of numbers and names is one of texts."""
    folder = study(tmp_path / "s", {"a": {"x": 1}, "b": {"x": "two"}}, [0])
    for cell, accuracy in (("a", 0.5), ("b", None)):
        in_study(folder, cell, 0, accuracy)
    monkeypatch.setattr(rows_module, "find_spec", lambda name: None)
    assert "smallnets report --parquet needs pyarrow: pip install 'smallnets[parquet]'" in refused(
        capsys, str(folder), "--parquet"
    )
    assert [path.name for path in write_rows(collect([folder]), tmp_path)] == ["rows.csv"]
    monkeypatch.undo()
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    assert [path.name for path in write_rows(collect([folder]), tmp_path)] == ["rows.csv", "rows.parquet"]
    read = pd.read_parquet(tmp_path / "rows.parquet")
    assert read["x"].tolist() == ["1", "two"] and read["val_accuracy"][0] == 0.5
    assert list(read.columns) == list(frame(folder).columns)


def test_one_figure_alone(tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated = tmp_path / "stated.csv"
    stated.write_text("name,series,accuracy,macs,remaining\npaper,,0.95,77,\n,curve,0.8,,0.5\n")
    options = ["--out", str(tmp_path / "out"), "--stated", str(stated)]
    assert main(["report", str(tickets), "--figure", "pareto", "--cost", "macs", *options]) == 0
    assert main(["report", str(tickets), "--figure", "lottery", "--halving", *options]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(path).name for path in written][::4] == ["pareto-macs.csv", "lottery.csv"]
    pareto, lottery = (pd.read_csv(tmp_path / "out" / name) for name in ("pareto-macs.csv", "lottery.csv"))
    assert pareto.loc[pareto["name"] == "paper", "macs"].tolist() == [77] and len(pareto) == 3
    assert lottery.loc[lottery["source"] == "stated", "mean"].tolist() == [0.8]


def test_what_is_refused(tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = str(tickets)
    (tmp_path / "empty").mkdir()
    assert "no rows of finished runs" in refused(capsys, str(tmp_path / "empty"))
    assert "no folder" in refused(capsys, str(tmp_path / "none"))
    assert "--figure: there is no 'layer'; nearest: layers" in refused(capsys, here, "--figure", "layer")
    assert "--cost: there is no 'mac'; nearest: macs" in refused(capsys, here, "--cost", "mac")
    assert "no figure 'val_acc'; nearest: val_accuracy" in refused(capsys, here, "--metric", "val_acc")
    assert "no cell is called 'tickets'; nearest: ticket" in refused(capsys, here, "--baseline", "tickets")
    assert "nearest: parameters" in refused(capsys, here, "--budget", "parameter=5M")
    assert "got 'many'" in refused(capsys, here, "--budget", "macs=many")
    assert "from 0 to 100" in refused(capsys, here, "--margin", "-1")
    assert "no file" in refused(capsys, here, "--stated", "none.csv")
    percent = tmp_path / "percent.csv"
    percent.write_text("name,accuracy,macs\npaper,95.0,77\n")
    assert "a share of 1, got 95.0" in refused(capsys, here, "--stated", str(percent))
    percent.write_text("name,accuracy,macs\npaper,high,77\n")
    assert "accuracy: a number is expected, got 'high'" in refused(capsys, here, "--stated", str(percent))
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, here, "--out", str(tmp_path / "file"))
    assert "must be an accuracy, got seconds" in refused(capsys, here, "--figure", "pareto", "--metric", "seconds")
    plain = put(tmp_path / "plain", row("plain", "run-1", 0, 0.5)).parent.parent
    assert "no run of LotteryTicket" in refused(capsys, str(plain), "--figure", "lottery")


def write(net: nn.Module, path: Path) -> str:
    about = {"net": spec_of(net), "image_size": 8, "in_channels": 3, "mean": [], "std": [], "classes": [],
             "data": None, "split_seed": None}  # fmt: skip
    torch.save({"smallnets": about, "state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, path)
    return str(path)


def test_checkpoints_that_are_not_ours_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    assert "is not a checkpoint of smallnets" in refused(capsys, "--figure", "layers", str(tmp_path / "other.ckpt"))
    assert "no checkpoint at" in refused(capsys, "--figure", "layers", "a=none.ckpt")
    good = write(ResNet(10, blocks=[1], channels=[4]), tmp_path / "good.ckpt")
    Path(tmp_path / "cut.ckpt").write_bytes(Path(good).read_bytes()[:500])
    assert "cut short" in refused(capsys, "--figure", "layers", str(tmp_path / "cut.ckpt"), code=1)
    assert "are called 'a'" in refused(capsys, "--figure", "layers", f"a={good}", f"a={good}")


def test_the_layers_of_document_004() -> None:
    """Its x axis, C-1 to Linear-49, and the widths of its first figure: original and with the fourth stage removed."""
    with torch.device("meta"):
        dense, removed = make("resnet18"), ResNet(10, blocks=[2, 2, 2], channels=[64, 128, 256], strides=[1, 2, 4])
    layers = layers_of(dense)
    labels = {each.label: each for each in layers}
    assert (layers[0].label, layers[1].label, layers[2].label, layers[-1].label) == ("C-1", "BN-2", "C-3", "Linear-49")
    assert {each.stage for each in layers} == {"stem", "L1", "L2", "L3", "L4", "head"}
    second = labels["C-13"]
    assert (second.layer, second.filters, second.parameters) == ("stages.1.0.conv1", 128, 73_728)
    frame = LayersFigure({"original": layers, "removed": layers_of(removed)}).frame()
    assert frame.groupby("net")["parameters"].sum().to_dict() == {"original": 11_173_962, "removed": 2_777_674}
    gone = frame[(frame["net"] == "removed") & (frame["stage"] == "L4")]
    assert len(gone) == 10 and not gone["filters"].any() and not gone["there"].any()
    widths = frame[(frame["net"] == "original") & (frame["kind"] == "Conv2d")].groupby("stage")["filters"].max()
    assert widths.to_dict() == {"stem": 64, "L1": 64, "L2": 128, "L3": 256, "L4": 512}
    assert "vconcat" in LayersFigure({"original": layers}, "parameters").plot().to_dict()


def test_the_verb_draws_layers_of_pruned_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = ResNet(10, blocks=[1, 1], channels=[4, 10])
    paths = [write(dense, tmp_path / "dense=1.ckpt")]
    prune_layers(dense, {"stages.1.0.conv1": 0.3}, "l1", seed=0, image_size=8, in_channels=3)
    paths.append(f"pruned={write(dense, tmp_path / 'p.ckpt')}")
    assert main(["report", "--figure", "layers", *paths, "--out", str(tmp_path / "out")]) == 0
    written = [Path(path).name for path in capsys.readouterr().out.split()]
    assert written[::4] == ["layers-filters.csv", "layers-parameters.csv"]
    frame = pd.read_csv(tmp_path / "out" / "layers-filters.csv").set_index(["net", "layer"])
    assert frame.loc[("dense=1", "stages.1.0.conv1"), "filters"] == 10
    assert frame.loc[("pruned", "stages.1.0.conv1"), "filters"] == 7
    assert frame.loc[("pruned", "stages.1.0.conv2"), "parameters"] == 7 * 10 * 9


def test_layers_that_only_some_have_stand_where_they_belong() -> None:
    with torch.device("meta"):
        one, two = (layers_of(ResNet(10, blocks=blocks, channels=[4, 8]), 8) for blocks in ([1, 1], [2, 1]))
    assert [each.layer for each in aligned({"one": one, "two": two})] == [each.layer for each in two]
    assert [each.layer for each in aligned({"two": two, "one": one})] == [each.layer for each in two]


@pytest.mark.slow
def test_training_loads_nothing_that_draws() -> None:
    """Installed plotting packages cost a run seconds only where they are imported."""
    code = (
        "import sys, smallnets.verbs.trainer, smallnets.callbacks, smallnets.results\n"
        "print([m for m in ('pandas', 'altair', 'vl_convert', 'smallnets.report') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
