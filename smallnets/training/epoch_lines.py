"""Plain progress lines for logs and pipes; on a terminal Lightning's rich bar shows the same."""

import time
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class EpochLines(Logger):
    """Prints one line an epoch on rank 0: losses, accuracies and seconds.

    It is a logger because loggers see an epoch's figures together, after all of them are known.

    Args:
        epochs: how many epochs the run has in all; None if it is bounded by steps.
    """

    def __init__(self, epochs: int | None) -> None:
        super().__init__()
        self._epochs = epochs
        self._figures: dict[str, float] = {}
        self._since = time.perf_counter()

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """There is no object behind this logger."""
        return

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Hyperparameters are not printed; but they come when training begins, which is when the clock starts."""
        self._since = time.perf_counter()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._figures.update(metrics)
        # The training figures are logged last, at the epoch's very end.
        if "train/loss" not in metrics:
            return
        now = time.perf_counter()
        of = f"/{self._epochs}" if self._epochs else ""
        parts = [f"epoch {int(metrics.get('epoch', 0)) + 1}{of}"]
        for part in ("train", "val"):
            if f"{part}/loss" in self._figures:
                loss, accuracy = self._figures[f"{part}/loss"], self._figures[f"{part}/accuracy"]
                parts.append(f"{part} loss {loss:.4f} accuracy {accuracy:.4f}")
        print("  ".join([*parts, f"{now - self._since:.1f} s"]), flush=True)
        self._since, self._figures = now, {}
