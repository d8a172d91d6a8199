"""What has been done of a run, told by its folder alone; and the lock that lets one process work on it."""

import fcntl
import os
import shutil
import socket
from enum import StrEnum
from pathlib import Path
from typing import Any

from smallnets.results.row import update_row, write_json
from smallnets.results.store import load_row
from smallnets.results.study_folder import read_mapping
from smallnets.results.test_ledger import file_digest
from smallnets.studies.plan import Plan, Run


class State(StrEnum):
    """Where a run stands: `trained` has its row and not yet its test figure, `begun` is to be trained on."""

    DONE = "done"
    FAILED = "failed"
    TRAINED = "trained"
    BEGUN = "begun"
    NEW = "new"


class RunLock:
    """The right to work on a run, in one process at a time: an flock that ends with the last process that holds it.

    The process that trains inherits it: as long as it lives, also when whoever started it is gone, nobody starts the
    run again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Takes the lock if it is free."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        os.truncate(fd, 0)
        os.write(fd, f"{socket.gethostname()} {os.getpid()}\n".encode())
        self._fd = fd
        return True

    @property
    def fd(self) -> int:
        assert self._fd is not None
        return self._fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def held(self) -> bool:
        """Whether any process holds it, this one too."""
        try:
            fd = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            # Shared: those who only ask do not stand in each other's way.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def taken_here(self) -> bool:
        """Whether the last to take it was a process of this machine, about which the lock is to be believed."""
        try:
            return self.path.read_text().split()[:1] == [socket.gethostname()]
        except OSError:
            return False


def state_of(plan: Plan, run: Run, again: bool = False) -> State:
    """Where a run stands.

    Args:
        plan: the study's plan.
        run: one of its runs.
        again: a run that failed counts as begun.
    """
    folder, record = plan.run_folder(run), read_record(plan, run)
    row = load_row(folder.path, lambda problem: None)
    finished = row is not None and row["status"] == "finished"
    if finished and row is not None and (not plan.test or row["test_accuracy"] is not None):
        return State.DONE
    if not again and (record.get("state") == "failed" or (row is not None and row["status"] == "failed")):
        return State.FAILED
    if finished:
        return State.TRAINED
    return State.BEGUN if folder.path.is_dir() and any(folder.path.iterdir()) else State.NEW


def next_command(plan: Plan, run: Run, state: State) -> list[str]:
    """The command that brings a run on. What was begun and left no checkpoint is removed, to be begun again."""
    folder = plan.run_folder(run)
    row = load_row(folder.path, lambda problem: None) or {}
    if state is State.TRAINED:
        # A reading of this very network that was broken off gave nobody a figure; the row counts the second one.
        cut = (
            bool(row.get("test_reads")) and folder.best.is_file() and row["test_checkpoint"] == file_digest(folder.best)
        )
        return plan.test_command(run, reread=cut)
    if row.get("status") == "failed":
        # One that is tried again: killed before `fit` says so itself, it has not failed once more.
        update_row(folder.path, status="running", error=None)
    if folder.last.is_file():
        return plan.fit_command(run, resume=True)
    if folder.path.is_dir():
        shutil.rmtree(folder.path)
    return plan.fit_command(run)


def read_record(plan: Plan, run: Run) -> dict[str, Any]:
    """What was written down of a run beside its folder; empty for a run that was never started."""
    return read_mapping(plan.folder.record(run.name)) or {}


def write_record(plan: Plan, run: Run, **values: Any) -> None:
    """Writes down of a run which it is, and `values`; by the holder of its lock alone."""
    cell = run.cell
    about: dict[str, Any] = {
        "run": run.name,
        "cell": cell.cell,
        "axes": cell.axes,
        "seed": run.seed,
        "digest": cell.digest,
    }
    about["settings"] = cell.settings
    plan.folder.runs.mkdir(parents=True, exist_ok=True)
    write_json(plan.folder.record(run.name), {**read_record(plan, run), **about, **values})
