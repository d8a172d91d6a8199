"""The worker: takes runs from the ledger, keeps its slots busy with them, and writes down how each ended."""

import math
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from smallnets.results.store import load_row
from smallnets.studies.execute import SMALLNETS, end, killed_by, run_environment, start, was_killed
from smallnets.studies.job import Job, first_metric, title
from smallnets.studies.ledger import Ledger
from smallnets.studies.plan import Plan
from smallnets.studies.state import RunLock, State, next_command, read_record, state_of, write_record
from smallnets.studies.storage import LedgerError
from smallnets.studies.teller import Teller

_STOP_SECONDS = 30  # that a run has, when the worker is stopped, to end by itself
# Where a run may stand when a command has ended well that was started where it stood before.
_AFTER = {
    State.NEW: (State.TRAINED, State.DONE, State.FAILED),
    State.BEGUN: (State.TRAINED, State.DONE, State.FAILED),
    State.TRAINED: (State.DONE,),
}
_MOST_DEATHS = 3  # of one run by a signal, such as the kernel's when memory runs out


class Worker:
    """Works on a study until none of its runs is left to do, here or elsewhere.

    Each run is its own process: `smallnets fit`, then `smallnets test`. All processes live in one thread of one
    process; killed at any moment, another worker goes on from the run folders.

    Args:
        plan: the study.
        ledger: where its runs wait.
        slots: how many runs at once.
        command: what `smallnets` in a run's command line stands for.
        gpus: the GPUs to share out when there are several slots.
        say: takes a line of text for the user.
        live: takes the one line that says what is going on now, on a terminal; None elsewhere.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        slots: int = 1,
        command: Sequence[str] = SMALLNETS,
        gpus: Sequence[str] = (),
        say: Callable[[str], None] = print,
        live: Callable[[str], None] | None = None,
    ) -> None:
        self._plan, self._ledger, self._slots, self._command, self._gpus = plan, ledger, slots, command, gpus
        self._runs = {run.name: run for run in plan.runs()}
        self._teller = Teller(plan, self._runs, slots, say, live)
        self._needed = {name: list(plan.needed(run).values()) for name, run in self._runs.items()}
        self._jobs: list[Job] = []
        self._stop = 0
        self._asked = self._beaten = -math.inf
        self._unanswered = False

    def work(self) -> bool:
        """Returns True when nothing is left to do, False when it was stopped (Ctrl-C, SIGTERM)."""
        with self._stoppable():
            while not self._stop:
                self._collect()
                try:
                    left = self._fill()
                    self._beat()
                    self._unanswered = False
                except LedgerError as error:
                    left = True
                    self._asked = time.monotonic() + 10
                    if not self._unanswered:
                        self._teller.say(f"{error}; tried again every 10 s")
                    self._unanswered = True
                if not self._jobs and not left:
                    return True
                self._teller.draw(self._jobs)
                time.sleep(0.1)
            self._end_all()
        return False

    # -- taking ------------------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Takes runs for the free slots; returns whether any run is left to do."""
        free = sorted(set(range(self._slots)) - {job.slot for job in self._jobs})
        if not free or time.monotonic() < self._asked + 1:
            return True
        self._ledger.reap(self._is_dead)
        waiting = self._ledger.waiting(set(self._runs))
        live = {entry.run for entry in waiting} | self._ledger.running(set(self._runs))
        for entry in waiting:
            if not free:
                break
            missing, failed = self._missing(entry.run, live)
            if missing:
                continue
            lock = RunLock(self._plan.folder.lock(entry.run))
            if not lock.acquire():
                continue
            taken = False
            try:
                taken = self._ledger.take(entry.trial)
            finally:
                if not taken:
                    lock.release()
            if not taken:
                continue
            self._jobs.append(Job(self._runs[entry.run], entry.trial, free[0], lock))
            if failed:
                self._fail(self._jobs[-1], failed)
            elif self._advance(self._jobs[-1], again=entry.again):
                free.pop(0)
        if free:
            self._asked = time.monotonic()
        mine = {job.run.name for job in self._jobs}
        self._teller.others(live - mine if free and not mine else set())
        return bool(mine | live)

    def _missing(self, name: str, live: set[str]) -> tuple[bool, str | None]:
        """Whether a run has to wait for one that it needs; and the reason, if that one has failed for good."""
        missing = False
        for needed in self._needed[name]:
            state = self._teller.state(needed)
            if state is State.FAILED and needed.name not in live:
                error = read_record(self._plan, needed).get("error")
                return False, f"it needs {title(needed)}, which failed" + (f": {error}" if error else "")
            missing = missing or state is not State.DONE
        return missing, None

    def _is_dead(self, run: str) -> bool:
        lock = RunLock(self._plan.folder.lock(run))
        return lock.taken_here() and not lock.held()

    # -- a run -------------------------------------------------------------------------------------------------------

    def _advance(self, job: Job, again: bool = False) -> bool:
        """Starts the next command of a run, if there is one; otherwise writes down its end. Whether it goes on."""
        state = state_of(self._plan, job.run, again)
        if state is State.DONE:
            self._done(job)
        elif state is State.FAILED:
            self._fail(job, job.error(self._plan))
        else:
            job.state = state
            command = next_command(self._plan, job.run, state)
            write_record(self._plan, job.run, state="started", error=None, host=socket.gethostname(), since=time.time())
            output = self._plan.folder.output(job.run.name)
            with output.open("a") as file:
                file.write(f"$ {shlex.join(command)}\n")
            job.started = time.monotonic()
            env = run_environment(job.slot, self._slots, self._gpus)
            job.process = start([*self._command, *command[1:]], output, job.lock.fd, env)
            return True
        return False

    def _collect(self) -> None:
        """Looks after the processes that have ended."""
        for job in list(self._jobs):
            code = job.process.poll() if job.process else None
            if code is None:
                continue
            job.add_seconds(self._plan)
            if was_killed(code):
                job.deaths += 1
                if job.deaths < _MOST_DEATHS:
                    self._teller.say(f"{title(job.run)}: killed by {killed_by(code)}; started again")
                    self._advance(job)
                else:
                    self._fail(job, f"killed by {killed_by(code)} {job.deaths} times (out of memory?)")
            elif code:
                self._fail(job, job.error(self._plan))
            elif state_of(self._plan, job.run) not in _AFTER[job.state]:
                self._fail(job, "the command ended without an error and left no figures")
            else:
                job.deaths = 0
                self._advance(job)

    def _done(self, job: Job) -> None:
        write_record(self._plan, job.run, state="done", error=None)
        row = load_row(self._plan.run_folder(job.run).path) or {}
        self._tell_ledger(lambda: self._ledger.done(job.trial, first_metric(self._plan, row)))
        self._let_go(job)
        if job.process is None:  # it was done when it was taken, and somebody has said so
            return
        self._teller.ended(job.run, self._teller.done(job.run, row), self._jobs)

    def _fail(self, job: Job, error: str) -> None:
        write_record(self._plan, job.run, state="failed", error=error)
        self._tell_ledger(lambda: self._ledger.failed(job.trial, error))
        self._let_go(job)
        self._teller.ended(job.run, f"FAILED: {error}  ({self._plan.folder.output(job.run.name)})", self._jobs)

    def _tell_ledger(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except LedgerError as error:
            # The folder says it already; whoever meets the run in the ledger again will see that.
            self._teller.say(str(error))

    def _let_go(self, job: Job) -> None:
        self._jobs.remove(job)
        job.lock.release()
        self._asked = -math.inf

    # -- staying alive, and ending -----------------------------------------------------------------------------------

    def _beat(self) -> None:
        if time.monotonic() >= self._beaten + self._ledger.beat_seconds:
            self._ledger.beat(job.trial for job in self._jobs)
            self._beaten = time.monotonic()

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        def stop(number: int, frame: Any) -> None:
            self._stop += 1

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for job in self._jobs:  # an error of ours: no run outlives it
                if job.process is not None:
                    end(job.process, signal.SIGKILL)
                job.lock.release()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_all(self) -> None:
        """Ends the runs, those that can by themselves; a second Ctrl-C ends them at once."""
        self._teller.say(
            f"stopping {len(self._jobs)} running; `smallnets study run` goes on from their last checkpoints"
        )
        for job in self._jobs:
            if job.process is not None:
                end(job.process, signal.SIGTERM)
        until = time.monotonic() + _STOP_SECONDS
        while any(j.process and j.process.poll() is None for j in self._jobs):
            if self._stop > 1 or time.monotonic() > until:
                for job in self._jobs:
                    if job.process is not None:
                        end(job.process, signal.SIGKILL)
            time.sleep(0.1)
        for job in list(self._jobs):
            job.add_seconds(self._plan)
            trial = job.trial
            self._tell_ledger(lambda trial=trial: self._ledger.give_back(trial))  # type: ignore[misc]
            self._let_go(job)
