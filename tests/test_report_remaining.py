"""A network beside its other forms: who belongs to whom, shares of the real one's weights, crossings, the figure."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from report_helpers import in_study, lottery_record, study

from smallnets.cli import main
from smallnets.config import expand_net
from smallnets.report.collect import collect
from smallnets.report.crossing import Curve, CurvePoint, compare, curve, in_words
from smallnets.report.figures import save, spec
from smallnets.report.forms import Form, form_of
from smallnets.report.lottery import Lottery, lotteries
from smallnets.report.remaining import RemainingFigure, families, remaining_table, sentences
from smallnets.report.verdict import Point

STATED = Path(__file__).parents[1] / "configs/studies/003"


def net(name: str, **init_args: object) -> dict[str, object]:
    found = expand_net(name)
    return {"class_path": found["class_path"], "init_args": {**found["init_args"], **init_args}}


def config(spec: dict[str, object]) -> dict[str, object]:
    return {"data": "CIFAR100", "config": {"model": {"net": spec}}}


def test_forms_of_one_network_have_its_shape() -> None:
    of = {"class_path": "smallnets.models.ResNet", "init_args": expand_net("resnet18")["init_args"]}
    kinds = {
        "real": [net("resnet18"), net("gray_resnet18")],
        "quaternion": [net("quaternion_resnet18", init="xavier"), net("quaternion_resnet18", of=of)],
        "narrow": [net("narrow_resnet18", parameters="2M"), net("narrow_gray_resnet18", parameters="2M")],
        "narrow quaternion": [net("narrow_quaternion_resnet18", parameters="1M")],
    }
    for kind, specs in kinds.items():
        for each in specs:
            form = form_of(config(json.loads(json.dumps(each))))
            assert form is not None and (form.name, form.kind, form.data) == ("resnet18", kind, "CIFAR100"), each
            assert form.shape == form_of(config(net("resnet18"))).shape
    other = form_of(config(net("resnet18", shortcut="A")))
    assert other.name == "ResNet" and other.shape != form_of(config(net("resnet18"))).shape
    # A user's own class is not imported.
    own = form_of(config({"class_path": "no_such_module.Net", "init_args": {"width": 4, "num_classes": 10}}))
    assert own == Form("Net", "real", '{"class_path": "no_such_module.Net", "init_args": {"width": 4}}', "CIFAR100")
    assert form_of({"config": None}) is None and form_of({"config": {"model": {"net": "resnet18"}}}) is None


def lottery(kind: str, weights: int, accuracies: dict[float, list[float]], name: str = "", data: str = "D") -> Lottery:
    """density -> accuracies by seed; the dense network at 1."""
    points = [
        Point("dense" if density == 1 else "ticket", seed, density, value)
        for density, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    # A control's points are in no curve.
    points.append(Point("random_mask", 0, 0.5, 0.0))
    return Lottery(name or kind, weights, points, weights + 10, Form("big", kind, "shape", data))


REAL = lottery("real", 400, {1.0: [0.9, 0.92], 0.25: [0.8, 0.8], 0.0625: [0.4, 0.4]})
QUATERNION = lottery("quaternion", 100, {1.0: [0.7, 0.7], 0.25: [0.6, 0.6]})  # at 25 and 6.25 % of 400


def test_shares_are_of_the_real_networks_weights_and_the_crossing_lies_where_lines_meet() -> None:
    (family,) = families([QUATERNION, REAL])
    assert (family.name, family.real, list(family.forms)) == ("big", REAL, ["quaternion", "real"])
    figure = RemainingFigure([family], stated=[
        {"series": "big quaternion", "remaining": 0.125, "accuracy": 0.66},
        {"series": "elsewhere", "remaining": 0.5, "accuracy": 0.5},
    ])  # fmt: skip
    frame = figure.frame().set_index(["form", "source"])
    ours = frame.loc[("quaternion", "measured")]
    assert ours["remaining"].tolist() == [0.0625, 0.25] and ours["density"].tolist() == [0.25, 1.0]
    assert ours["parameters"].tolist() == [10 + 25, 10 + 100]
    assert frame.loc[("real", "measured"), "mean"].tolist() == pytest.approx([0.4, 0.8, 0.91])
    assert frame.loc[("real", "measured"), "sd"].tolist() == pytest.approx([0, 0, 0.014142], abs=1e-6)
    # From 0.4 against 0.6 to 0.8 against 0.7: two thirds of the way from 1/16 to 1/4, at 0.6667.
    crossed = frame.loc[[("quaternion", "crossing")]].iloc[0]
    assert crossed["remaining"] == pytest.approx(0.0625 * 4 ** (2 / 3))
    assert crossed["mean"] == pytest.approx(2 / 3)
    stated = frame.loc[[("quaternion", "stated")]].iloc[0]
    assert (stated["network"], stated["parameters"]) == ("big", pytest.approx(0.125 * 410))
    assert ("elsewhere", "stated") in frame.index
    companion = RemainingFigure([family], stated=figure.stated, against="parameters").frame()
    assert companion["source"].tolist().count("stated") == 1 and "crossing" not in set(companion["source"])
    table = remaining_table([family])
    assert table[1] == ["big", "quaternion", "25 %", "6.25 %", "35", "2", "60.00 ± 0.00"] and len(table) == 6


def test_who_is_compared_with_whom() -> None:
    narrow = lottery("narrow", 100, {1.0: [0.65]})
    other = lottery("real", 300, {1.0: [0.6]}, data="E")
    (family,) = families([REAL, QUATERNION, narrow, other])
    assert list(family.forms) == ["real", "quaternion", "narrow"]
    assert [said.split(", ")[1].split(" cross")[0].split(" do not")[0] for said in sentences([family])] == [
        "quaternion and real", "quaternion and narrow", "narrow and real",
    ]  # fmt: skip
    assert families([REAL, other]) == [] and families([QUATERNION, narrow]) == []
    twice = families([REAL, QUATERNION, lottery("quaternion", 100, {1.0: [0.5]}, "again")])
    assert list(twice[0].forms) == ["real", "quaternion", "again"]
    assert families([Lottery("plain", 10, [Point("dense", 0, 1.0, 0.5)])]) == []


def test_a_crossing_in_words_says_what_it_rests_on() -> None:
    (family,) = families([REAL, QUATERNION])
    curves = family.curves()
    said = in_words("big", "quaternion", "real", compare(curves["quaternion"], curves["real"]))
    assert said == (
        "big: by the means of 2 seeds, quaternion and real cross at 15.7 % of the real network's weights (accuracy"
        " 66.7 %); below it quaternion is ahead, by up to 20.0 points, above it real, by up to 10.0. Compared between"
        " 6.25 % and 25 % of the real network's weights. Seed by seed, 2 of 2 cross, between 15.7 % and 15.7 %."
    )
    low = curve(lottery("quaternion", 100, {1.0: [0.3, 0.7], 0.25: [0.2, 0.2]}), 400)
    said = in_words("big", "quaternion", "real", compare(low, curves["real"]))
    assert "do not cross between 6.25 % and 25 %" in said and "real is ahead, by 20.0 to 30.0 points." in said
    assert "None of the 2 seeds crosses by itself." in said
    one = curve(lottery("quaternion", 100, {1.0: [0.9]}), 400)
    said = in_words("big", "quaternion", "real", compare(one, curves["real"]))
    assert said.startswith("big: by one seed,") and "quaternion is ahead, by 10.0 to 10.0 points." in said
    apart = Curve([CurvePoint(1.0, 0.01, 0.5, None, 1)], {0: [(0.01, 0.5)]})
    assert "not measured at common shares" in in_words("big", "a", "b", compare(apart, curves["real"]))
    same = compare(curves["real"], curves["real"])
    assert "real and twin are equal" in in_words("big", "real", "twin", same)


def test_document_003s_own_curves_cross_where_its_figures_do() -> None:
    """The points of its figures: near 2 % of ResNet-18's and 34's weights on CIFAR-100, 3 % of 50's, 4 % of 152's."""
    curves: dict[str, Curve] = {}
    for name in ("cifar100", "imagenet64"):
        with (STATED / f"stated_{name}.csv").open() as file:
            for line in csv.DictReader(file):
                share, accuracy = float(line["remaining"]), float(line["accuracy"])
                found = curves.setdefault(f"{name} {line['series']}", Curve([], {}))
                found.points.insert(0, CurvePoint(share, share, accuracy, None, 1))
    assert len(curves) == 18
    assert curves["cifar100 resnet18 real"].line[-3] == (pytest.approx(0.49), 0.6465)
    assert curves["cifar100 resnet18 quaternion"].line[-1] == (0.25, 0.6185)
    assert curves["imagenet64 resnet152 quaternion"].line[-2] == (0.125, 0.6248)
    lowest = {}
    for name in ("cifar100 resnet18", "cifar100 resnet34", "cifar100 resnet50", "imagenet64 resnet18"):
        found = compare(curves[f"{name} quaternion"], curves[f"{name} real"])
        lowest[name] = 100 * found.places[0][0]
    assert lowest == {
        "cifar100 resnet18": pytest.approx(2.0, abs=0.1), "cifar100 resnet34": pytest.approx(2.0, abs=0.1),
        "cifar100 resnet50": pytest.approx(2.9, abs=0.1), "imagenet64 resnet18": pytest.approx(1.4, abs=0.1),
    }  # fmt: skip
    largest = compare(curves["imagenet64 resnet152 quaternion"], curves["imagenet64 resnet152 real"])
    assert all(lead > 0 for x, lead in largest.leads if x > 0.01)


@pytest.fixture
def quaternions(tmp_path: Path) -> Path:
    """A study of a real network and its quaternion form, two seeds each."""
    folder = study(tmp_path / "forms", {"real": {}, "quaternion": {}}, [0, 1])
    for seed in (0, 1):
        for cell, name, total in (("real", "lenet_12", 400), ("quaternion", "quaternion_lenet_12", 100)):
            made = lottery_record([0.9, 0.8, 0.5 if cell == "real" else 0.7], fraction=0.75, total=total)
            model = {"net": net(name), "optimizer": {"class_path": "SGD"}}
            more = {"config": {"name": "forms", "model": model}, "parameters": total + 10}
            in_study(folder, cell, seed, 0.8, pruning=[made], **more)
    return folder


def test_the_report_draws_and_says_it(quaternions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (family,) = families(lotteries(collect([quaternions]))[0])
    assert family.real.parameters == 410 and list(family.forms) == ["real", "quaternion"]
    stated = tmp_path / "stated.csv"
    stated.write_text("series,remaining,accuracy\nlenet_12 real,0.5,0.6\n")
    out = tmp_path / "out"
    assert main(["report", str(quaternions), "--out", str(out), "--stated", str(stated)]) == 0
    said = capsys.readouterr().out
    assert "lenet_12: by the means of 2 seeds, quaternion and real" in said
    assert (out / "remaining.md").read_text().startswith("lenet_12: by the means of 2 seeds, quaternion and real")
    frame = pd.read_csv(out / "remaining.csv")
    assert set(frame["source"]) == {"measured", "stated"} and frame["remaining"].max() == 1
    page = (out / "index.html").read_text()
    assert "Against the real network" in page and "quaternion and real" in page
    assert (out / "remaining-parameters.png").stat().st_size > 500
    # The points are shares of the real network's weights, and that figure's axis is the largest lottery's.
    assert set(pd.read_csv(out / "lottery.csv")["source"]) == {"measured"}
    alone = tmp_path / "alone"
    assert main(["report", str(quaternions), "--figure", "remaining", "--out", str(alone)]) == 0
    assert {path.name for path in alone.iterdir()} == {f"remaining.{kind}" for kind in ("csv", "png", "svg", "html")}
    command = ["report", str(quaternions), "--figure", "lottery", "--stated", str(stated), "--out", str(alone)]
    assert main(command) == 0 and "as --figure remaining is" in capsys.readouterr().err
    assert set(pd.read_csv(alone / "lottery.csv")["source"]) == {"measured"}


def test_the_axis_is_reversed_by_halvings_and_one_network_has_a_colour_a_form(tmp_path: Path) -> None:
    (family,) = families([REAL, QUATERNION])
    drawn = spec(RemainingFigure([family]).plot())
    text = json.dumps(drawn)
    assert '"reverse": true' in text and '"base": 2' in text and "[1.0, 0.5, 0.25, 0.125, 0.0625]" in text
    assert drawn["layer"][1]["encoding"]["color"]["scale"]["domain"] == ["real", "quaternion"]
    other = Lottery("c", 400, REAL.points, 410, Form("small", "real", "s", "D"))
    both = families(
        [REAL, QUATERNION, other, Lottery("d", 100, QUATERNION.points, 110, Form("small", "quaternion", "s", "D"))]
    )
    drawn = spec(RemainingFigure(both).plot())
    assert drawn["layer"][1]["encoding"]["color"]["scale"]["domain"] == ["big", "small"]
    assert drawn["layer"][1]["encoding"]["strokeDash"]["scale"]["range"][0] == [1, 0]
    files = save(RemainingFigure(both, against="parameters"), tmp_path / "sizes")
    assert all(path.stat().st_size > 500 for path in files)
