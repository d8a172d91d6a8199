"""`run_study`: from a study file to its rows, however often it is killed and started again."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from smallnets.errors import RunError, UserError
from smallnets.results.store import load_row
from smallnets.studies.execute import SMALLNETS, run_environment
from smallnets.studies.job import first_metric
from smallnets.studies.ledger import Ledger
from smallnets.studies.on_ray import RayWorkers
from smallnets.studies.plan import Plan, Resolver, Run, make_plan, old_runs
from smallnets.studies.progress import counts
from smallnets.studies.state import State, read_record, state_of, write_record
from smallnets.studies.study import Study
from smallnets.studies.teller import Teller, terminal_line
from smallnets.studies.worker import Worker


def run_study(
    study: Study,
    resolver: Resolver,
    *,
    root: Path = Path(),
    slots: int = 1,
    storage: str | None = None,
    retry: bool = False,
    join: bool = False,
    command: Sequence[str] = SMALLNETS,
    gpus: Sequence[str] = (),
    elsewhere: RayWorkers | None = None,
) -> int:
    """Runs what is left of a study, so many runs at once; returns 0, 1 if a run has failed, 130 if it was stopped.

    Nothing that is done is done again: what has been done is told by the run folders. Any number of these may work on
    one study at a time; on several machines they share the folder and name one `storage`.

    Args:
        study: what to run.
        resolver: what `fit` says of a command line.
        root: the folder of `lightning_logs`.
        slots: runs at once.
        storage: URL of the ledger's database; default: a SQLite file in the study's folder.
        retry: whether runs that failed are done again, from their last checkpoint.
        join: take runs of a study that another has begun, and begin nothing.
        command: what starts `smallnets`.
        gpus: the GPUs that several slots share.
        elsewhere: workers that do it in the place of this process, which waits for them.

    Raises:
        UserError: the study cannot be run as it is written; nothing was started.
        RunError: the study's folder cannot be written, as on a full disk, or its ledger does not answer.
    """
    if slots < 1:
        raise UserError(f"--slots is 1 or more, not {slots}")
    plan = make_plan(study, root, resolver)
    states = {run.name: state_of(plan, run) for run in plan.runs()}
    say = _say_on_terminal if sys.stdout.isatty() else _say
    _introduce(plan, states, slots, say)
    left = [run for run in plan.runs() if _is_left(states[run.name], retry)]
    with _writing(plan):
        plan.write()  # the arguments of the runs name its copies of the configs
        _prepare(left, resolver)
        ledger = Ledger(plan.name, storage or f"sqlite:///{plan.folder.ledger}", create=not join, say=say)
        try:
            if not join:
                for run in plan.runs():
                    if states[run.name] is State.DONE and not read_record(plan, run):
                        write_record(plan, run, state="done")
                ledger.sync(plan.runs(), lambda run: state_of(plan, run), retry, lambda run: _value(plan, run))
            if elsewhere is not None:
                teller = Teller(plan, {run.name: run for run in plan.runs()}, elsewhere.workers, say, None)
                ended = elsewhere.work(plan.folder.own, say, teller.news)
            else:
                live = terminal_line if sys.stdout.isatty() else None
                ended = Worker(plan, ledger, slots, command, gpus, say, live).work()
        finally:
            ledger.close()
    if not ended:
        return 130
    now = [state_of(plan, run) for run in plan.runs()]
    say(f"{plan.name}: {counts(now, 0)}; rows in {plan.folder.path}")
    if failed := now.count(State.FAILED):
        say(f"{failed} failed; `smallnets study run {study.file} --retry` tries them again")
    return 0 if all(state is State.DONE for state in now) else 1


@contextmanager
def _writing(plan: Plan) -> Iterator[None]:
    """RunError, in one line, for a folder that cannot be written; the runs stay as far as their checkpoints are."""
    try:
        yield
    except OSError as error:
        goes_on = "`smallnets study run` goes on from the checkpoints that are there"
        raise RunError(f"{error.filename or plan.folder.path}: {error.strerror or error}; {goes_on}") from error


def _introduce(plan: Plan, states: dict[str, State], slots: int, say: Callable[[str], None]) -> None:
    threads = run_environment(0, slots)["OMP_NUM_THREADS"]
    grid = f"{_several(len(states), 'run')} ({_several(len(plan.cells), 'cell')} x {_several(len(plan.seeds), 'seed')})"
    with_slots = (
        f"{_several(slots, 'slot')} of {_several(int(threads), 'thread')}" if threads.isdecimal() else f"{slots}"
    )
    say(f"{plan.name}: {grid}: {counts(states.values(), 0)}; {with_slots}; {plan.folder.path}")
    for name, reason in plan.excluded.items():
        say(f"left out: {name}: {reason}")
    for sentence in old_runs(plan):
        say(f"changed: {sentence}")


def _prepare(left: list[Run], resolver: Resolver) -> None:
    """Fetches and converts each data set once, before several runs would at the same time."""
    seen = []
    for run in left:
        data = run.cell.settings.get("data")
        if data not in seen:
            seen.append(data)
            resolver.prepare(run.cell.arguments)


def _is_left(state: State, retry: bool) -> bool:
    return state is not State.DONE and (retry or state is not State.FAILED)


def _value(plan: Plan, run: Run) -> float:
    return first_metric(plan, load_row(plan.run_folder(run).path) or {})


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _say(text: str) -> None:
    print(text, flush=True)


def _say_on_terminal(text: str) -> None:
    print(f"\r\x1b[K{text}", flush=True)
