"""`smallnets search run --workers` and `search confirm` from their command lines, with runs that cost nothing."""

import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from study_helpers import Bench, Options
from test_search import LR, StandIn, quiet, search

from smallnets.cli import main
from smallnets.results import rows
from smallnets.studies import run as studies
from smallnets.studies.search import Trials

SPACE = {LR: {"low": 0.001, "high": 0.1}, "model.net.width": {"low": 1, "high": 8}}

SEARCH = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from smallnets.verbs import search as verb
from test_search import StandIn

class Fit(StandIn):
    def __init__(self, folder):
        super().__init__(Path())

    def train(self, arguments, report):
        Path(f"worker-{{os.getpid()}}").touch()
        until = time.monotonic() + 120
        while len(list(Path().glob("worker-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)  # until the other is at a trial too
        super().train(arguments, report)

verb._Fit = Fit
sys.exit(verb.run(sys.argv[2:]))
"""


@pytest.mark.thorough
def test_two_workers_of_one_command_share_the_trials(here, monkeypatch, capfd):
    search(here, space=SPACE, sampler="random", seed=5)
    (here / "search.py").write_text(SEARCH.format(tests=str(Path(__file__).parent)))
    monkeypatch.setattr("smallnets.verbs.search.SMALLNETS", (sys.executable, str(here / "search.py")))
    monkeypatch.setattr("smallnets.verbs.search._Fit", lambda folder: StandIn(here))
    assert main(["search", "s.yaml", "--trials=5", "--workers=2"]) == 0
    assert len(list(here.glob("worker-*"))) == 2
    out = capfd.readouterr().out
    assert sorted(line[:5] for line in out.splitlines() if line.startswith("[")) == [f"[{n}/5]" for n in range(1, 6)]
    assert main(["search", "show", "s.yaml", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert [t["state"] for t in shown["trials"]] == ["done"] * 5
    best = max(shown["trials"], key=lambda t: t["values"]["val_accuracy"])
    assert shown["best"] == [best["number"]] and f"best: trial {best['number']}  done" in out
    assert main(["search", "s.yaml", "--workers=0"]) == 2
    assert "--workers is 1 or more, not 0" in capfd.readouterr().err


def test_confirm_trains_the_best_on_seeds_that_it_was_not_chosen_by(here, monkeypatch, capsys):
    made = search(here, space=SPACE, sampler="random", seed=5, confirm={"seeds": 2})
    assert main(["search", "confirm", "s.yaml"]) == 2
    assert "there are no trials in lightning_logs/s" in capsys.readouterr().err
    trials = Trials(made)
    trials.work(3, StandIn(here), quiet)
    bench = Bench(here / "bench")
    for name, value in bench.environment(0).items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, str(bench.folder / "stand_in.py")]
    monkeypatch.setattr(studies, "run_study", functools.partial(studies.run_study, command=command))
    monkeypatch.setattr("smallnets.verbs.resolve.FitResolver", Options)

    def confirmed(*more: str) -> tuple[str, list[dict[str, Any]]]:
        assert main(["search", "confirm", "s.yaml", *more]) == 0
        return capsys.readouterr().out.splitlines()[-1], rows("lightning_logs/s-confirm")

    (best,) = trials.best()
    line, found = confirmed()
    assert sorted(row["seed"] for row in found) == [6, 7] and all(row["test_reads"] == 1 for row in found)
    tested = [round(0.5 + best.options[LR] / 1000 + seed / 100, 6) - 0.01 for seed in (6, 7)]
    figures = f"{statistics.mean(tested):.4f} +- {statistics.stdev(tested):.4f} (s.d.) over 2 seeds"
    assert best.values is not None
    chosen = f"validation when it was chosen {best.values['val_accuracy']:.4f}"
    assert line == f"trial {best.number}: test accuracy {figures}; {chosen}"
    line, found = confirmed("--seeds=3")
    assert sorted(row["seed"] for row in found) == [6, 7, 8] and "over 3 seeds" in line
    assert main(["search", "confirm", "s.yaml", "--seeds=0"]) == 2


@pytest.mark.parametrize("action", ["show", "confirm"])
def test_nothing_is_made_by_looking(here, action, capsys):
    search(here, space=SPACE)
    assert main(["search", action, "s.yaml"]) == 2
    assert "`smallnets search s.yaml` makes them" in capsys.readouterr().err.replace(f"{here}/", "")
    assert not Path("lightning_logs").exists()
