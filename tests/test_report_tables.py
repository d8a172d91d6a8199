"""Cells from folders, flags, and the tables: planted rows and numbers one can check in the head."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_helpers import control_record, in_study, lottery_record, put, row, study
from study_helpers import Options

from smallnets.errors import UserError
from smallnets.report.checklist import Checklist
from smallnets.report.collect import Cell, collect
from smallnets.report.flags import beyond_axes, flags, resolution
from smallnets.report.pareto import ParetoFigure, front
from smallnets.report.tables import ResultTable, latex, markdown, number
from smallnets.report.write import Asked, write_report
from smallnets.studies.plan import make_plan, stored_plan
from smallnets.studies.study import Study


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """A study of four rates: three seeds, a constant gain of one point, one that failed, one never run."""
    cells = {f"lr={lr}": {"lr": lr} for lr in (1, 2, 3, 4)}
    stated = {"lr=1": {"val_accuracy": 0.82}, "lr=4": {"val_accuracy": 0.5}}
    folder = study(tmp_path / "rates", cells, [0, 1, 2], stated=stated, excluded={"lr=9": "parameters 9 > limit 5"})
    for seed, accuracy in enumerate((0.8, 0.81, 0.82)):
        in_study(folder, "lr=1", seed, accuracy)
        in_study(folder, "lr=2", seed, accuracy + (0.01, 0.03, 0.02)[seed])
    in_study(folder, "lr=3", 0, 0.8)
    in_study(folder, "lr=3", 1, None, status="failed", error="RunError: training loss is NaN at step 7")
    in_study(folder, "lr=3", 2, None, status="interrupted")
    return folder


def test_a_table_by_hand(rates: Path) -> None:
    results = collect([rates])
    assert (results.name, results.asks) == ("rates", "Which one?")
    frame = ResultTable(results, baseline="lr=1").frame().set_index("cell")
    assert list(frame.index) == ["lr=1", "lr=2", "lr=3", "lr=4", "lr=9"]
    first, second, third = (frame.loc[f"lr={n}"] for n in (1, 2, 3))
    assert (first["n"], first["mean"], first["sd"]) == (3, pytest.approx(0.81), pytest.approx(0.01))
    assert (first["to_stated"], second["difference"]) == (pytest.approx(-0.01), pytest.approx(0.02))
    # t = 0.02 / (0.01 / sqrt 3) = 3.4641, of 2 degrees of freedom; two cells are compared, one of them with a test
    assert second["p"] == pytest.approx(0.0742, abs=1e-4) and second["p_adjusted"] == second["p"]
    assert (third["n"], third["pairs"], third["difference"]) == (1, 1, pytest.approx(0.0))
    assert third["sd"] != third["sd"] and third["p"] != third["p"]  # missing, not 0
    assert frame.loc["lr=4", "n"] == 0 and frame.loc["lr=9", "n"] == 0
    assert [p for p in results.problems if "lr=3-seed2" in p and "interrupted" in p]


def test_the_texts_of_a_table(rates: Path) -> None:
    header, *lines = ResultTable(collect([rates]), baseline="lr=1").shown()
    by_cell = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert by_cell["lr=1"]["val_accuracy (%) ± sd"] == "81.00 ± 1.00"
    assert by_cell["lr=1"]["95 % CI"] == "78.52 to 83.48"
    assert by_cell["lr=2"]["less lr=1 (95 % CI)"] == "+2.00 (-0.48 to +4.48)"
    assert by_cell["lr=2"]["p (Holm)"] == "0.074" and by_cell["lr=2"]["seeds needed"] == "5"
    assert "p (Wilcoxon)" not in header
    assert by_cell["lr=1"]["less stated"] == "-1.00" and by_cell["lr=2"]["less stated"] == "-"
    assert by_cell["lr=3"]["val_accuracy (%) ± sd"] == "80.00"
    for never in ("lr=4", "lr=9"):
        assert by_cell[never]["val_accuracy (%) ± sd"] == by_cell[never]["95 % CI"] == "not measured"
        assert by_cell[never]["less lr=1 (95 % CI)"] == by_cell[never]["parameters"] == "not measured"
    assert by_cell["lr=4"]["stated"] == "50.00" and by_cell["lr=4"]["less stated"] == "not measured"
    assert by_cell["lr=3"]["flags"] == "diverged: seed 1 (RunError: training loss is NaN at step 7)"
    assert by_cell["lr=9"]["flags"] == "over budget: parameters 9 > limit 5"


def test_six_seeds_have_a_signed_rank_test(tmp_path: Path) -> None:
    folder = study(tmp_path / "six", {"a": {}, "b": {}}, list(range(6)))
    for seed in range(6):
        in_study(folder, "a", seed, 0.5)
        in_study(folder, "b", seed, 0.6 + seed / 100)
    header, first, second = ResultTable(collect([folder]), baseline="a").shown()
    place = header.index("p (Wilcoxon)")
    assert (first[place], second[place]) == ("-", "0.031") and len(header) == len(first) == len(second)


def test_markdown_latex_and_csv_hold_the_same_lines(rates: Path) -> None:
    table = ResultTable(collect([rates]), baseline="lr=1")
    text = table.markdown().splitlines()
    assert len(text) == 2 + 5 and {line.count("|") for line in text} == {text[0].count("|")}
    assert text[1].startswith("| --- | ---: | ---: |")
    assert table.latex().count(r"\\") == 1 + 5 and r"val\_accuracy (\%)" in table.latex()
    read = list(csv.DictReader(io.StringIO(table.frame().to_csv(index=False))))
    assert float(read[1]["difference"]) == pytest.approx(0.02) and read[3]["mean"] == ""
    assert markdown([["a"], ["x|y"]]).splitlines()[2] == r"| x\|y |"
    assert r"50\% \& \{a\_b\}" in latex([["h"], ["50% & {a_b}"]])


def test_latex_compiles_in_form_and_states_what_the_document_does(tmp_path: Path) -> None:
    """Each special letter escaped, as many cells in each line as columns, braces and environments closed."""
    hostile = r"[50%] a_b & {c} #1 $x^2 ~ \y"
    folder = study(tmp_path / "s", {hostile: {}, "*": {}}, [0, 1], stated={hostile: {"val_accuracy": 0.91}})
    for seed in (0, 1):
        in_study(folder, hostile, seed, 0.9 + seed / 100)
        in_study(folder, "*", seed, 0.8)
    table = ResultTable(collect([folder]), baseline="*")
    text = table.latex()
    comment, *lines = text.splitlines()
    assert comment == r"% \usepackage{booktabs}"
    plain = re.sub(r"\\[&%$#_{}]", "", "\n".join(lines))  # what is escaped is a letter
    assert not re.search(r"[%#~^_|±]", plain.replace("\\textasciitilde{}", "").replace("\\textasciicircum{}", ""))
    assert plain.count("$") % 2 == 0 and plain.count("{") == plain.count("}")
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
    rows = [line for line in plain.splitlines() if line.endswith(r" \\")]
    assert columns and len(rows) == 3 and all(line.count("&") == len(columns[1]) - 1 for line in rows)
    assert [line.startswith("{}") for line in rows] == [False, True, True]
    assert r"90.50 $\pm$ 0.71" in text and "91.00 & -0.50" in text and r"less *" in text
    assert text.rstrip().endswith(r"\end{tabular}")


def test_another_metric_is_shown_as_what_it_is(rates: Path) -> None:
    header, first, *_ = ResultTable(collect([rates]), "test_accuracy").shown()
    assert first[header.index("test_accuracy (%) ± sd")] == "not measured"
    header, first, *_ = ResultTable(collect([rates]), "macs").shown()
    assert first[header.index("macs ± sd")] == "5,000 ± 0"
    assert [number(v, False, "-") for v in (0.12345, 1234567.8, None)] == ["0.1235", "1,234,568", "-"]


def test_runs_of_a_name_with_other_settings_are_other_cells(tmp_path: Path) -> None:
    def made(run: str, seed: int, lr: float) -> dict[str, Any]:
        found = row("mine", run, seed, 0.5)
        found["config"]["model"]["optimizer"]["init_args"]["lr"] = lr
        return found

    for each in (made("run-1", 0, 0.1), made("run-2", 1, 0.1), made("run-3", 0, 0.2)):
        put(tmp_path / "mine", each)
    cells = collect([tmp_path]).cells
    assert {cell.name: sorted(cell.values("val_accuracy")) for cell in cells} == {
        "mine (lr=0.1)": [0, 1], "mine (lr=0.2)": [0],
    }  # fmt: skip
    put(tmp_path / "mine", {**made("run-4", 0, 0.2), "val_accuracy": 0.7})
    second = collect([tmp_path]).cell("mine (lr=0.2)")
    assert second.values("val_accuracy") == {0: pytest.approx(0.6)}  # a seed counts once


def test_controls_of_each_seed_are_one_cell(tmp_path: Path) -> None:
    for seed, control in ((0, "random_mask"), (1, "random_mask"), (0, "snip")):
        made = row("controls", f"{control}-{seed}", seed, 0.5)
        arguments = {"control": control, "from_round": f"logs/lot/s{seed}/checkpoints/round-2.ckpt", "mask_seed": seed}
        callbacks = [{"class_path": "smallnets.callbacks.LotteryControl", "init_args": arguments}]
        put(tmp_path / "controls", {**made, "config": {**made["config"], "trainer": {"callbacks": callbacks}}})
    put(tmp_path / "dense", row("dense", "run-1", 0, 0.9))
    results = collect([tmp_path])
    found = {cell.name: sorted(cell.values("val_accuracy")) for cell in results.cells}
    assert found == {"controls (control=random_mask)": [0, 1], "controls (control=snip)": [0], "dense": [0]}
    first, _, dense = results.cells
    assert beyond_axes(first, dense) == ["trainer.callbacks.LotteryControl"]  # and none of its arguments


def test_one_cell_in_two_studies_loses_no_rows(tmp_path: Path) -> None:
    folders = [study(tmp_path / name, {"same": {}}, [0]) for name in ("one", "two")]
    for folder, accuracy in zip(folders, (0.5, 0.7), strict=True):
        in_study(folder, "same", 0, accuracy)
    found = {cell.name: cell.values("val_accuracy") for cell in collect(folders).cells}
    assert found == {"one: same": {0: 0.5}, "two: same": {0: 0.7}}


def test_nothing_found_and_rows_cut_short_are_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        collect([tmp_path / "none"])
    with pytest.raises(UserError, match="no rows of finished runs in"):
        collect([tmp_path])
    path = put(tmp_path / "a", row("a", "run-1", 0, 0.5))
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match="run-1"):
        collect([tmp_path])
    put(tmp_path / "a", row("a", "run-2", 0, 0.5))
    results = collect([tmp_path])
    assert len(results.rows) == 1 and [p for p in results.problems if "run-1" in p and "damaged" in p]


def test_unknown_names_get_the_nearest(rates: Path) -> None:
    results = collect([rates])
    with pytest.raises(UserError, match="--metric: there is no figure 'test_acuracy'; nearest: test_accuracy"):
        results.check_metric("test_acuracy")
    with pytest.raises(UserError, match="--baseline: no cell is called 'lr=22'; nearest: lr=2"):
        results.cell("lr=22")


def cell(name: str = "a", axes: dict[str, Any] | None = None, **more: Any) -> Cell:
    return Cell(name, axes or {}, [row(name, "run-1", 0, **{"accuracy": 0.9, **more})])


def settings(optimizer: str, **arguments: Any) -> dict[str, Any]:
    return {"model": {"optimizer": {"class_path": optimizer, "init_args": arguments}}}


def test_settings_beyond_the_axes_are_shown() -> None:
    base = cell(config=settings("SGD", lr=0.1, weight_decay=5e-4, momentum=0.9), axes={"optimizer": "SGD"})
    other = cell(config=settings("Adam", lr=0.1, weight_decay=1e-3), axes={"optimizer": "Adam"})
    # The class is the axis, and momentum is the other class's; but weight decay is neither.
    assert beyond_axes(other, base) == ["model.optimizer.weight_decay"]
    assert flags(other, base, "val_accuracy") == ["differs: model.optimizer.weight_decay 0.001 (baseline 0.0005)"]
    named = cell(config=settings("SGD", lr=0.2, weight_decay=5e-4, momentum=0.9), axes={"lr": 0.2})
    assert flags(named, base, "val_accuracy") == []
    assert flags(base, base, "val_accuracy") == flags(base, None, "val_accuracy") == []
    less = cell(config=settings("SGD", lr=0.1, weight_decay=5e-4), axes={})
    assert beyond_axes(less, base) == ["model.optimizer.momentum"]


def test_unequal_epochs_budgets_and_readings_are_flagged() -> None:
    longer = cell(epochs=40, test_reads=2)
    assert flags(longer, cell(), "val_accuracy") == ["epochs 40 (baseline 20)"]
    assert flags(longer, cell(), "test_accuracy") == ["test set read 2 times", "epochs 40 (baseline 20)"]
    limits = {"parameters": 999, "macs": 5000}
    assert flags(cell(), None, "val_accuracy", limits) == ["over budget: parameters 1,000 > limit 999"]


def test_unequal_tuning_effort_is_flagged(tmp_path: Path) -> None:
    """From the study file to the table's flags; equal effort, or none that is known, is no flag."""
    spec = {"name": "s", "asks": "What?", "axes": {"model.optimizer.lr": [1, 2, 3]}}

    def flagged(tuned: Any) -> dict[str, str]:
        (tmp_path / "s.yaml").write_text(json.dumps({**spec, **({} if tuned is None else {"tuned": tuned})}))
        plan = make_plan(Study.read(tmp_path / "s.yaml"), tmp_path, Options())
        plan.write()
        assert stored_plan(Study.read(tmp_path / "s.yaml"), tmp_path) == plan
        in_study(plan.folder.path, "lr=1", 0, 0.5)
        frame = ResultTable(collect([plan.folder.path]), baseline="lr=1").frame()
        return dict(zip(frame["cell"], frame["flags"], strict=True))

    assert flagged({"lr=1": 20, "lr=2": 1}) == {
        "lr=1": "unequal tuning effort: 20 tried (cells: 1 to 20)",
        "lr=2": "unequal tuning effort: 1 tried (cells: 1 to 20)",
        "lr=3": "unequal tuning effort: not known how many tried (cells: 1 to 20)",
    }
    assert set(flagged(5).values()) == set(flagged(None).values()) == {""}
    with pytest.raises(UserError, match="tuned: how many configurations were tried, 1 or more, is expected, got 0"):
        flagged({"lr=1": 0})
    with pytest.raises(UserError, match="tuned: no cell is called 'lr=4'; nearest: lr="):
        flagged({"lr=4": 2})


