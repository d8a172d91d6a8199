"""`predictions.csv`: what a network says of each image."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from smallnets.results.predictions import named
from smallnets.results.row import write_text


def write_predictions(path: Path, batches: Sequence[tuple[Tensor, Tensor]] | Any, data: Any) -> int:
    """Writes image, label, prediction and its probability by rename; returns the number of images.

    Args:
        path: the file to write.
        batches: (probabilities (N, classes), labels (N,), -1 where unknown), in the order of the images.
        data: has `classes` (names) and `predict_files` (one an image, in order; empty for the validation split, whose
            images are named by their position). A prediction beyond the classes is called "none".
    """
    files = list(data.predict_files)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", "prediction", "probability"])
    row = 0
    for probabilities, labels in batches:
        best, index = probabilities.max(1)
        names = named(data.classes, probabilities.shape[1])
        for p, i, label in zip(best.tolist(), index.tolist(), labels.tolist(), strict=True):
            known = data.classes[label] if label >= 0 else ""
            writer.writerow([files[row] if files else row, known, names[i], f"{p:.6f}"])
            row += 1
    write_text(path, text.getvalue())
    return row
