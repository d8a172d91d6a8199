"""Running sums of an epoch, kept on the device so that a training step never waits for the host."""

from collections.abc import Callable

import torch
from torch import Tensor


class Sums:
    """Loss, correct predictions and images since the epoch's start, of this rank.

    `loss` is float64, `correct` and `count` int64, each a 0-dim tensor on the training device. Reading a value
    (`reduced`) is the only synchronisation. The sums travel in the checkpoint, so that an epoch that was
    interrupted reports what the uninterrupted epoch would have reported.
    """

    def __init__(self) -> None:
        self.loss, self.correct, self.count = _zeros(torch.device("cpu"))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three sums themselves."""
        return self.loss, self.correct, self.count

    def reset(self, device: torch.device) -> None:
        if self.loss.device != device:
            self.loss, self.correct, self.count = _zeros(device)
        else:
            # The same tensors stay: a captured step writes into them.
            for each in self.tensors():
                each.zero_()

    def to(self, device: torch.device) -> None:
        if self.loss.device != device:
            self.loss, self.correct, self.count = (t.to(device) for t in (self.loss, self.correct, self.count))

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        """Add one batch: its mean loss, the number of correct predictions (0-dim tensors) and its size."""
        self.loss += loss.detach() * count
        self.correct += correct
        self.count += count

    def reduced(self, all_reduce: Callable[[Tensor], Tensor]) -> tuple[float, int, int]:
        """(loss sum, correct, count) over all ranks; every rank must call it."""
        loss, correct, count = (all_reduce(t) for t in (self.loss, self.correct, self.count))
        return loss.item(), int(correct.item()), int(count.item())

    def load(self, loss: float, correct: int, count: int) -> None:
        self.loss.fill_(loss)
        self.correct.fill_(correct)
        self.count.fill_(count)


def _zeros(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    # Metal has no float64; there float32 sums of at most some thousand batch losses are precise enough.
    real = torch.float32 if device.type == "mps" else torch.float64
    return tuple(torch.zeros((), dtype=d, device=device) for d in (real, torch.int64, torch.int64))  # type: ignore[return-value]