@pytest.mark.parametrize(
    ("classes", "images", "accuracy", "at_chance"),
    # On 10,000 images five deviations are 0.015 for 10 classes and 0.005 for 100.
    [(10, 10_000, 0.1, True), (10, 10_000, 0.114, True), (10, 10_000, 0.116, False), (100, 10_000, 0.0148, True),
     (100, 10_000, 0.0152, False), (10, None, 0.147, True), (10, None, 0.148, False)],
)  # fmt: skip
def test_chance_is_five_deviations_wide(classes: int, images: int | None, accuracy: float, at_chance: bool) -> None:
    one = cell(num_classes=classes, test_size=images, test_accuracy=accuracy)
    assert bool(flags(one, None, "test_accuracy")) is at_chance
    assert flags(one, None, "seconds") == []


def test_the_resolution_is_that_of_one_image() -> None:
    rows = [
        row("a", "r", seed, 0.5, val_size=size, test_size=10_000) for seed, size in enumerate([150, 150, 5000, None])
    ]
    val = "Resolution: 150 validation images, one is 0.67 points or 5,000 validation images, one is 0.02 points."
    assert resolution(rows, "val_accuracy") == resolution(rows, "val_accuracy_last") == val
    assert resolution(rows, "test_accuracy") == "Resolution: 10,000 test images, one is 0.01 points."
    assert (
        resolution(rows, "train_accuracy_last") is resolution(rows, "seconds") is resolution(rows[3:], "val_accuracy")
    )
    # On 150 images five deviations above a tenth are 0.222, on 5,000 they are 0.121.
    at_chance = [flags(cell(val_size=size, accuracy=0.2), None, "val_accuracy") for size in (150, 5000)]
    assert bool(at_chance[0]) and not at_chance[1]


