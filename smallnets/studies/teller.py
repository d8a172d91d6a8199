"""`Teller`: what the user sees of a worker's runs: a line for each that ends, and how far the study is."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from smallnets.results.store import load_row
from smallnets.studies.job import Job, figures, title
from smallnets.studies.plan import Plan, Run
from smallnets.studies.progress import counts, duration, seconds_left, seconds_taken
from smallnets.studies.state import RunLock, State, read_record, state_of


class Teller:
    """Tells of a study's runs.

    Args:
        plan: the study.
        runs: its runs by name.
        slots: how many work at once.
        say: takes a line of text for the user.
        live: takes the one line that says what is going on now, on a terminal; None elsewhere.
    """

    def __init__(
        self,
        plan: Plan,
        runs: dict[str, Run],
        slots: int,
        say: Callable[[str], None],
        live: Callable[[str], None] | None,
    ) -> None:
        self._plan, self._runs, self._slots, self.say, self._live = plan, runs, slots, say, live
        self._drawn = -math.inf
        self._elsewhere: set[str] = set()
        # Of the runs that are done, which stay so: seconds that they took.
        self._finished: dict[str, float | None] = {}
        self._told = {name for name, run in runs.items() if self.state(run) in (State.DONE, State.FAILED)}

    def state(self, run: Run) -> State:
        """Where a run stands; one that was found done is not looked at again."""
        if run.name in self._finished:
            return State.DONE
        state = state_of(self._plan, run)
        if state is State.DONE:
            self._finished[run.name] = seconds_taken(self._plan, run)
        return state

    def ended(self, run: Run, text: str, jobs: Iterable[Job]) -> None:
        """A run has ended; `jobs` are those that are still at work."""
        states = self._states()
        still = {job.run.name for job in jobs}  # ended perhaps, and not told of yet
        ended = sum(s in (State.DONE, State.FAILED) and name not in still for name, s in states.items())
        self.say(f"[{ended}/{len(states)}] {title(run)}: {text}{self._left(states, jobs)}")

    def news(self) -> None:
        """Tells of the runs that have ended since it was last asked, whoever worked on them."""
        for run in self._runs.values():
            state = self.state(run)
            if run.name in self._told or state not in (State.DONE, State.FAILED):
                continue
            self._told.add(run.name)
            row = load_row(self._plan.run_folder(run).path, lambda problem: None) or {}
            error = read_record(self._plan, run).get("error") or row.get("error")
            text = f"FAILED: {error}" if state is State.FAILED else self.done(run, row)
            self.say(f"[{len(self._told)}/{len(self._runs)}] {title(run)}: {text}{self._left(self._states(), ())}")

    def done(self, run: Run, row: dict[str, Any]) -> str:
        """What is told of a run that is done: its figures, and how long it took."""
        seconds = seconds_taken(self._plan, run)
        return "  ".join([*figures(self._plan, row), *([duration(seconds)] if seconds else [])])

    def others(self, names: set[str]) -> None:
        """Runs that another process may work on, while this one has none to do."""
        names = {name for name in names if RunLock(self._plan.folder.lock(name)).held()}
        if names and names != self._elsewhere:
            self.say(f"waiting for {len(names)} that another process works on: {', '.join(sorted(names))}")
        self._elsewhere = names

    def draw(self, jobs: Iterable[Job]) -> None:
        """What is going on now, every two seconds."""
        if self._live is None or time.monotonic() < self._drawn + 2:
            return
        self._drawn = time.monotonic()
        states, mine = self._states(), [job.run.name for job in jobs]
        rest = [state for name, state in states.items() if name not in mine]
        names = ", ".join(title(job.run) for job in jobs)
        self._live(f"{counts(rest, len(mine))}{self._left(states, jobs)}: {names}")

    def _states(self) -> dict[str, State]:
        return {name: self.state(run) for name, run in self._runs.items()}

    def _left(self, states: dict[str, State], jobs: Iterable[Job]) -> str:
        if all(state in (State.DONE, State.FAILED) for state in states.values()):
            return ""
        now = time.monotonic()
        running = {job.run.name: now - job.started for job in jobs}
        took = {name: seconds for name, seconds in self._finished.items() if seconds}
        seconds = seconds_left(self._plan, self._runs, states, took, running, self._slots)
        return f"; about {duration(seconds)} left" if seconds is not None else ""


def terminal_line(text: str) -> None:
    """Writes over the last line of a terminal."""
    width = os.get_terminal_size().columns - 1
    sys.stdout.write(f"\r\x1b[K{text[:width]}")
    sys.stdout.flush()
