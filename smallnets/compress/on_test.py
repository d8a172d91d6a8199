"""The test images, file against network: only what the run's row allows, and counts."""

from collections.abc import Callable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from smallnets.compress.runtime import Exported
from smallnets.compress.subject import Subject
from smallnets.compress.verify import accuracy
from smallnets.errors import RunError, UserError
from smallnets.results.predictions import Predictions, predict
from smallnets.results.row import read_row
from smallnets.results.run import RunFolder
from smallnets.results.test_ledger import begin_reading, count_file_reading, end_reading, may_compare_file

_BATCH = 500


def require_countable(checkpoint: Path) -> RunFolder:
    """The run whose row would count a reading; UserError where there is none, RunError where it may not be read."""
    owner = RunFolder.owning(checkpoint.expanduser())
    row = read_row(owner.path) if owner else None
    if owner is None or row is None:
        raise UserError(
            f"--verify=test: {checkpoint} lies in no run that has ended, so no row could count that the test set was"
            " read; --verify=full compares on the validation images"
        )
    if row.get("test_reads") and (why := may_compare_file(owner.path, checkpoint)):
        raise RunError(f"--verify=test: {why}; `smallnets test --reread_test=true` reads it for this one")
    return owner


def compare_on_test(
    subject: Subject, file: Exported, read: Callable[[], tuple[Tensor, Tensor]], asked: bool
) -> tuple[str | None, dict[str, float]]:
    """Accuracies of the "network" and the "file" on the test images, or why they were not read.

    *Law.* Where the row holds the test figure of this very checkpoint they are read again for both, and the row counts
    that in `file_test_reads`: nothing is left to be chosen by them. Where nobody has read them they are only if
    `asked`; that is the run's reading, counted in `test_reads` before the first image is read, and its figure, the
    network's, goes into the row. One reading feeds network and file.

    Args:
        read: gives the test images, normalised, and labels.
    """
    owner = RunFolder.owning(subject.checkpoint)
    if owner is None:
        return "the checkpoint lies in no run", {}
    why = may_compare_file(owner.path, subject.checkpoint)
    if why and not asked:
        return f"{why}; --verify=test reads them, and the run's row counts it", {}
    if why:
        require_countable(subject.checkpoint)
        begin_reading(owner.path, subject.checkpoint, {})
    else:
        count_file_reading(owner.path)
    images, labels = read()
    by_net = predict(subject.net, zip(images.split(_BATCH), labels.split(_BATCH), strict=True))
    if why:
        end_reading(owner.path, _figures(by_net, len(subject.classes) or by_net.logits.shape[1]), len(images))
    return None, {"network": by_net.accuracy, "file": accuracy(file, images, labels, _BATCH)}


def _figures(found: Predictions, classes: int) -> dict[str, float]:
    """What `smallnets test` stores of a reading, with so many classes; there may be more logits."""
    figures = {"test/accuracy": found.accuracy, "test/loss": float(F.cross_entropy(found.logits, found.labels))}
    if classes >= 20:
        near = (found.logits.topk(5, 1).indices == found.labels[:, None]).any(1)
        figures["test/accuracy_top5"] = float(near.double().mean())
    return figures
