"""Cells that need another cell's run of the same seed: made first, once, and named by what made it."""

import json
import random
import re
import shlex
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from study_helpers import Bench, Options
from test_study_run import found, steps, wait_for

from smallnets.errors import UserError
from smallnets.results import rows
from smallnets.results.study_folder import StudyFolder
from smallnets.studies.needs import filled, in_order
from smallnets.studies.plan import Plan, make_plan, stored_plan
from smallnets.studies.study import Study

LR, FROM = "model.optimizer.lr", "model.init_from"
ROW = "{ticket}/row.json"
# The control stands before what it needs, and the grandchild before both.
CELLS = {
    "grandchild": {LR: 4, "needs": "control", FROM: "{control}/row.json"},
    "control": {LR: 3, "needs": ["ticket"], FROM: ROW},
    "ticket": {LR: 2},
    "other": {LR: 1},
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "bench")
    bench.write(axes=None, cells=CELLS)
    return bench


def read(folder: Path, small: bool = False, **spec: Any) -> Study:
    path = folder / "s.yaml"
    path.write_text(json.dumps({"asks": "What?", **spec}))
    return Study.read(path, small)


def plan(folder: Path, root: str = "", **spec: Any) -> Plan:
    return make_plan(read(folder, **spec), Path(root), Options())


def digests(made: Plan) -> dict[str, str]:
    return {cell.cell: cell.digest for cell in made.cells}


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_runs_stand_behind_what_they_need_and_their_lines_can_be_pasted(tmp_path):
    made = plan(tmp_path, cells=CELLS, seeds=[5, 7], test=False)
    assert [cell.cell for cell in made.cells] == list(CELLS), "tables keep the file's order"
    runs = list(made.runs())
    assert [(run.cell.cell, run.seed) for run in runs] == [
        (cell, seed) for seed in (5, 7) for cell in ("ticket", "control", "grandchild", "other")
    ]
    lines = {(run.cell.cell, run.seed): shlex.split(line) for run, line in zip(runs, made.commands(), strict=True)}
    for seed in (5, 7):
        ticket = f"lightning_logs/s/ticket-seed{seed}-{digests(made)['ticket']}"
        assert f"--{FROM}={ticket}/row.json" in lines["control", seed]
        assert f"--run={Path(ticket).name}" in lines["ticket", seed]
        control = f"lightning_logs/s/control-seed{seed}-{digests(made)['control']}"
        assert f"--{FROM}={control}/row.json" in lines["grandchild", seed]


def test_a_stored_plan_knows_its_needs(tmp_path):
    made = plan(tmp_path, root=str(tmp_path), cells=CELLS)
    made.write()
    again = stored_plan(Study.read(tmp_path / "s.yaml"), tmp_path)
    assert again == made and list(again.commands()) == list(made.commands())


def test_a_digest_is_of_what_made_the_needed_run_and_of_no_name_or_place(tmp_path):
    first = digests(plan(tmp_path, cells=CELLS))
    assert digests(plan(tmp_path, root="/elsewhere", cells=CELLS)) == first
    renamed = {
        "winner": CELLS["ticket"],
        "control": {LR: 3, "needs": "winner", FROM: "{winner}/row.json"},
        "grandchild": CELLS["grandchild"],
    }
    found = digests(plan(tmp_path, cells=renamed))
    assert (found["winner"], found["control"], found["grandchild"]) == tuple(
        first[cell] for cell in ("ticket", "control", "grandchild")
    )
    other = digests(plan(tmp_path, cells={**CELLS, "ticket": {LR: 2.5}}))
    assert {cell for cell in CELLS if other[cell] != first[cell]} == {"ticket", "control", "grandchild"}
    # Also where no option names the run.
    bare = {**CELLS, "other": {LR: 1, "needs": "ticket"}}
    assert digests(plan(tmp_path, cells=bare))["other"] != first["other"]