def test_a_front_by_hand() -> None:
    #         on it      beaten     equal: both on it       cheaper, worse  costs more for the same
    points = [(10, 0.9), (20, 0.8), (5, 0.7), (5, 0.7), (1, 0.1), (11, 0.9)]
    assert front(points) == [True, False, True, True, True, False]
    assert front([]) == []


def test_the_pareto_figure_keeps_stated_points_off_the_front(rates: Path) -> None:
    stated = [{"name": "paper", "accuracy": 0.99, "parameters": 10.0}, {"name": "no count", "accuracy": 0.9}]
    frame = ParetoFigure(collect([rates]), stated=stated).frame().set_index("name")
    assert list(frame.index) == ["lr=1", "lr=2", "lr=3", "lr=1 (stated)", "paper"]
    assert list(frame["front"]) == [False, True, False, False, False]
    assert frame.loc["lr=1 (stated)", "parameters"] == 1000 and frame.loc["paper", "source"] == "stated"


def test_latencies_of_two_machines_are_never_in_one_figure(tmp_path: Path) -> None:
    for name, accuracy, latency, machine in (("a", 0.9, 2.0, "one"), ("b", 0.8, 1.0, "one"), ("c", 0.7, 5.0, "two")):
        put(tmp_path / name, row(name, "run-1", 0, accuracy))
        kept = {"latency_ms": latency, "latency_machine": machine}
        (tmp_path / name / "run-1" / "latency.json").write_text(json.dumps(kept))
    put(tmp_path / "d", row("d", "run-1", 0, 0.99))  # not measured
    results = collect([tmp_path])
    with pytest.raises(UserError, match="latencies of 2 machines are not put into one figure: one; two"):
        ParetoFigure(results, cost="latency_ms").frame()
    stated = [{"name": "paper", "accuracy": 0.99, "latency_ms": 0.1}]
    figure = ParetoFigure(results, cost="latency_ms", stated=stated, machine="one")
    frame = figure.frame().set_index("name")
    assert frame["latency_ms"].to_dict() == {"a": 2.0, "b": 1.0, "paper": 0.1}
    assert list(frame["front"]) == [True, True, False] and list(frame["machine"]) == ["one", "one", ""]
    assert "latency of one image, ms (one)" in json.dumps(figure.plot().to_dict())
    out = tmp_path / "out"
    write_report(results, out, Asked())
    assert {path.name for path in out.glob("pareto-latency*.csv")} == {
        "pareto-latency_ms-1.csv", "pareto-latency_ms-2.csv",
    }  # fmt: skip
    assert "Measured on one." in (out / "index.html").read_text()


