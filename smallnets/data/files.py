"""The files of a data set: is each there and whole, and what to tell the user where not."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from smallnets.errors import RunError

State = Literal["ok", "missing", "damaged"]


class FileState(NamedTuple):
    """One file of a data set and what was found; `why` says what is wrong with a damaged one."""

    path: Path
    state: State
    why: str = ""


def require(name: str, root: str | Path, states: list[FileState]) -> None:
    """Raises a RunError of one or two lines, naming the file and the remedy, unless all files are in order."""
    for path, state, why in states:
        fetch = f"`smallnets data fetch {name} --root {root}`"
        if state == "damaged":
            raise RunError(f"{name}: {path} is damaged: {why}. Delete it and run {fetch}")
        if state == "missing":
            raise RunError(
                f"{name}: {path} is missing. Set --data.root to the folder that holds {_inner(path, root)}/"
                f"{_hint(path)}, or run {fetch}"
            )


def _inner(path: Path, root: str | Path) -> str:
    """The folder right in `root` that holds a file."""
    return path.relative_to(root).parts[0] if path.is_relative_to(root) else path.parent.name


def _hint(missing: Path) -> str:
    """Helps whoever gave the inner folder for the root."""
    # ROOT/inner/file is missing, and ROOT itself is called `inner`: the file may lie right in it.
    if missing.parent.name == missing.parent.parent.name and (missing.parent.parent / missing.name).is_file():
        return f" (that is {missing.parent.parent.parent})"
    return ""


@contextmanager
def unpickling() -> Iterator[None]:
    """Silences one warning of numpy 2.4: old pickles of arrays, as those of CIFAR, give `align` as an integer."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"dtype\(\): align should be passed as", np.exceptions.VisibleDeprecationWarning
        )
        yield


@contextmanager
def downloading(name: str, root: str | Path, what: str) -> Iterator[None]:
    """Turns the failure of a download into a RunError that says what to put where."""
    try:
        yield
    except (OSError, RuntimeError, EOFError) as error:
        # Of several lines, such as a telling of all mirrors, the last says what went wrong.
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise RunError(
            f"{name}: {what} could not be downloaded ({reason}). Put {what} into {root} by hand (or set --data.root),"
            f" then run `smallnets data fetch {name} --root {root}`"
        ) from error