def test_an_axis_crosses_needs_and_a_list_is_filled(tmp_path):
    rounds = ["{ticket}/round-1.ckpt", "{ticket}/round-2.ckpt"]
    cells = {"ticket": {LR: 2}, "control": {LR: 3, "needs": "ticket", FROM: rounds, "f": "{epoch}-{seed}"}}
    made = plan(tmp_path, cells=cells, axes={"model.net": ["conv2", "conv4"]})
    by_name = {run.cell.cell: run for run in made.runs()}
    assert list(by_name) == ["ticket,conv2", "ticket,conv4", "control,conv2", "control,conv4"]
    for net in ("conv2", "conv4"):
        run = by_name[f"control,{net}"]
        folder = f"lightning_logs/s/{by_name[f'ticket,{net}'].name}"
        given = [each for each in made.fit_command(run) if each.startswith(f"--{FROM}=")]
        assert json.loads(given[0].partition("=")[2]) == [f"{folder}/round-1.ckpt", f"{folder}/round-2.ckpt"]
        assert "--f={epoch}-{seed}" in made.fit_command(run), "other braces stay"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"a": {LR: 1, "needs": "tiket"}, "ticket": {LR: 2}}, "it needs 'tiket': no cell is called so; nearest: tic"),
        ({"a": {LR: 1, "needs": "a"}}, "cells need each other in a circle: a needs a"),
        ({"a": {"needs": "b"}, "b": {"needs": "c"}, "c": {"needs": "a"}}, "cells need each other in a circle: "),
        ({"a": {LR: 1, FROM: ROW}, "ticket": {LR: 2}}, "cell a: model.init_from: {ticket} is no run that it"),
        ({"a": {"needs": "ticket", FROM: "{tickt}/x"}, "ticket": {LR: 2}}, "{tickt} is no run that it needs; needs: "),
        ({"a": {"needs": 3}}, "cells: a: needs: a cell's name, or a list of such, is expected, got 3"),
    ],
)  # fmt: skip
def test_each_mistake_is_told(tmp_path, cells, message):
    with pytest.raises(UserError) as told:
        read(tmp_path, cells=cells)
    assert message in str(told.value) and str(told.value).startswith(f"study {tmp_path}/s.yaml: ")


def test_a_circle_is_told_in_its_order(tmp_path):
    with pytest.raises(UserError) as told:
        read(tmp_path, cells={"a": {"needs": "b"}, "b": {"needs": "c"}, "c": {"needs": "a"}})
    shown = str(told.value).rpartition("circle: ")[2].split(" needs ")
    assert shown[0] == shown[-1] and len(shown) == 4
    assert all((one, two) in {("a", "b"), ("b", "c"), ("c", "a")} for one, two in pairwise(shown))