def test_the_checklist(tmp_path: Path) -> None:
    def counts(n: int) -> dict[str, int]:
        return {"parameters": n, "nonzero_parameters": n, "macs": 5 * n, "bytes": 4 * n}

    channels = {"callback": "ChannelPruning", "criterion": "l1", "before": counts(1000), "after": counts(400)}
    last = {"step": 9, "density": 0.1, "kept": 90, "removed": 810, "total": 900, "macs": 1000, "packed_bytes": 1024}
    sparse = {"callback": "PruningSchedule", "criterion": "magnitude", "scope": "global", "rounds": [last]}
    put(tmp_path / "channels", row("channels", "run-1", 0, 0.8, pruning=[channels]))
    put(tmp_path / "masks", row("masks", "run-1", 0, 0.8, pruning=[sparse]))
    frame = Checklist(collect([tmp_path])).frame().set_index("cell")
    ratios = ["parameters_ratio", "bytes_ratio", "macs_ratio"]
    assert list(frame.loc["channels", ratios]) == [2.5, 2.5, 2.5]
    assert list(frame.loc["masks", ratios]) == [pytest.approx(1000 / 190), 4.0, 5.0]
    assert list(frame["operating_points"]) == [2, 2] and not frame["dense_parent"].any() and not frame["control"].any()
    put(tmp_path / "dense", row("dense", "run-1", 0, 0.9))
    put(tmp_path / "random", row("random", "run-1", 0, 0.5, pruning=[{**sparse, "criterion": "random"}]))
    found = Checklist(collect([tmp_path]))
    reinit = {"callback": "LotteryControl", "control": "random_reinit", "density": 0.1, "kept": 90, "total": 900}
    put(tmp_path / "r", row("r", "run-1", 0, 0.5, net="Third", pruning=[reinit]))
    assert not Checklist(collect([tmp_path / "r"])).frame()["control"].any()  # its masks were chosen
    (tmp_path / "r" / "run-1" / "row.json").unlink()
    assert found.frame()["dense_parent"].all() and found.frame()["control"].all()
    text = found.markdown()
    assert "2 (fewer than 5)" in text and "| dense | -10.00 (one pair) |" in text
    assert "2.50x" in text and "FLOPs = 2 MACs" in text and "900 weights with masks, of 1,000 parameters" in text
    other = row("other", "run-1", 0, 0.5, net="Another", pruning=[channels])
    put(tmp_path / "other", other)
    assert not Checklist(collect([tmp_path])).frame().set_index("cell").loc["other", "dense_parent"]
    assert Checklist(collect([tmp_path / "dense"])).markdown() == ""


