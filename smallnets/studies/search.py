"""`Trials`: a search's trials in Optuna; drawing, training, pruning and taking up again those of a dead worker.

Optuna is imported here, in `claims.py`, `sampling.py`, `storage.py` and `ledger.py` alone.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from smallnets.errors import RunError, UserError
from smallnets.measure import Budget, BudgetExceeded
from smallnets.results.run import RunFolder
from smallnets.results.store import load_row
from smallnets.studies.claims import Claims, alone
from smallnets.studies.sampling import importances, make_pruner, suggest
from smallnets.studies.search_space import Search
from smallnets.studies.storage import database_errors, trial_storage
from smallnets.studies.trial import Ended, Fit, line_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from smallnets.studies.state import RunLock

_POLL_SECONDS = 1.0


class Trials:
    """The trials of a search, in a storage that any number of workers share, with the folder of their runs.

    Laws:
        - What is drawn for trial k is a function of the search's seed, k and the trials that have ended before: with
          one worker a search that is killed anywhere and started again finds bitwise what an uninterrupted one finds.
        - A configuration over the budget is not trained: it is a trial with its counts and no figure, and its
          constraint tells the sampler by how much it is over.
        - A trial that diverges (its loss is not finite) counts as worse than all others; one that fails for another
          reason is left out of account.
        - A trial whose worker is dead is gone on with, from its last checkpoint, by another: at once on that machine,
          elsewhere when the worker was not heard of for `GRACE_SECONDS`, which a database tells and a journal does not.

    Args:
        search: the search.
        root: the folder of `lightning_logs`.
        storage: URL of a database that Optuna knows, or a journal's file (`trials.log`); by default
            `search/trials.sqlite` in the search's folder.
        create: whether the search may be a new one.

    Raises:
        UserError: Optuna is not installed, the storage cannot be used, or holds trials of another space or settings.
    """

    def __init__(self, search: Search, root: Path = Path(), storage: str | None = None, create: bool = True) -> None:
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise UserError("a search needs optuna: pip install 'smallnets[search]'") from error
        self._optuna, self.search, self._root = optuna, search, root
        self.folder = root / "lightning_logs" / search.name
        self._own = self.folder / "search"
        if not create and storage is None and not (self._own / "trials.sqlite").is_file():
            raise UserError(f"there are no trials in {self.folder}: `smallnets search {search.file}` makes them")
        self._own.mkdir(parents=True, exist_ok=True)
        directions: list[Any] = ["maximize" if d == "max" else "minimize" for d in search.objectives.values()]
        url = storage or f"sqlite:///{self._own / 'trials.sqlite'}"
        with database_errors("the search's storage"), alone(self._own, url):
            try:
                self._study = optuna.create_study(
                    storage=trial_storage(url), study_name=search.name, directions=directions, load_if_exists=True,
                    pruner=make_pruner(search),
                )  # fmt: skip
            except ValueError as error:
                raise UserError(f"search {search.file}: {error}") from error
            known = self._study.user_attrs.get("source")
            if known is None:
                self._study.set_user_attr("source", search.source)
            elif known != search.source:
                raise UserError(
                    f"search {search.file} was changed since its first trial: give it another name, or remove"
                    f" {self.folder} to begin again (only trials, confirm and asks may change)"
                )
            self._claims = Claims(self._study, self._own, url)

    # -- working -----------------------------------------------------------------------------------------------------

    def work(self, trials: int, fit: Fit, say: Callable[[str], None]) -> None:
        """Makes trials until the search has so many and all have ended, first those that a dead worker has left."""
        waited, trials = 0, self.search.at_most(trials)
        with database_errors("the search's storage"):
            while True:
                taken = self._claims.left_behind() or self._claims.new(trials)
                if taken is not None:
                    self._work_on(*taken, trials, fit, say)
                elif others := self._claims.others():
                    if others != waited:
                        say(f"waiting for {others} that other workers are at")
                    waited = others
                    time.sleep(_POLL_SECONDS)
                else:
                    return

    def _work_on(self, trial: "Trial", lock: "RunLock", trials: int, fit: Fit, say: Callable[[str], None]) -> None:
        try:
            # Another may have taken this worker for dead, and have told how the trial ended.
            with self._claims.beating(trial), suppress(self._optuna.exceptions.UpdateFinishedTrialError):
                self._make(trial, fit)
        finally:
            lock.release()
        say(f"[{trial.number + 1}/{trials}] {line_of(self._ended(self._study.trials[trial.number]))}")

    def _make(self, trial: "Trial", fit: Fit) -> None:
        """Draws a trial's configuration, trains it and tells how it ended."""
        options = self.search.draw(lambda dimension: suggest(self.search, self._study, trial, dimension))
        trial.set_user_attr("options", options)
        arguments = self.search.arguments(options)
        pruned = self._optuna.trial.TrialState.PRUNED
        try:
            if self._over_budget(trial, arguments, fit):
                self._tell(trial, state=pruned)
                return
            if not trial.user_attrs.get("pruned"):
                self._train(trial, arguments, fit)
        except BudgetExceeded as error:  # of a network that a callback changed
            trial.set_user_attr("ended", "over budget")
            self._tell_error(trial, pruned, error)
        except RunError as error:
            diverged = "NaN or infinity" in str(error)
            trial.set_user_attr("ended", "diverged" if diverged else "failed")
            self._tell_error(trial, pruned if diverged else self._optuna.trial.TrialState.FAIL, error)
        except (UserError, RuntimeError, MemoryError) as error:
            self._tell_error(trial, self._optuna.trial.TrialState.FAIL, error)
        else:
            if trial.user_attrs.get("pruned"):
                self._tell(trial, state=pruned)
            else:
                self._tell_values(trial)

    def _tell(self, trial: "Trial", values: list[float] | None = None, state: Any = None) -> None:
        # One that another has ended meanwhile stays as that one told it.
        self._study.tell(trial.number, values, state=state, skip_if_finished=True)

    def _tell_error(self, trial: "Trial", state: Any, error: BaseException) -> None:
        trial.set_user_attr("error", " ".join(f"{error}".split()) or type(error).__name__)
        self._tell(trial, state=state)

    def _tell_values(self, trial: "Trial") -> None:
        row = load_row(self._run(trial.number).path, lambda problem: None) or {}
        values = [row.get(name) for name in self.search.objectives]
        numbers = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
        if len(numbers) == len(values):
            self._tell(trial, numbers)
        else:
            missing = next(n for n, v in zip(self.search.objectives, values, strict=True) if v is None)
            self._tell_error(trial, self._optuna.trial.TrialState.FAIL, RunError(f"its row has no {missing}"))

    def _train(self, trial: "Trial", arguments: list[str], fit: Fit) -> None:
        run = self._run(trial.number)
        row = load_row(run.path, lambda problem: None)
        if row is not None and row["status"] == "finished":
            return
        # A trial is one process's: Lightning would start this very command again for a second device.
        ours = ["--trainer.devices=1", f"--seed_everything={self.search.seed}", f"--name={self.search.name}"]
        ours.append(f"--run={run.run}")
        if self._root != Path():
            ours.append(f"--trainer.default_root_dir={self._root}")
        if run.last.is_file():
            ours.append("--ckpt_path=last")
        elif run.path.is_dir():
            rmtree(run.path)
        fit.train([*arguments, *ours], lambda epoch, value: self._report(trial, epoch, value))

    def _report(self, trial: "Trial", epoch: int, value: float) -> bool:
        """Tells the pruner; whether the trial is to stop."""
        if not self.search.pruner:
            return False
        # A run that was resumed tells some epochs twice.
        if epoch not in self._study.trials[trial.number].intermediate_values:
            trial.report(value, epoch)
        if not trial.should_prune():
            return False
        trial.set_user_attr("pruned", True)
        return True

    def _over_budget(self, trial: "Trial", arguments: list[str], fit: Fit) -> bool:
        counts = fit.counts(arguments)
        for name in ("parameters", "macs", "bytes"):
            trial.set_user_attr(name, getattr(counts, name))
        if not self.search.budget:
            return False
        budget = Budget(**self.search.budget)
        limits, over = budget.limits(), budget.over(counts)
        stored = self._study.trials[trial.number].constraints
        for name, limit in limits.items():
            if name not in stored:
                trial.set_constraint(name, getattr(counts, name) / limit - 1)
        if over:
            trial.set_user_attr("ended", "over budget")
            trial.set_user_attr("error", "; ".join(budget.check(counts)))
        return bool(over)

    # -- looking -----------------------------------------------------------------------------------------------------

    def ended(self) -> list[Ended]:
        """All trials, in the order of their numbers."""
        with database_errors("the search's storage"):
            return [self._ended(trial) for trial in self._study.trials]

    def best(self) -> list[Ended]:
        """The best trial, or, of several objectives, those that no other is better than in all of them."""
        with database_errors("the search's storage"):
            done = [t for t in self._study.trials if t.state == self._optuna.trial.TrialState.COMPLETE]
            found = self._study.best_trials if done else []
            return [self._ended(t) for t in (found if len(self.search.objectives) > 1 else found[:1])]

    def importances(self) -> dict[str, float]:
        """Dimension -> its share of the variance of the first objective, the largest first (`sampling.importances`)."""
        with database_errors("the search's storage"):
            return importances(self._study, self.search.space)

    def _ended(self, trial: "FrozenTrial") -> Ended:
        names = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
        attrs, folder = trial.user_attrs, self._run(trial.number).path
        values = dict(zip(self.search.objectives, trial.values, strict=True)) if trial.values else None
        state = attrs.get("ended") or names[trial.state.name]
        options = attrs.get("options", {})
        return Ended(trial.number, state, values, options, dict(trial.params), attrs.get("error"), folder)

    # -- files -------------------------------------------------------------------------------------------------------

    def _run(self, number: int) -> RunFolder:
        return RunFolder(self.folder / f"trial-{number:04d}")
