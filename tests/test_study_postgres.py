"""A study's ledger, and a search's trials, in a PostgreSQL of the test's own, on the loopback."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from study_helpers import Bench
from test_search import StandIn, search
from test_search_workers import cut, elsewhere, quick_beats
from test_study_run import found, steps, wait_for

from smallnets.errors import UserError
from smallnets.results import rows
from smallnets.results.study_folder import StudyFolder
from smallnets.studies.ledger import Ledger
from smallnets.studies.search import Trials
from smallnets.studies.storage import LedgerError

Control = Callable[[str], str]


def program(name: str) -> str | None:
    """Where a server's program is: Debian keeps them off the path, a folder a version."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4].split(".")[0]))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


@pytest.fixture
def postgres() -> Iterator[Control]:
    """`postgres("start" | "stop")` returns the server's URL."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = {name: program(name) for name in ("initdb", "pg_ctl")}
    if None in programs.values():
        pytest.skip("PostgreSQL is not installed (initdb, pg_ctl)")
    # It refuses to run as root.
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        if "postgres" not in [each.pw_name for each in pwd.getpwall()]:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="smallnets-pg-"))
    if user:
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(name: str, *arguments: str) -> None:
        command = [str(programs[name]), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, **user)
        assert done.returncode == 0, done.stderr

    def control(action: str) -> str:
        options = f"-p {port} -h 127.0.0.1 -k {folder} -F"
        more = ["-o", options, "-l", str(folder / "log")] if action == "start" else ["-m", "immediate"]
        call("pg_ctl", "-w", *more, action)
        return f"postgresql://ledger@127.0.0.1:{port}/postgres"

    call("initdb", "-U", "ledger", "-A", "trust", "--no-sync")
    try:
        yield control
    finally:
        if (folder / "data/postmaster.pid").exists():
            control("stop")
        shutil.rmtree(folder)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


def test_two_workers_one_killed_leave_the_rows_of_a_local_run(bench, postgres, tmp_path):
    """`run` begins the study, `work` joins it; SIGKILL takes one in the midst of a run, which the other takes up."""
    local = Bench(tmp_path / "local")
    local.write(seeds=3)
    local.run(slots=2)

    url = postgres("start")
    bench.write(seeds=3)
    with pytest.raises(UserError, match="there is no study 'rates' in that storage: `smallnets study run FILE"):
        bench.run(storage=url, join=True)
    (bench.notes / "hold").touch()  # each run waits after its second step
    first = bench.start(pause=0.01, storage=url)
    wait_for(lambda: steps(bench) == 2)
    (cut,) = (p.name for p in bench.logs.glob("lr=*"))
    second = bench.start(pause=0.01, storage=url, join=True)
    wait_for(lambda: steps(bench) == 4)
    first.kill()
    first.communicate()
    (bench.notes / "hold").unlink()
    out = second.communicate(timeout=120)[0]
    assert second.returncode == 0 and "6 done" in out, out

    assert found(bench.logs) == found(local.logs)
    assert not bench.twice() and all(row["test_reads"] == 1 for row in rows(bench.logs))
    assert not StudyFolder(bench.logs).ledger.exists(), "the ledger is the server's"
    log = StudyFolder(bench.logs).output(cut).read_text()
    assert log.count("--ckpt_path=last") == 1, "taken up from its checkpoint, not begun anew"


def test_workers_that_begin_at_once_put_each_run_down_once(bench, postgres):
    """Both find an empty database: tables and trials are made by one, the other waits."""
    url = postgres("start")
    bench.write(seeds=3)
    workers = [bench.start(pause=0.01, storage=url) for _ in range(3)]
    outs = [w.communicate(timeout=120)[0] for w in workers]
    assert [w.returncode for w in workers] == [0, 0, 0], outs
    ledger = Ledger("rates", url, create=False)
    trials = ledger._trials()
    ledger.close()
    assert len(trials) == 6 == len({t.user_attrs["run"] for t in trials})
    assert len(rows(bench.logs)) == 6 and not bench.twice()


def test_the_server_may_be_gone_for_a_while(bench, postgres):
    bench.write(seeds=1)
    url = postgres("start")
    worker = bench.start(pause=0.3, slots=2, storage=url)
    lines = iter(worker.stdout.readline, "")
    assert "2 to do" in next(lines)
    wait_for(lambda: steps(bench) >= 4)
    postgres("stop")
    assert any("the study's ledger does not answer" in line for line in lines)
    postgres("start")
    rest = worker.communicate(timeout=60)[0]
    assert worker.returncode == 0 and "2 done" in rest, rest
    assert len(rows(bench.logs)) == 2 and not bench.twice()
    assert all(row["test_reads"] == 1 for row in rows(bench.logs))


def test_a_server_that_is_not_there_and_a_url_that_is_none_are_told_in_a_line(tmp_path):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LedgerError, match="the study's ledger does not answer: ") as error:
        Ledger("s", f"postgresql://me:secret@127.0.0.1:{port}/db")
    assert "refused" in str(error.value)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    for url in ("postgres//x", "nosuchdb://x"):
        with pytest.raises(UserError, match="--storage: ") as wrong:
            Ledger("s", url)
        assert "\n" not in str(wrong.value)


def test_a_search_keeps_its_trials_there_and_takes_up_those_of_dead_workers(here, postgres, monkeypatch):
    """Its own storage by the same URL; `test_search.py` and `test_search_workers.py` say what a search does."""
    url = postgres("start")
    quick_beats(monkeypatch)
    made = search(here, sampler="random", seed=5)
    first, second = Trials(made, storage=url), Trials(made, storage=url, create=False)
    elsewhere(monkeypatch, lambda: cut(first, StandIn(here, die_at=2), 2))
    fit = StandIn(here)
    second.work(2, fit, print)
    assert fit.trained == ["trial-0001@0", "trial-0000@2"]
    assert [t.state for t in first.ended()] == ["done", "done"]
    for trials in (first, second):
        trials._study._storage._backend.engine.dispose()
    assert not Path("lightning_logs/s/search/trials.sqlite").exists()
