"""The ledger: which run is anybody's to take, and who is at work; an Optuna study whose trials are the runs.

What has been *done* is told by the run folders; a ledger that is lost is made again from them.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallnets.errors import UserError
from smallnets.studies.plan import Run
from smallnets.studies.state import State
from smallnets.studies.storage import BEAT_SECONDS, GRACE_SECONDS, database_errors, one_at_a_time, open_storage

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Entry:
    """A run that waits in the ledger; `again`: although it has failed before."""

    trial: int
    run: str
    again: bool


class Ledger:
    """A study's runs as trials: WAITING, RUNNING with a heartbeat, COMPLETE with the first metric, FAIL with an error.

    Args:
        study: the study's name.
        url: of a database that Optuna knows: `sqlite:///FILE` or `postgresql://...`. Another, such as `mysql://...`, is
            spoken to as well, untested, and not locked (`storage.one_at_a_time`).
        create: whether the study may be a new one.
        say: takes a line of text for the user.

    Raises:
        UserError: Optuna is not installed, the URL is none, or the study is not in this database.
        LedgerError: the database cannot be reached.
    """

    def __init__(self, study: str, url: str, create: bool = True, say: Callable[[str], None] = print) -> None:
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise UserError("a study's ledger needs optuna: pip install 'smallnets[study]'") from error
        self._states = optuna.trial.TrialState
        self._optuna = optuna
        self.url, self.beat_seconds = url, BEAT_SECONDS
        self._put_down: set[int] = set()  # trials that were given back and are known to have a successor
        if damaged := _set_aside(url):
            say(f"{damaged} is damaged; it is kept as {damaged.name}.damaged, a new one is made of the run folders")
        with self._speaking(), one_at_a_time(url):
            self._again = optuna.storages.RetryHeartbeatStaleTrialCallback()
            self._storage = open_storage(
                url,
                heartbeat_interval=BEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=self._again,
            )
            try:
                self._study = (
                    optuna.create_study(
                        storage=self._storage, study_name=study, direction="maximize", load_if_exists=True
                    )
                    if create
                    else optuna.load_study(storage=self._storage, study_name=study)
                )
            except KeyError as error:
                self.close()
                raise UserError(
                    f"there is no study {study!r} in that storage: `smallnets study run FILE --storage URL` begins it"
                ) from error
            self._id = self._storage.get_study_id_from_name(study)

    def sync(
        self, runs: Iterable[Run], state_of: Callable[[Run], State], again: bool, value: Callable[[Run], float]
    ) -> None:
        """Brings the ledger up to the run folders: what is to be done waits in it once, what is done is in it.

        Args:
            runs: the study's runs, in the order in which they are to be taken.
            state_of: where a run stands by its folder; asked after the trials were looked at, so that one that another
                worker ends meanwhile is not put down again.
            again: whether runs that failed are to be done again.
            value: the first metric of a run that is done.
        """
        with self._speaking(), one_at_a_time(self.url):
            trials: dict[str, list[FrozenTrial]] = {}
            for trial in self._trials():
                trials.setdefault(trial.user_attrs["run"], []).append(trial)
            for run in runs:
                mine, state = trials.get(run.name, []), state_of(run)
                live = [t for t in mine if not t.state.is_finished()]
                about = {"run": run.name, "cell": run.cell.cell, "seed": run.seed, "digest": run.cell.digest}
                if state is State.DONE:
                    if not live and not any(t.state == self._states.COMPLETE for t in mine):
                        done = self._optuna.create_trial(value=value(run), user_attrs=about)
                        self._study.add_trial(done)
                    continue
                retry = state is State.FAILED and again
                if state is State.FAILED and not again:
                    continue
                if not live:
                    self._study.enqueue_trial({**run.cell.axes, "seed": run.seed}, user_attrs={**about, "again": retry})
                for trial in live if retry else []:
                    self._storage.set_trial_user_attr(trial._trial_id, "again", True)

    def waiting(self, runs: set[str]) -> list[Entry]:
        """Those of the runs that wait, in the order in which they were put down."""
        with self._speaking():
            found = self._trials(self._states.WAITING)
        attrs = [(trial._trial_id, trial.user_attrs) for trial in found]
        return [Entry(n, a["run"], bool(a.get("again"))) for n, a in attrs if a["run"] in runs]

    def running(self, runs: set[str]) -> set[str]:
        """Those of the runs that somebody has taken and not ended."""
        with self._speaking():
            return {t.user_attrs["run"] for t in self._trials(self._states.RUNNING)} & runs

    def take(self, trial: int) -> bool:
        """Takes a run that waits; False if another has taken it meanwhile."""
        with self._speaking():
            try:
                taken = self._storage.set_trial_state_values(trial, self._states.RUNNING)
            except self._optuna.exceptions.UpdateFinishedTrialError:
                return False
            if taken:
                self._storage.record_heartbeat(trial)
            return taken

    def beat(self, trials: Iterable[int]) -> None:
        """Says that whoever has taken these is alive."""
        with self._speaking():
            for trial in trials:
                self._storage.record_heartbeat(trial)

    def done(self, trial: int, value: float) -> None:
        """A run that was taken is done."""
        self._end(trial, self._states.COMPLETE, [value])

    def failed(self, trial: int, error: str) -> None:
        """A run that was taken has failed."""
        with self._speaking(), suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial, "error", error)
        self._end(trial, self._states.FAIL)

    def give_back(self, trial: int) -> None:
        """A run that was taken waits again."""
        with self._speaking(), one_at_a_time(self.url), suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial, self._states.FAIL)
            self._again(self._study, self._storage.get_trial(trial))

    def reap(self, dead: Callable[[str], bool]) -> None:
        """Runs whose worker is dead wait again: not heard of for `GRACE_SECONDS`, or known to be dead.

        So do those whose giving back was cut off: it ends a trial and then puts down another, and a worker may be
        killed between the two.
        """
        with self._speaking():
            if self._storage._get_stale_trial_ids(self._id):
                with one_at_a_time(self.url):
                    self._optuna.storages.fail_stale_trials(self._study)
            lost = [t._trial_id for t in self._trials(self._states.RUNNING) if dead(t.user_attrs["run"])]
        for trial in lost:
            self.give_back(trial)
        with self._speaking():
            if self._given_back() - self._put_down:
                with one_at_a_time(self.url):
                    self._put_down_again()

    def _given_back(self) -> set[int]:
        """The numbers of the trials that were given back: ended, and neither done nor failed of anything."""
        return {t.number for t in self._trials(self._states.FAIL) if "error" not in t.user_attrs}

    def _put_down_again(self) -> None:
        """Sees to it that each trial that was given back has a successor; those that have one are remembered."""
        trials = self._trials()
        live = {t.user_attrs["run"] for t in trials if not t.state.is_finished() or t.state == self._states.COMPLETE}
        last = {t.user_attrs["run"]: t for t in sorted(trials, key=lambda t: t.number)}
        given_back = self._given_back()
        for run, trial in last.items():
            if run not in live and trial.number in given_back:
                self._again(self._study, trial)
        self._put_down |= given_back

    def close(self) -> None:
        """Ends the connections to the database."""
        self._storage.engine.dispose()

    def _end(self, trial: int, state: Any, values: list[float] | None = None) -> None:
        # One that was taken for dead meanwhile and given to another is ended by that one.
        with self._speaking(), suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial, state, values)

    def _trials(self, *states: Any) -> list["FrozenTrial"]:
        found = self._storage.get_all_trials(self._id, deepcopy=False, states=states or None)
        return [trial for trial in found if "run" in trial.user_attrs]

    def _speaking(self) -> AbstractContextManager[None]:
        return database_errors("the study's ledger")


def _set_aside(url: str) -> Path | None:
    """Renames a file that should be a SQLite database and is none; returns its name."""
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or not path.is_file() or not path.stat().st_size:
        return None
    with path.open("rb") as file:
        if file.read(16) == b"SQLite format 3\0":
            return None
    path.replace(path.with_name(f"{path.name}.damaged"))
    return path