def test_the_checklist_sets_each_network_beside_its_own_dense_parent(tmp_path: Path) -> None:
    """By hand: -0.02 and -0.04 is -0.03 with a half width of 12.706 * 0.014142 / sqrt 2 = 0.127062."""
    folder = study(tmp_path / "lot", {"ticket": {}, "reinit": {}, "slim": {}, "far": {}, "dense": {}}, [0, 1, 10, 11])
    sizes = {"before": {"parameters": 1000, "bytes": 4, "macs": 4}, "after": {"parameters": 500, "bytes": 2, "macs": 2}}
    channels = {"callback": "ChannelPruning", "criterion": "l1", **sizes}
    for seed, loss in ((0, 0.02), (1, 0.04)):
        accuracies = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9 - loss]
        made = in_study(folder, "ticket", seed, 0.9 - loss, pruning=[lottery_record(accuracies)])
        start = f"lightning_logs/lot/{made['run']}/checkpoints/round-5.ckpt"
        # A control of another seed is compared with the round 0 of its lottery's.
        in_study(folder, "reinit", seed + 10, 0.5 - loss, pruning=[control_record("random_reinit", 0.03, start, 5)])
        dense = in_study(folder, "dense", seed, 0.8)
        began = row("lot", "-", 0, 0)["config"]
        began["model"]["init_from"] = f"lightning_logs/lot/{dense['run']}/checkpoints/best.ckpt"
        in_study(folder, "slim", seed + 10, 0.8 - loss, pruning=[channels], config=began, parameters=500)
    in_study(folder, "far", 0, 0.7, pruning=[{**channels, "before": {**sizes["before"], "parameters": 999}}])
    found = Checklist(collect([folder]))
    frame = found.frame().set_index("cell")
    assert frame["parent"].fillna("none").to_dict() == {
        "ticket": "round 0", "reinit": "ticket, round 0", "slim": "dense", "far": "none",
    }  # fmt: skip
    assert frame.loc[["ticket", "slim"], "difference"].tolist() == [pytest.approx(-0.03)] * 2
    assert frame.loc["ticket", "difference_low"] == pytest.approx(-0.03 - 0.127062, abs=1e-6)
    assert (frame.loc["reinit", "pairs"], frame.loc["reinit", "difference"]) == (2, pytest.approx(-0.43))
    # Halvings to 32 of 1,000, the control's 0.03, and half the parameters: 7 operating points.
    assert frame["operating_points"].tolist() == [7] * 4 and frame["enough_points"].all()
    header, *lines = found.shown()
    assert lines[0][header.index("val_accuracy less it (95 % CI)")] == "-3.00 (-15.71 to +9.71)"
    assert lines[3][-3:-1] == ["none", "-"] and lines[0][header.index("operating points")] == "7"
