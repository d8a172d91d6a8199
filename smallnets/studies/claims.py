"""`Claims`: which trial of a search is a worker's to make: a new one, or one whose worker is dead.

Optuna is imported here, in `sampling.py`, `search.py`, `storage.py` and `ledger.py` alone.
"""

import fcntl
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallnets.studies.state import RunLock
from smallnets.studies.storage import BEAT_SECONDS, one_at_a_time

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

_HOST = "host"  # attribute of a trial: the machine of the worker that has it, which has beaten for it


class Claims:
    """Hands out the trials of a search, each to one worker at a time.

    A trial stays RUNNING, with its number and what was drawn of it, until somebody tells how it ended. Its worker holds
    the lock `trial-NNNN.lock`, which ends with it, and, in a database, beats for it every `BEAT_SECONDS`. Dead is a
    worker of this machine whose lock is free, and one elsewhere that was not heard of for `GRACE_SECONDS`; a journal's
    file knows no beats, so there a worker elsewhere is never taken for dead.

    Args:
        study: the search's trials in Optuna.
        folder: where the locks are.
        storage: where the trials are: a URL or a journal's file.
    """

    def __init__(self, study: "Study", folder: Path, storage: str) -> None:
        import optuna

        self._optuna, self._study, self._folder, self._url = optuna, study, folder, storage
        self._storage: Any = study._storage
        self._beats = getattr(self._storage, "get_heartbeat_interval", lambda: None)() is not None
        self._seen: set[int] = set()

    def new(self, most: int) -> "tuple[Trial, RunLock] | None":
        """A new trial and its lock, unless there are `most` trials."""
        with alone(self._folder, self._url):
            number = len(self._study.get_trials(deepcopy=False))
            if number >= most:
                return None
            lock = self._lock(number)
            lock.acquire()
            try:
                with warnings.catch_warnings():
                    # Optuna's own loop beats by itself; here `beating` does.
                    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with")
                    trial = self._study.ask()
                if trial.number != number:  # of a database that nobody can lock
                    lock.release()
                    lock = self._lock(trial.number)
                    lock.acquire()
                self._take(trial._trial_id)
            except BaseException:
                lock.release()
                raise
        return trial, lock

    def left_behind(self) -> "tuple[Trial, RunLock] | None":
        """A trial whose worker is dead, and its lock."""
        running, silent = self._running(), self._silent()
        for frozen in running:
            lock = self._lock(frozen.number)
            if (frozen._trial_id in silent or self._was_here(frozen, lock)) and not lock.held():
                if self._take_up(frozen._trial_id, lock):
                    return self._optuna.trial.Trial(self._study, frozen._trial_id), lock
            elif _HOST not in frozen.user_attrs and frozen._trial_id not in self._seen:
                # Its worker died before its first beat, or is of a version without: from now on its silence counts.
                self._beat(frozen._trial_id)
            self._seen.add(frozen._trial_id)
        return None

    def others(self) -> int:
        """How many trials other workers are at whose death would be noticed."""
        return len(self._running()) if self._beats else 0

    @contextmanager
    def beating(self, trial: "Trial") -> Iterator[None]:
        """Says every `BEAT_SECONDS`, from a thread of its own, that the trial's worker is alive."""
        end = threading.Event()

        def beat() -> None:
            while not end.wait(BEAT_SECONDS):
                # A server that is gone for a while is no reason to end; the next beat may reach it.
                with suppress(Exception):
                    self._beat(trial._trial_id)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        if self._beats:
            thread.start()
        try:
            yield
        finally:
            end.set()
            if self._beats:
                thread.join()

    def _take_up(self, trial: int, lock: RunLock) -> bool:
        """Takes a trial of a dead worker, unless it has ended or is another's by now."""
        with alone(self._folder, self._url):
            frozen = self._storage.get_trial(trial)
            dead = trial in self._silent() or self._was_here(frozen, lock)
            if not dead or not lock.acquire():
                return False
            # Asked under the lock: until then its worker may have ended it.
            if self._storage.get_trial(trial).state.is_finished():
                lock.release()
                return False
            self._take(trial)
        return True

    def _take(self, trial: int) -> None:
        self._beat(trial)
        self._storage.set_trial_user_attr(trial, _HOST, socket.gethostname())

    def _was_here(self, frozen: "FrozenTrial", lock: RunLock) -> bool:
        """Whether the trial's worker was of this machine, about which the lock is to be believed."""
        host = frozen.user_attrs.get(_HOST)
        return lock.taken_here() if host is None else bool(host == socket.gethostname())

    def _beat(self, trial: int) -> None:
        if self._beats:
            self._storage.record_heartbeat(trial)

    def _silent(self) -> set[int]:
        return set(self._storage._get_stale_trial_ids(self._study._study_id)) if self._beats else set()

    def _running(self) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.RUNNING,))

    def _lock(self, number: int) -> RunLock:
        return RunLock(self._folder / f"trial-{number:04d}.lock")


@contextmanager
def alone(folder: Path, storage: str) -> Iterator[None]:
    """Keeps other workers of this folder and this storage from making tables or taking trials at the same time."""
    with (folder / "ask.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with one_at_a_time(storage):
            yield
