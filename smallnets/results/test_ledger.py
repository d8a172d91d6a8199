"""The test set is read once a run: the row counts the readings, before they begin.

An exported file may be held against its network on images that were read before (`smallnets export --verify=full`):
that gives no new figure of the network, and is counted apart, in `file_test_reads`.
"""

import hashlib
from pathlib import Path
from typing import Any

from smallnets.errors import RunError
from smallnets.results.row import read_row, update_row


def stored_figure(folder: Path, checkpoint: Path) -> dict[str, Any] | None:
    """The run's row if the test set was already read for this very checkpoint; None if it was never read.

    Raises:
        RunError: it was read for another checkpoint of the run, or the reading was broken off.
    """
    row = read_row(folder)
    if row is None or not row.get("test_reads"):
        return None
    again = "--reread_test=true reads it again, and the row counts it"
    if row.get("test_accuracy") is None:
        raise RunError(
            f"the test set was read before for {folder}, for a checkpoint that is no longer its best or in a reading"
            f" that was broken off; {again}"
        )
    if row.get("test_checkpoint") != file_digest(checkpoint):
        raise RunError(
            f"the test set was already read for another checkpoint of {folder} (accuracy {row['test_accuracy']});"
            f" choosing between checkpoints by it would make it a second validation set. {again}"
        )
    return row


def begin_reading(folder: Path, checkpoint: Path, about: dict[str, Any]) -> None:
    """Counts a reading before the first test image is read, so that a broken-off one is counted too.

    `about` describes the run where it left no row (its training was cut off, or the checkpoint came alone).
    """
    row = read_row(folder) or about
    update_row(
        folder, **{**row, "test_reads": (row.get("test_reads") or 0) + 1, "test_accuracy": None, "test_loss": None,
                   "test_checkpoint": file_digest(checkpoint)},
    )  # fmt: skip


def end_reading(folder: Path, figures: dict[str, float], size: int) -> dict[str, Any]:
    """Stores `test/accuracy`, `test/loss` and whatever else the reading gave; returns the row."""
    values = {k.replace("/", "_"): round(float(v), 6) for k, v in figures.items()}
    return update_row(folder, **values, test_size=size)


def may_compare_file(folder: Path, checkpoint: Path) -> str | None:
    """Why the test images are not for comparing a file with its network; None if the figure of this very checkpoint
    stands in the run's row, so that nothing can be chosen by them any more."""
    row = read_row(folder)
    if row is None or not row.get("test_reads"):
        return "the run's test figure has not been read"
    if row.get("test_accuracy") is None or row.get("test_checkpoint") != file_digest(checkpoint):
        return "the run's test figure is that of another checkpoint, or its reading was broken off"
    return None


def count_file_reading(folder: Path) -> None:
    """Counts that test images are read again to hold a file against its network: `file_test_reads` in the row."""
    update_row(folder, file_test_reads=((read_row(folder) or {}).get("file_test_reads") or 0) + 1)


def file_digest(path: Path) -> str:
    """Sixteen hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
