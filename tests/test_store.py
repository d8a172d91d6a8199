"""Rows collected: from studies, from plain runs, from damaged and older files; and as a DataFrame."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from study_helpers import Options

from smallnets.errors import RunError, UserError
from smallnets.results import frame, read_row, rows, update_row, write_row
from smallnets.results.store import FIELDS, RowWarning
from smallnets.studies.plan import Plan, make_plan
from smallnets.studies.state import write_record
from smallnets.studies.study import Study


def planned(folder: Path, lrs: list[Any], **more: Any) -> Plan:
    spec = {"name": "s", "asks": "What?", "axes": {"model.optimizer.lr": lrs}, **more}
    (folder / "s.yaml").write_text(json.dumps(spec))
    plan = make_plan(Study.read(folder / "s.yaml"), folder, Options())
    plan.write()
    return plan


def finish(plan: Plan, run: Any, **row: Any) -> None:
    folder = plan.run_folder(run).path
    folder.mkdir(parents=True)
    write_row(folder, {"name": "s", "run": run.name, "status": "finished", "seed": run.seed, **row})
    write_record(plan, run, state="done")


@pytest.fixture
def studied(tmp_path: Path) -> Plan:
    """Two cells and two seeds: three runs that finished, one that failed before it could write a row."""
    plan = planned(tmp_path, [1, 2], seeds=2, stated={"lr=2": {"val_accuracy": 0.9}})
    for run in plan.runs():
        if (run.cell.cell, run.seed) == ("lr=2", 1):
            write_record(plan, run, state="failed", error="no memory")
        else:
            finish(plan, run, val_accuracy=run.cell.axes["lr"] / 10 + run.seed / 100)
    return plan


def test_a_row_says_cell_axes_seed_figures_and_stated_values(studied):
    found = {(row["cell"], row["seed"]): row for row in rows(studied.folder.path)}
    assert found.keys() == {(f"lr={lr}", seed) for lr in (1, 2) for seed in (0, 1)}
    assert found["lr=1", 1]["val_accuracy"] == 0.11 and found["lr=2", 0]["axes"] == {"lr": 2}
    assert found["lr=2", 0]["stated"] == {"val_accuracy": 0.9} and found["lr=1", 0]["stated"] == {}
    assert found["lr=1", 0]["digest"] == found["lr=1", 1]["digest"] != found["lr=2", 0]["digest"]
    failed = found["lr=2", 1]
    assert failed["status"] == "failed" and failed["error"] == "no memory" and failed["val_accuracy"] is None
    assert all(set(FIELDS) <= set(row) and row["current"] for row in found.values())
    assert rows(studied.root / "lightning_logs") == rows(studied.folder.path)


def test_what_the_study_no_longer_has_is_kept_apart(studied, tmp_path):
    planned(tmp_path, [2, 3], seeds=[0])
    assert [(row["cell"], row["seed"]) for row in rows(studied.folder.path)] == [("lr=2", 0)]
    every = rows(studied.folder.path, old=True)
    assert len(every) == 4 and [row["current"] for row in every].count(True) == 1


def test_a_renamed_cells_rows_have_the_new_name(studied, tmp_path):
    planned(tmp_path, [], axes={}, cells={"mine": {"model.optimizer.lr": 1}}, seeds=2)
    assert {row["cell"] for row in rows(studied.folder.path)} == {"mine"}


def test_a_run_started_by_hand_is_a_row_too(studied):
    run = next(studied.runs())
    studied.folder.record(run.name).unlink()
    assert len(rows(studied.folder.path)) == 4
    again = next(row for row in rows(studied.folder.path) if row["run"] == run.name)
    assert (again["cell"], again["seed"]) == (run.cell.cell, run.seed)


def test_a_row_cut_short_is_named_and_left_out(studied):
    path = studied.run_folder(next(studied.runs())).path / "row.json"
    path.write_text(path.read_text()[:40])
    problems: list[str] = []
    assert len(rows(studied.folder.path, on_problem=problems.append)) == 3
    assert len(problems) == 1 and str(path) in problems[0] and "left out" in problems[0]
    with pytest.warns(RowWarning, match=r"row\.json is damaged"):
        rows(studied.folder.path)


def test_newer_rows_are_named_and_left_out(studied):
    path = studied.run_folder(next(studied.runs())).path / "row.json"
    for schema in (3, 0, "2", True):
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
        problems: list[str] = []
        assert len(rows(studied.folder.path, on_problem=problems.append)) == 3
        assert f"schema {schema}; this version of smallnets reads up to 2; it is left out" in problems[0]
        with pytest.raises(RunError, match=f"has schema {schema}; this version"):
            read_row(path.parent)


def test_a_row_of_schema_1_is_read_in_the_form_of_schema_2(tmp_path):
    """What it does not tell is null; its seeds are those that its configuration names, else the run's."""
    config = {
        "data": {"class_path": "smallnets.data.Digits", "init_args": {"order_seed": 5, "augment_seed": None}},
        "trainer": {
            "callbacks": [{"class_path": "EMA"}, {"class_path": "LotteryTicket", "init_args": {"mask_seed": 0}}]
        },
    }
    old = {"schema": 1, "name": "a", "run": "r", "status": "finished", "seed": 3, "split_seed": 7, "config": config}
    (tmp_path / "row.json").write_text(json.dumps(old))
    row = read_row(tmp_path)
    assert row["seeds"] == {"split": 7, "init": 3, "order": 5, "augment": 3, "mask": 0}
    assert row["schema"] == 2 and row["val_size"] is row["split_digest"] is row["selection"] is None
    assert {k: v for k, v in row.items() if k in old} == {**old, "schema": 2}
    assert rows(tmp_path)[0]["seeds"] == row["seeds"] and rows(tmp_path)[0]["macs"] is None
    # Written again, it is a row of this version, and stays what it is.
    update_row(tmp_path, test_reads=1)
    assert read_row(tmp_path) == {**row, "test_reads": 1}
    (tmp_path / "row.json").write_text('{"schema": 1, "status": "failed", "config": null}')
    assert read_row(tmp_path)["seeds"] == {"split": None, "init": None, "order": None, "augment": None, "mask": None}


def test_plain_runs_and_a_single_one(tmp_path):
    for n in (1, 2):
        (tmp_path / f"logs/a/run-{n}/checkpoints").mkdir(parents=True)
        write_row(tmp_path / f"logs/a/run-{n}", {"name": "a", "run": f"run-{n}", "status": "finished", "seed": n})
    (tmp_path / "logs/b/run-1").mkdir(parents=True)
    found = rows(tmp_path / "logs")
    assert [(row["cell"], row["run"], row["axes"], row["net"]) for row in found] == [
        ("a", "run-1", {}, None), ("a", "run-2", {}, None),
    ]  # fmt: skip
    assert [row["run"] for row in rows(tmp_path / "logs/a/run-2")] == ["run-2"]
    with pytest.raises(UserError, match="no folder"):
        rows(tmp_path / "none")


def test_a_frame_has_a_column_an_axis_and_a_column_a_figure(studied):
    table = frame(studied.folder.path)
    assert list(table.columns)[:4] == ["cell", "lr", "seed", "status"]
    assert table.groupby("lr")["val_accuracy"].mean().round(6).to_dict() == {1: 0.105, 2: 0.2}
    assert table[table.cell == "lr=2"]["stated_val_accuracy"].tolist() == [0.9, 0.9]
    assert "config" not in table.columns and len(table) == 4


def test_rows_are_read_without_torch_and_pandas():
    check = "import sys, smallnets.results; assert not {'torch', 'pandas', 'lightning'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