def test_needs_have_their_place(tmp_path):
    for spec, message in (
        ({"set": {"needs": "a"}}, "set: needs is not set here: a cell says it"),
        ({"axes": {"needs": ["a"]}}, "axes: 'needs' is no option of fit"),
        ({"zip": {"needs": ["a"]}}, "axes: 'needs' is no option of fit"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            read(tmp_path, **spec)
    with pytest.raises(UserError, match="cell control: it needs 'ticket': `keep` of quick leaves it out"):
        read(tmp_path, True, cells=CELLS, quick={"keep": ["control"]})
    assert [c.name for c in read(tmp_path, True, cells=CELLS, quick={"keep": ["control", "ticket"]}).cells] == [
        "control",
        "ticket",
    ]


def test_what_a_left_out_cell_was_needed_for_is_left_out(tmp_path):
    cells = {**CELLS, "ticket": {LR: 9}}
    made = make_plan(read(tmp_path, cells=cells, budget={"parameters": 5}), Path(), Options())
    assert [cell.cell for cell in made.cells] == ["other"]
    assert made.excluded["control"] == "it needs ticket, which is left out"
    assert made.excluded["grandchild"] == "it needs control, which is left out"


def test_orders_and_texts_in_the_head():
    needs = {"d": "cb", "a": "", "c": "a", "b": "a"}
    assert in_order("dcba", str, needs.__getitem__) == ["a", "c", "b", "d"]
    assert in_order("abcd", str, needs.__getitem__) == ["a", "b", "c", "d"]
    assert in_order("db", str, needs.__getitem__) == ["b", "d"], "what is not there is passed over"
    assert filled('["{a}/x", "{b}", {"a": 1}]', {"a": "A"}) == '["A/x", "{b}", {"a": 1}]'


# -- running ----------------------------------------------------------------------------------------------------------


def parents(logs: Path) -> dict[tuple[str, int], str | None]:
    return {(row["cell"], row["seed"]): row.get("parent") for row in rows(logs)}


def fits(logs: Path) -> dict[str, int]:
    """Run -> how often `fit` was started."""
    return {p.stem: p.read_text().count("$ smallnets fit") for p in StudyFolder(logs).runs.glob("*.log")}


def test_what_is_needed_is_made_first_and_once(bench):
    bench.run(slots=4)
    runs = {(row["cell"], row["seed"]): row["run"] for row in rows(bench.logs)}
    assert len(runs) == 8 and not list(bench.notes.glob("*.early"))
    for (cell, seed), parent in parents(bench.logs).items():
        wanted = {"control": "ticket", "grandchild": "control"}.get(cell)
        assert parent == (runs[wanted, seed] if wanted else None)
    made = {run: (bench.logs / run / "row.json").stat().st_mtime_ns for run in runs.values()}
    # A new control starts from the stored run; nothing else is touched.
    bench.write(axes=None, cells={**CELLS, "second": {LR: 5, "needs": "ticket", FROM: ROW}})
    assert "8 done, 2 to do" in bench.run(slots=2)
    assert {run: (bench.logs / run / "row.json").stat().st_mtime_ns for run in made} == made
    assert set(fits(bench.logs).values()) == {1}
    assert {k: v for k, v in parents(bench.logs).items() if k[0] == "second"} == {
        ("second", seed): runs["ticket", seed] for seed in (0, 1)
    }


def test_slots_are_not_left_empty_by_runs_that_wait(bench):
    """Two slots: with the ticket of seed 0 in one, the other takes what needs nothing."""
    (bench.notes / "hold").touch()
    runner = bench.start(pause=0.01, slots=2)
    wait_for(lambda: steps(bench) == 4)
    assert sorted(p.stem.split("-")[0] for p in bench.notes.glob("*.pid")) == ["other", "ticket"]
    (bench.notes / "hold").unlink()
    assert runner.wait(60) == 0
    runner.stdout.close()
    assert len(rows(bench.logs)) == 8 and not list(bench.notes.glob("*.early"))


def test_a_failed_one_makes_its_dependants_rows_with_the_reason(bench):
    bench.write(axes=None, cells={**CELLS, "ticket": {LR: 100}}, seeds=1)
    out = bench.run(code=1, slots=2)
    by_cell = {row["cell"]: row for row in rows(bench.logs)}
    assert {cell: row["status"] for cell, row in by_cell.items()} == {
        "ticket": "failed", "control": "failed", "grandchild": "failed", "other": "finished",
    }  # fmt: skip
    assert by_cell["control"]["error"] == "it needs ticket seed 0, which failed: training loss is NaN"
    assert by_cell["grandchild"]["error"].startswith("it needs control seed 0, which failed: it needs ticket seed 0")
    assert "control seed 0: FAILED: it needs ticket seed 0" in out
    assert fits(bench.logs) == {by_cell["ticket"]["run"]: 1, by_cell["other"]["run"]: 1}, "nothing was started"

    assert "1 done, 3 failed" in bench.run(code=1)
    (bench.folder / "stand_in.py").write_text((bench.folder / "stand_in.py").read_text().replace("lr >= 100", "False"))
    bench.run(retry=True, slots=2)
    assert {row["status"] for row in rows(bench.logs)} == {"finished"} and not list(bench.notes.glob("*.early"))


def test_killed_over_and_over_it_ends_with_the_rows_of_the_undisturbed_study(bench, tmp_path):
    """SIGKILL of the runner at random moments, before, between and after the needed runs."""
    undisturbed = Bench(tmp_path / "undisturbed")
    undisturbed.write(axes=None, cells=CELLS)
    undisturbed.run(slots=2)
    draw = random.SystemRandom()
    for _ in range(4):
        before = steps(bench)
        runner = bench.start(pause=0.05, slots=2)
        wait_for(lambda r=runner, b=before: r.poll() is not None or steps(bench) >= b + 12)
        time.sleep(draw.uniform(0, 0.3))
        runner.kill()
        runner.wait()
        runner.stdout.close()
    bench.run(slots=2)
    assert found(bench.logs) == found(undisturbed.logs)
    assert parents(bench.logs) == parents(undisturbed.logs)
    assert not bench.twice() and not list(bench.notes.glob("*.early"))


def test_two_runners_wait_for_each_others_needed_runs(bench):
    bench.write(axes=None, cells=CELLS, seeds=3)
    runners = [bench.start(pause=0.03, slots=2) for _ in range(2)]
    outs = [r.communicate(timeout=120)[0] for r in runners]
    assert [r.returncode for r in runners] == [0, 0], outs
    assert len(rows(bench.logs)) == 12 and not bench.twice() and not list(bench.notes.glob("*.early"))
    assert set(fits(bench.logs).values()) == {1}
