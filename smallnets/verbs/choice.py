"""Which run a command is about: the folder it writes into and the checkpoint it starts from."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smallnets.errors import UserError
from smallnets.results.load import read_checkpoint
from smallnets.results.run import RunFolder, check_name

# Lightning starts one process a device with the same command line; they learn the run's folder from the first.
_FOLDER_ENV = "SMALLNETS_RUN_FOLDER"


class Choice:
    """What `--name`, `--run` and `--ckpt_path` say to a verb.

    `last` and `best` are those of the newest run of the name (or of the run named); `validate`, `test` and `predict`
    take `best` when nothing is said. `fit --ckpt_path=last` goes on in that run's folder; any other fit gets a new one.

    Attributes:
        folder: the run, once it is known; a new one is made by `claim`.
        path, checkpoint: the checkpoint's file and what it holds; None for a fresh start.
        resumes: whether `fit` goes on with a run.

    Raises:
        UserError: there is no such run or checkpoint, or a name is no folder's name.
        RunError: the checkpoint is damaged.
    """

    def __init__(self, verb: str, options: Namespace) -> None:
        self._logs = Path(options.trainer.default_root_dir or ".").expanduser() / "lightning_logs"
        self._name, self._run = options.name or _default_name(options), options.run
        check_name("--name", self._name)
        check_name("--run", self._run)
        fit = verb == "fit"
        self.folder: RunFolder | None = None
        self.resumes = fit and options.ckpt_path == "last"
        wanted = options.ckpt_path or (None if fit else "best")
        if wanted in ("last", "best"):
            self.folder = self._newest(wanted)
            wanted = str(self.folder.checkpoints / f"{wanted}.ckpt")
            if fit and not self.resumes:
                self.folder = None
        elif wanted:
            wanted = str(Path(wanted).expanduser())
            self.folder = None if fit else RunFolder.owning(Path(wanted))
        self.path: str | None = wanted
        self.checkpoint: dict[str, Any] | None = read_checkpoint(wanted) if wanted else None

    def _newest(self, which: str) -> RunFolder:
        folder = RunFolder.latest(self._logs, self._name, self._run, f"checkpoints/{which}.ckpt")
        if folder is None:
            where = self._logs / self._name / (self._run or "")
            raise UserError(
                f"no checkpoints/{which}.ckpt of a run in {where}: train first, or name a file with --ckpt_path"
            )
        return folder

    def claim(self) -> None:
        """Makes the folder of a run that starts, or of a checkpoint without one; on the first process only."""
        if self.folder is not None:
            return
        given = os.environ.get(_FOLDER_ENV)
        if first_process():
            self.folder = RunFolder.claim(self._logs, self._name, self._run)
            os.environ[_FOLDER_ENV] = str(self.folder.path.absolute())
        else:
            # Started by Lightning, or by torchrun or SLURM; in the latter case the first process's folder is broadcast
            # before anything is written.
            self.folder = RunFolder(Path(given) if given else self._logs / self._name / (self._run or "run"))

    def give_up(self) -> None:
        """Removes a folder that was claimed and no run has written into: empty, or with a logger's first files."""
        if self.resumes or not first_process() or self.folder is None or not self.folder.path.is_dir():
            return
        files = list(self.folder.path.iterdir())
        if all(each.name.startswith("events.out.tfevents.") or each.name == "hparams.yaml" for each in files):
            for each in files:
                each.unlink()
            self.folder.path.rmdir()


def first_process() -> bool:
    """Whether this is the first process of all devices and machines, known from the environment before training."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _default_name(options: Namespace) -> str:
    parts = [options.data.class_path, options.model.net.class_path]
    return "-".join(part.rpartition(".")[2].lower() for part in parts)
