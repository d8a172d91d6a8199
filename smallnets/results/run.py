"""Where a run lives: `lightning_logs/<name>/<run>/`."""

import re
from dataclasses import dataclass
from pathlib import Path

from smallnets.errors import UserError
from smallnets.results.row import read_row

_NUMBERED = re.compile(r"run-(\d+)$")
# Names of devices on Windows, with any suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)


@dataclass(frozen=True)
class RunFolder:
    """One run's folder and the names in it.

    `config.yaml` (resolved, re-runnable), TensorBoard's events, `metrics.csv`, `checkpoints/` and, once the run has
    ended, `row.json`.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.parent.name

    @property
    def run(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @classmethod
    def claim(cls, logs: Path, name: str, run: str | None) -> "RunFolder":
        """A new folder under `logs/name`, made by this call alone: two runs that start at once get two folders.

        Raises:
            UserError: `run` names a folder that is in use, or the folder cannot be made.
        """
        parent = logs / name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if run is not None:
                return cls._claim_named(parent / run)
            number = 1 + max((_number(p) for p in parent.iterdir()), default=0)
            while True:
                path = parent / f"run-{number}"
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise UserError(f"cannot write runs into {parent}: {error.strerror or error}") from error

    @classmethod
    def _claim_named(cls, path: Path) -> "RunFolder":
        path.mkdir(exist_ok=True)
        if any(path.iterdir()):
            ended = "has ended" if read_row(path) else "was begun"
            raise UserError(
                f"--run {path.name}: a run of that name {ended} in {path};"
                " take another name, or continue it with --ckpt_path last"
            )
        return cls(path)

    @classmethod
    def latest(cls, logs: Path, name: str, run: str | None, holding: str) -> "RunFolder | None":
        """The newest run under `logs/name` (or the run named) whose folder holds the file `holding`."""
        parent = logs / name
        if run is not None:
            found = [parent / run] if (parent / run / holding).is_file() else []
        else:
            found = [p for p in parent.iterdir() if (p / holding).is_file()] if parent.is_dir() else []
        # Numbers before times: a copied folder has new times, but keeps its number.
        return cls(max(found, key=lambda p: (_number(p), (p / holding).stat().st_mtime))) if found else None

    @classmethod
    def owning(cls, checkpoint: Path) -> "RunFolder | None":
        """The run whose `checkpoints/` folder a checkpoint lies in; None for a file from elsewhere."""
        folder = cls(checkpoint.absolute().parent.parent)
        return folder if checkpoint.absolute().parent == folder.checkpoints and folder.config.is_file() else None


def check_name(option: str, name: str | None) -> None:
    """Raises UserError unless `name` (if given) can be one folder's name on any system."""
    if name is not None and (
        not name
        or name.startswith(".")
        or name.endswith((".", " "))
        or set(name) & set('/\\:*?"<>|')
        or _RESERVED.match(name)
    ):
        raise UserError(f"{option} is the name of one folder, got {name!r}")


def _number(path: Path) -> int:
    match = _NUMBERED.match(path.name)
    return int(match[1]) if match else 0
