"""Studies run by processes that are killed: nothing is lost, nothing is done twice."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_helpers import Bench

from smallnets.cli import main
from smallnets.errors import UserError
from smallnets.results import rows, update_row
from smallnets.results.study_folder import StudyFolder


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


# What of a row says what was found; the number of test readings is that of a run cut in the midst of one.
FOUND = ("cell", "seed", "status", "error", "val_accuracy", "test_accuracy", "steps", "digest", "axes", "run")


def found(logs: Path) -> list[dict[str, Any]]:
    return sorted(({k: row[k] for k in FOUND} for row in rows(logs)), key=lambda row: row["run"])


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def steps(bench: Bench) -> int:
    """The steps in the checkpoints of all runs."""
    return sum(json.loads(p.read_text())["step"] for p in bench.logs.glob("*/checkpoints/last.ckpt"))


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


EXPECTED = [
    {"val_accuracy": round(0.5 + lr / 1000 + seed / 100, 6), "cell": f"lr={lr}", "seed": seed}
    for lr in (1, 2)
    for seed in (0, 1)
]


def test_a_study_runs_once_and_only_what_is_new_is_added(bench):
    bench.write()
    out = bench.run(slots=2)
    assert "rates: 4 runs (2 cells x 2 seeds): 4 to do; 2 slots of 1 thread" in out
    assert re.findall(r"\[(\d)/4\]", out) == ["1", "2", "3", "4"]
    assert [{k: row[k] for k in EXPECTED[0]} for row in found(bench.logs)] == EXPECTED
    assert all(row["test_reads"] == 1 for row in rows(bench.logs))
    assert not bench.twice()

    made = {p.name: p.stat().st_mtime_ns for p in bench.logs.glob("*/row.json")}
    assert "4 done" in bench.run()
    bench.write(axes={"model.optimizer.lr": [2, 3, 1]}, seeds=[0, 1, 5])
    assert "4 done, 5 to do" in bench.run(slots=3)
    assert len(found(bench.logs)) == 9
    assert {p.name: p.stat().st_mtime_ns for p in bench.logs.glob("*/row.json")}.keys() == made.keys()
    assert all(len(p.read_text().split()) == 1 for p in bench.notes.glob("*.tested"))


def test_killed_over_and_over_it_ends_with_the_rows_of_the_undisturbed_study(bench, tmp_path):
    """SIGKILL of the runner at random moments, from its first import to its last row, and of its runs."""
    undisturbed = Bench(tmp_path / "undisturbed")
    undisturbed.write()
    undisturbed.run(slots=2)
    bench.write()
    draw = random.SystemRandom()
    for attempt in range(4):
        runner = bench.start(pause=0.1, slots=2)
        before = steps(bench)
        wait_for(lambda r=runner, b=before: r.poll() is not None or steps(bench) >= b + 3)
        time.sleep(draw.uniform(0, 0.3))
        if attempt % 2:
            runner.kill()
            runner.wait()
        else:
            for mark in bench.notes.glob("*.pid"):
                if (text := mark.read_text()) and alive(int(text)):
                    os.kill(int(text), signal.SIGKILL)
                    break
            time.sleep(0.2)
            runner.kill()
            runner.wait()
        runner.stdout.close()
    bench.run(slots=2)
    assert found(bench.logs) == found(undisturbed.logs)
    assert not bench.twice(), "a run was worked on by two processes"
    assert all(row["test_reads"] <= 2 for row in rows(bench.logs))


def test_a_killed_runner_takes_its_runs_with_it_and_keeps_their_steps(bench):
    bench.write(seeds=1)
    runner = bench.start(pause=0.3, slots=2)
    wait_for(lambda: steps(bench) >= 4)
    pids = [int(p.read_text()) for p in bench.notes.glob("*.pid")]
    assert len(pids) == 2 and all(map(alive, pids))
    runner.kill()
    runner.communicate()
    wait_for(lambda: not any(map(alive, pids)), 5)
    assert steps(bench) >= 4 and not rows(bench.logs)
    assert "2 half-done" in bench.run()
    assert not bench.twice() and len(rows(bench.logs)) == 2


def test_a_child_that_outlives_its_runner_is_not_started_a_second_time(bench):
    """As if the kernel did not tell it of the runner's death: it holds its lock, and the next runner waits for it."""
    bench.write(seeds=1, axes={"model.optimizer.lr": [1]})
    deaf = (bench.folder / "stand_in.py").read_text()
    (bench.folder / "stand_in.py").write_text("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + deaf)
    (bench.notes / "hold").touch()
    runner = bench.start(pause=0.01)
    wait_for(lambda: steps(bench) == 2)
    pid = int(next(bench.notes.glob("*.pid")).read_text())
    runner.kill()
    runner.communicate()
    assert alive(pid)

    second = bench.start(pause=0.01)
    lines = iter(second.stdout.readline, "")
    assert any("waiting for 1 that another process works on: lr=1-seed0-" in line for line in lines)
    assert steps(bench) == 2
    (bench.notes / "hold").unlink()
    assert second.wait(60) == 0
    second.stdout.close()
    assert not bench.twice() and not alive(pid)
    assert [row["test_accuracy"] for row in rows(bench.logs)] == [pytest.approx(0.491)]


def test_two_runners_share_a_study(bench):
    bench.write(seeds=4)
    runners = [bench.start(pause=0.05, slots=2) for _ in range(2)]
    outs = [r.communicate(timeout=120)[0] for r in runners]
    assert [r.returncode for r in runners] == [0, 0], outs
    assert len(found(bench.logs)) == 8 and not bench.twice()
    assert all(row["test_reads"] == 1 for row in rows(bench.logs))
    assert sum(out.count("\n[") for out in outs) == 8, "each run is somebody's once"


def test_a_failed_run_is_a_row_and_the_others_go_on(bench):
    bench.write(axes={"model.optimizer.lr": [100, 1]}, seeds=1)
    out = bench.run(code=1)
    assert "lr=100 seed 0: FAILED: training loss is NaN" in out
    by_cell = {row["cell"]: row for row in rows(bench.logs)}
    assert by_cell["lr=100"]["status"] == "failed" and by_cell["lr=100"]["error"] == "training loss is NaN"
    assert by_cell["lr=100"]["test_accuracy"] is None and by_cell["lr=1"]["status"] == "finished"
    log = StudyFolder(bench.logs).output(by_cell["lr=100"]["run"])
    assert log.read_text().count("$ smallnets fit") == 1

    assert "1 done, 1 failed" in bench.run(code=1)
    assert log.read_text().count("$ smallnets fit") == 1, "a failed run is not done again unasked"
    (bench.folder / "stand_in.py").write_text((bench.folder / "stand_in.py").read_text().replace("lr >= 100", "False"))
    bench.run(retry=True)
    assert {row["status"] for row in rows(bench.logs)} == {"finished"}


def test_a_failed_run_that_is_tried_again_and_killed_while_it_starts_has_not_failed_again(bench):
    """`fit` says in the row that the run goes on; until then the row is of the start that failed."""
    bench.write(axes={"model.optimizer.lr": [100]}, seeds=1)
    bench.run(code=1)
    (run,) = bench.logs.glob("lr=100*")
    update_row(run, status="failed", error="training loss is NaN", test_accuracy=None, test_reads=0)
    text = (bench.folder / "stand_in.py").read_text().replace("lr >= 100", "False")
    (bench.folder / "stand_in.py").write_text(text.replace("lr == 13 and step == 5", "lr == 100 and step == 0"))
    assert "lr=100 seed 0: killed by SIGKILL; started again" in bench.run(retry=True)
    assert [(row["status"], row["error"]) for row in rows(bench.logs)] == [("finished", None)]


def test_a_run_that_is_killed_goes_on_and_one_that_always_is_fails(bench):
    bench.write(axes={"model.optimizer.lr": [13, 66]}, seeds=1)
    out = bench.run(code=1, slots=2)
    assert "lr=13 seed 0: killed by SIGKILL; started again" in out
    by_cell = {row["cell"]: row for row in rows(bench.logs)}
    assert by_cell["lr=13"]["status"] == "finished" and by_cell["lr=13"]["steps"] == 10
    assert by_cell["lr=66"]["error"] == "killed by SIGKILL 3 times (out of memory?)"
    resumed = StudyFolder(bench.logs).output(by_cell["lr=13"]["run"]).read_text()
    assert resumed.count("--ckpt_path=last") == 1


def test_a_lost_ledger_is_made_again_and_a_damaged_one_is_named(bench):
    bench.write()
    bench.run()
    ledger = StudyFolder(bench.logs).ledger
    ledger.unlink()
    bench.write(seeds=3)
    assert "4 done, 2 to do" in bench.run()
    assert len(rows(bench.logs)) == 6 and all(len(p.read_text().split()) == 1 for p in bench.notes.glob("*.tested"))
    ledger.write_bytes(b"no database" * 500)
    out = bench.run()
    assert "is damaged; it is kept as ledger.sqlite.damaged, a new one is made of the run folders" in out


def test_an_edited_base_makes_new_runs_and_keeps_the_old_rows_apart(bench):
    (bench.folder / "base.yaml").write_text("trainer: {max_epochs: 1}")
    bench.write(base="base.yaml", seeds=1)
    bench.run()
    old = found(bench.logs)
    (bench.folder / "base.yaml").write_text("trainer: {max_epochs: 2}")
    out = bench.run()
    assert "changed: lr=1 had other settings (base trainer: {max_epochs: 1} -> trainer: {max_epochs: 2})" in out
    assert "2 to do" in out
    new = found(bench.logs)
    assert len(new) == 2 and not {r["digest"] for r in new} & {r["digest"] for r in old}
    both = rows(bench.logs, old=True)
    assert len(both) == 4 and [r["current"] for r in both].count(False) == 2


def test_a_worker_joins_by_storage_and_takes_over_from_a_dead_one(bench, tmp_path):
    """The dead one was on another machine, as far as its locks say: only its silence tells."""
    storage = f"sqlite:///{tmp_path}/shared.sqlite"
    bench.write(seeds=1)
    with pytest.raises(UserError, match="there is no study 'rates' in that storage"):
        bench.run(storage=storage, join=True)
    runner = bench.start(pause=0.5, slots=2, storage=storage)
    wait_for(lambda: steps(bench) >= 2)
    runner.kill()
    runner.communicate()
    for lock in (bench.logs / "study/runs").glob("*.lock"):
        lock.write_text("elsewhere 1\n")
    began = time.monotonic()
    bench.run(storage=storage, join=True, slots=2)
    assert time.monotonic() - began > 1, "it was taken for dead before its time"
    assert len(rows(bench.logs)) == 2 and not bench.twice()


def test_ctrl_c_stops_the_runs_and_the_next_start_goes_on(bench):
    bench.write(seeds=1)
    runner = bench.start(pause=0.3, slots=2)
    wait_for(lambda: steps(bench) >= 3)
    runner.send_signal(signal.SIGINT)
    out = runner.communicate(timeout=30)[0]
    assert runner.returncode == 130 and "stopping 2 running" in out, out
    assert not any(alive(int(p.read_text())) for p in bench.notes.glob("*.pid"))
    assert "2 half-done" in bench.run()
    assert len(rows(bench.logs)) == 2


def test_the_runner_loads_without_torch():
    check = (
        "import sys, smallnets.studies.run; assert not {'torch', 'lightning', 'pandas', 'optuna'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


TINY = {
    "data": "Digits", "data.image_size": 8, "data.in_channels": 1, "data.train_size": 200, "data.batch_size": 40,
    "model.net": "lenet_12", "model.optimizer": "SGD", "model.optimizer.lr": 0.02, "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1, "look.graph": False,
}  # fmt: skip


@pytest.mark.slow
def test_two_cells_on_digits_end_to_end(here, capsys):
    """The real commands: run, status, and a second run that has nothing to do."""
    spec = {"name": "tiny", "asks": "Momentum?", "set": TINY, "axes": {"model.optimizer.momentum": [0.0, 0.9]}}
    spec["stated"] = {"momentum=0.9": {"test_accuracy": 0.5}}
    Path("tiny.yaml").write_text(json.dumps(spec))
    assert main(["study", "run", "tiny.yaml", "--slots", "2"]) == 0
    out = capsys.readouterr().out
    assert "[2/2]" in out and "tiny: 2 done; rows in lightning_logs/tiny" in out
    a, b = rows("lightning_logs/tiny")
    assert [a["axes"], b["axes"]] == [{"momentum": 0.0}, {"momentum": 0.9}]
    assert a["test_reads"] == b["test_reads"] == 1 and a["seed"] == 0
    assert a["stated"] == {} and b["stated"] == {"test_accuracy": 0.5}
    assert main(["study", "run", "tiny.yaml"]) == 0
    assert "2 done" in capsys.readouterr().out
    assert main(["study", "status", "tiny.yaml"]) == 0
    assert "2 runs in lightning_logs/tiny: 2 done" in capsys.readouterr().out
