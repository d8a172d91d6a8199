"""The ledger of a study: a run that is given back waits again, wherever its worker is killed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallnets.studies.ledger import Ledger
from smallnets.studies.state import State

RUN: Any = SimpleNamespace(name="r", seed=0, cell=SimpleNamespace(cell="c", digest="d", axes={"lr": 1}))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Ledger]]:
    """Ledgers of several workers in one database."""
    made: list[Ledger] = []

    def one() -> Ledger:
        made.append(Ledger("s", f"sqlite:///{tmp_path}/ledger.sqlite"))
        return made[-1]

    yield one
    for ledger in made:
        ledger.close()


def alive(run: str) -> bool:
    return False


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def waiting(ledger: Ledger) -> list[str]:
    return [entry.run for entry in ledger.waiting({"r"})]


@pytest.mark.parametrize("silent", [False, True], ids=["known to be dead", "not heard of"])
def test_a_run_whose_giving_back_is_cut_off_is_put_down_again_by_any_worker(make, monkeypatch, silent):
    """The trial is ended and the worker killed before the run is put down anew: nobody's, but for the next reaping."""
    first, second = make(), make()
    first.sync([RUN], lambda run: State.NEW, False, lambda run: 0.0)
    (entry,) = first.waiting({"r"})
    assert first.take(entry.trial)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(first, "_again", killed)
        patch.setattr(first._storage, "heartbeat_stale_trial_callback", killed)
        patch.setattr(first._storage, "_get_stale_trial_ids", lambda study: [entry.trial] if silent else [])
        first.reap(lambda run: not silent)
    assert waiting(second) == [] and second.running({"r"}) == set()

    for ledger in (second, first, make()):
        ledger.reap(alive)
        assert waiting(ledger) == ["r"], "once, whoever looks"
    (again,) = second.waiting({"r"})
    assert second.take(again.trial)
    second.give_back(again.trial)
    for ledger in (first, second):
        ledger.reap(alive)
        assert waiting(ledger) == ["r"]


@pytest.mark.parametrize("end", ["failed", "done"])
def test_a_run_that_has_ended_is_not_put_down_again(make, end):
    first, second = make(), make()
    first.sync([RUN], lambda run: State.NEW, False, lambda run: 0.0)
    (entry,) = first.waiting({"r"})
    assert first.take(entry.trial)
    first.give_back(entry.trial)
    (entry,) = second.waiting({"r"})
    assert second.take(entry.trial)
    if end == "failed":
        second.failed(entry.trial, "NaN")
    else:
        second.done(entry.trial, 0.5)
    for ledger in (first, second, make()):
        ledger.reap(alive)
        assert waiting(ledger) == []
