"""`smallnets study run --on ray` and `study work --storage` from their command lines, with runs that cost nothing."""

import functools
import sys
from pathlib import Path

import pytest
from study_helpers import Bench, Options

from smallnets.cli import main
from smallnets.results import rows
from smallnets.studies import run as studies
from smallnets.studies.on_ray import RayWorkers


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The working folder, in which `fit` and `test` are stand-ins."""
    bench = Bench(tmp_path / "bench")
    monkeypatch.chdir(bench.folder)
    for name, value in bench.environment(0).items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, str(bench.folder / "stand_in.py")]
    monkeypatch.setattr(studies, "run_study", functools.partial(studies.run_study, command=command))
    monkeypatch.setattr("smallnets.verbs.resolve.FitResolver", Options)
    return bench


def test_a_worker_that_ray_starts_finds_the_study_in_its_storage_and_works_on_it(bench, monkeypatch, capsys):
    """`run --on ray` begins the study; in the place of Ray the test runs the command line of its workers."""
    bench.write(seeds=1)
    storage, placed = f"sqlite:///{bench.folder}/shared.sqlite", list[RayWorkers]()
    assert main(["study", "work", "rates.yaml", "--storage", storage]) == 2
    assert "there is no study 'rates' in that storage" in capsys.readouterr().err

    def work(self: RayWorkers, logs: Path, say: object, news: object) -> bool:
        placed.append(self)
        return main(list(self.command[2:])) == 0

    monkeypatch.setattr(RayWorkers, "work", work)
    options = ["--on=ray", "--address=head:6379", "--workers=3", "--cpus-per-worker=2", "--gpus-per-worker=0.5"]
    assert main(["study", "run", "rates.yaml", "--storage", storage, *options]) == 0
    (ray,) = placed
    assert ray.command[:4] == ["-m", "smallnets", "study", "work"] and f"--storage={storage}" in ray.command
    assert (ray.workers, ray.address, ray.cpus, ray.gpus, ray.shared) == (3, "head:6379", 2, 0.5, True)
    assert len(rows(bench.logs)) == 2 and not (bench.logs / "study/ledger.sqlite").exists()
    out = capsys.readouterr().out
    assert out.count("rates: 2 done; rows in lightning_logs/rates") == 2, "the worker says so, and then the study"
