"""`predict`: what a network says of images whose labels are known, and what can be read from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from smallnets.errors import UserError

# What a logit beyond the classes stands for: document 001 trains ten classes on a head of 1,000.
NONE = "none"


def named(classes: Sequence[str], width: int) -> list[str]:
    """A name for each of `width` logits: those of the classes, and "none" for every one beyond them."""
    return [*classes, *[NONE] * (width - len(classes))]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits beside labels, in the order of the images; on the CPU.

    Attributes:
        logits: (N, C), float32.
        labels: (N,), int64; -1 where the label is not known. Such an image counts nowhere but in `predicted` and
            `probabilities`.
    """

    logits: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.logits.ndim != 2 or self.labels.shape != self.logits.shape[:1]:
            raise UserError(
                f"predictions are logits (N, C) and labels (N,), not {tuple(self.logits.shape)} and"
                f" {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def probabilities(self) -> Tensor:
        """(N, C), float64, so that two confident predictions are seldom both 1: rows of softmax."""
        return self.logits.double().softmax(1)

    @cached_property
    def predicted(self) -> Tensor:
        """(N,), int64: the class of the largest logit, the first one of equals."""
        return self.logits.argmax(1)

    @cached_property
    def confidence(self) -> Tensor:
        """(N,), float64: the probability of the predicted class."""
        return self.probabilities.max(1).values

    @property
    def accuracy(self) -> float:
        """Share of the labelled images whose predicted class is their label; NaN where none has a label."""
        known = self.labels >= 0
        return float((self.predicted == self.labels)[known].double().mean())

    def confusion(self, classes: int | None = None) -> Tensor:
        """(C, C), int64: how many images of each class, the row, were taken for each class, the column.

        A row's sum is the class's number of images, the trace the number of correct predictions.

        Args:
            classes: C, by default the number of logits. Where there are more logits than that, one row and column come
                after the classes, (C + 1, C + 1), for all of those together: of no image, but perhaps a prediction.
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        width = self.logits.shape[1]
        predicted, number = self.predicted, width if classes is None else classes
        if width > number:
            predicted, number = predicted.clamp(max=number), number + 1
        return multiclass_confusion_matrix(predicted, self.labels, num_classes=number, ignore_index=-1)

    def mistakes(self, n: int | None = None) -> Tensor:
        """Positions of the wrongly predicted images, the most confident first, at most `n`; int64.

        Of equally confident ones the earlier image comes first.
        """
        if n is not None and n < 0:
            raise UserError(f"the number of mistakes is 0 or more, not {n}")
        wrong = ((self.predicted != self.labels) & (self.labels >= 0)).nonzero().flatten()
        # Of all their probabilities, the largest is 1 / (1 + odds against it): where it rounds to 1, the odds do not.
        order = self._odds_against[wrong].argsort(stable=True)
        return wrong[order][:n]

    @cached_property
    def _odds_against(self) -> Tensor:
        """(N,), float64, in logarithms: the other classes' probability over that of the predicted one."""
        logits = self.logits.double()
        others = logits.scatter(1, self.predicted[:, None], float("-inf"))
        return others.logsumexp(1) - logits.gather(1, self.predicted[:, None]).squeeze(1)


@torch.no_grad()
def predict(net: nn.Module, batches: Iterable[Any], device: torch.device | str | None = None) -> Predictions:
    """What `net` says of every image, in eval mode; the mode of each of its modules is as before afterwards.

    Args:
        net: takes images (N, channels, height, width) and returns logits (N, C).
        batches: (normalised images, labels (N,)) in turn, as `data.batches("val")` gives them.
        device: where it runs, the network too, which stays there; by default where the network is.

    Raises:
        UserError: no batch came.
    """
    if device is not None:
        net.to(device)
    else:
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
    logits, labels = [], []
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()
        for images, known in batches:
            logits.append(net(images.to(device)).float())
            labels.append(known)
    finally:
        for module, training in modes.items():
            module.training = training
    if not logits:
        raise UserError("there are no images to predict: the batches are empty")
    # Moved once at the end: nothing waits for the device in between.
    return Predictions(torch.cat(logits).cpu(), torch.cat([each.to(device) for each in labels]).cpu())
