"""A study's workers on a Ray that is started on this machine."""

import os
import signal
import time
from pathlib import Path

import pytest
from study_helpers import Bench
from test_study_run import alive, found, steps, wait_for

from smallnets.cli import main
from smallnets.errors import UserError
from smallnets.results import rows
from smallnets.studies.on_ray import RayWorkers

RAY = """
import sys
sys.path.insert(0, {tests!r})
from study_helpers import Options
from smallnets.studies.on_ray import RayWorkers
from smallnets.studies.run import run_study
from smallnets.studies.study import Study
work = [{runner!r}, sys.argv[1], repr(dict(join=True))]
sys.exit(run_study(Study.read(sys.argv[1]), Options(), elsewhere=RayWorkers(work, **eval(sys.argv[2]))))
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    pytest.importorskip("ray", reason="ray is not installed")
    bench = Bench(tmp_path / "bench")
    # The workers are the stand-ins' runner; the driver tells Ray to start them.
    text = RAY.format(tests=str(Path(__file__).parent), runner=str(bench.folder / "runner.py"))
    (bench.folder / "driver.py").write_text(text)
    return bench


@pytest.mark.thorough
def test_two_workers_one_killed_leave_the_rows_of_a_local_run(bench, tmp_path):
    """SIGKILL takes Ray's own process from above a worker; both are started anew, by Ray, and the run is taken up."""
    local = Bench(tmp_path / "local")
    local.write(seeds=3)
    local.run(slots=2)

    bench.write(seeds=3)
    (bench.notes / "hold").touch()  # each run waits after its second step
    driver = bench.start(pause=0.01, program="driver.py", workers=2)
    wait_for(lambda: steps(bench) == 4, 150)
    run = int(next(bench.notes.glob("*.pid")).read_text())
    worker = parent(run)
    os.kill(parent(worker), signal.SIGKILL)
    wait_for(lambda: not alive(worker) and not alive(run), 30)
    (bench.notes / "hold").unlink()
    out = driver.communicate(timeout=120)[0]
    assert driver.returncode == 0 and "6 done" in out, out
    assert sorted(line[:5] for line in out.splitlines() if line.startswith("[")) == [f"[{n}/6]" for n in range(1, 7)]

    assert found(bench.logs) == found(local.logs)
    assert not bench.twice() and all(row["test_reads"] == 1 for row in rows(bench.logs))
    logs = [p.read_text() for p in sorted((bench.logs / "study").glob("worker-*.log"))]
    assert len(logs) == 2 and sum(text.count("6 runs (2 cells x 3 seeds)") for text in logs) == 3, "two, and one again"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow  # a second start of Ray: passes, in a minute or more on two cores that others use
def test_ctrl_c_gives_the_runs_back(bench):
    bench.write(seeds=1)
    (bench.notes / "hold").touch()
    driver = bench.start(pause=0.01, program="driver.py", workers=2)
    wait_for(lambda: steps(bench) == 4, 150)
    driver.send_signal(signal.SIGINT)
    out = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130 and "stopping the workers" in out, out
    assert not any(alive(int(p.read_text())) for p in bench.notes.glob("*.pid"))
    (bench.notes / "hold").unlink()
    began = time.monotonic()
    assert "2 half-done" in bench.run() and len(rows(bench.logs)) == 2
    assert time.monotonic() - began < 20, "the ledger knew them as given back"


def test_what_would_wait_for_ever_is_told():
    told: list[str] = []
    with pytest.raises(UserError, match=r"--gpus-per-worker=0.25: the Ray cluster has 0 GPUs in all"):
        RayWorkers([], 2, gpus=0.25)._check({"CPU": 2.0}, 1, told.append)
    with pytest.raises(UserError, match="the Ray cluster has 2 machines: --storage names a database"):
        RayWorkers([], 2)._check({"CPU": 8.0}, 2, told.append)
    RayWorkers([], 8, gpus=0.25, shared=True)._check({"CPU": 8.0, "GPU": 1.0}, 2, told.append)
    assert told == ["8 workers; the Ray cluster has room for 4 at a time"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers=2"], "--workers is for --on ray; here --slots says how many"),
        (["--on=ray", "--slots=2"], "--on ray takes --workers, each at one run, and no --slots"),
        (["--on=ray", "--gpus-per-worker=1.5"], "a share of 1 or a whole number; got 1, 1, 1.5"),
        (["--on=ray", "--workers=0"], "--workers is 1 or more"),
        (["--on=slurm"], "invalid choice: 'slurm'"),
    ],
)
def test_wrong_options_are_told(options, message, capsys, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text('{asks: "What?", axes: {model.optimizer.lr: [1]}}')
    assert main(["study", "run", str(file), *options]) == 2
    assert message in capsys.readouterr().err
