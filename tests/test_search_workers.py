"""Several workers on one search: each trial is one worker's, and a dead worker's trial another's."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_search import LR, SPACE, StandIn, quiet, search, told

from smallnets.studies import claims, storage
from smallnets.studies.search import Trials
from smallnets.studies.state import RunLock


def elsewhere(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> Any:
    """What `work` does on another machine."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        return work()


def cut(trials: Trials, fit: StandIn, most: int) -> None:
    """A worker that dies in the midst of a trial: its lock is free and it beats no more."""
    with pytest.raises(KeyboardInterrupt):
        trials.work(most, fit, quiet)


def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (claims, storage):
        monkeypatch.setattr(module, "BEAT_SECONDS", 1)
    # Longer than a trial of the stand-in takes where other programs use the cores too.
    monkeypatch.setattr(storage, "GRACE_SECONDS", 5)


def test_a_trial_that_is_ended_while_another_worker_reaches_for_it_is_left_alone(tmp_path, monkeypatch):
    """The other has seen it running; it is ended, and its lock free, before that one has the lock."""
    made = search(tmp_path, sampler="random")
    first, second = Trials(made, tmp_path), Trials(made, tmp_path)
    taken = first._claims.new(1)
    assert taken is not None
    trial, lock = taken
    acquire, reached = RunLock.acquire, []

    def late(self: RunLock) -> bool:
        if not reached:
            reached.append(self.path)
            first._make(trial, StandIn(tmp_path))
            lock.release()
        return acquire(self)

    monkeypatch.setattr(RunLock, "acquire", late)
    monkeypatch.setattr(RunLock, "held", lambda self: False)  # asked when its holder was about to let go
    fit = StandIn(tmp_path)
    second.work(1, fit, quiet)
    assert reached == [lock.path] and fit.trained == []
    assert [state for _, state, *_ in told(second)] == ["done"]


def test_a_worker_that_was_taken_for_dead_goes_on_with_the_next_trial(tmp_path):
    made = search(tmp_path, sampler="random", pruner="median", space={**SPACE, LR: {"low": 0.01, "high": 0.1}})
    trials, other = Trials(made, tmp_path), Trials(made, tmp_path)

    class Overtaken(StandIn):
        def train(self, arguments: list[str], report: Any) -> None:
            if not self.trained:
                other._study.tell(0, 0.25)
            super().train(arguments, report)

    fit = Overtaken(tmp_path)
    trials.work(2, fit, quiet)
    assert fit.trained == ["trial-0000@0", "trial-0001@0"]
    assert [t.state for t in trials.ended()] == ["done", "done"]
    assert trials.ended()[0].values == {"val_accuracy": 0.25}, "as the other has told it"


def test_a_trial_of_a_dead_worker_elsewhere_is_taken_up_after_its_silence(tmp_path, monkeypatch):
    quick_beats(monkeypatch)
    made = search(tmp_path, sampler="random", seed=5)
    whole = Trials(made, tmp_path / "whole")
    whole.work(2, StandIn(tmp_path / "whole"), quiet)

    first, second = Trials(made, tmp_path), Trials(made, tmp_path)
    elsewhere(monkeypatch, lambda: cut(first, StandIn(tmp_path, die_at=2), 2))
    trial = first._optuna.trial.Trial(first._study, first._study.trials[0]._trial_id)
    with first._claims.beating(trial):
        until = time.monotonic() + 6.5
        while time.monotonic() < until:
            assert second._claims.left_behind() is None, "it is taken though it beats"
            time.sleep(0.25)
    fit, said = StandIn(tmp_path), list[str]()
    second.work(2, fit, said.append)
    assert fit.trained == ["trial-0001@0", "trial-0000@2"], "from its checkpoint, and not before its time"
    assert "waiting for 1 that other workers are at" in said
    assert told(second) == told(whole)


def test_a_worker_that_died_before_its_first_beat_is_found_too(tmp_path, monkeypatch):
    """And one of a version that did not beat: there is no beat that could grow old."""
    quick_beats(monkeypatch)
    trials = Trials(search(tmp_path, sampler="random"), tmp_path)

    def die(trial: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trials._claims, "_take", die)
        elsewhere(monkeypatch, lambda: trials._claims.new(1))
    fit = StandIn(tmp_path)
    Trials(search(tmp_path, sampler="random"), tmp_path).work(1, fit, quiet)
    assert fit.trained == ["trial-0000@0"]


def test_in_a_folder_of_its_own_each_machine_believes_its_own_locks_only(tmp_path, monkeypatch):
    """A trial that was begun here and is another machine's by now is not taken back because its old lock is free."""
    made, url = search(tmp_path, sampler="random"), f"sqlite:///{tmp_path}/shared.sqlite"
    here, there = Trials(made, tmp_path / "here", url), Trials(made, tmp_path / "there", url)
    cut(here, StandIn(tmp_path / "here", die_at=1), 1)
    monkeypatch.setattr(there._claims, "_silent", lambda: {1})
    taken = elsewhere(monkeypatch, there._claims.left_behind)
    assert taken is not None and taken[0].number == 0
    assert here._claims.left_behind() is None
    taken[1].release()
    monkeypatch.setattr(here._claims, "_silent", lambda: {1})
    again = here._claims.left_behind()
    assert again is not None
    again[1].release()


def test_a_journal_tells_of_no_deaths_elsewhere_and_nobody_waits_for_one(tmp_path, monkeypatch):
    made, journal = search(tmp_path, sampler="random"), str(Path(tmp_path) / "trials.log")
    elsewhere(monkeypatch, lambda: cut(Trials(made, tmp_path, journal), StandIn(tmp_path, die_at=2), 1))
    fit = StandIn(tmp_path)
    Trials(made, tmp_path, journal).work(1, fit, quiet)
    assert fit.trained == []
