"""`metrics.csv`: one row a step at which something was logged, kept across a resume."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smallnets.results.row import write_text


class MetricsCSV(Logger):
    """Logs metrics to `<folder>/metrics.csv`; columns `epoch`, `step`, then the metrics by name.

    Metrics logged at one step share a row. The file is written whole, by rename. A resumed run keeps the rows before
    its checkpoint and writes the others anew. (Lightning's CSVLogger deletes the rows of the run that is resumed.)

    Args:
        folder: the run's folder.
        resumed_step: the optimizer step of the checkpoint that the run continues from; None for a new run.
    """

    def __init__(self, folder: str | Path, resumed_step: int | None = None) -> None:
        super().__init__()
        self._path = Path(folder) / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        if resumed_step is not None and self._path.is_file():
            with self._path.open(newline="") as file:
                for row in csv.DictReader(file):
                    step = int(row["step"])
                    # The row of an epoch's last step, `step - 1`, is the newest that the checkpoint knows of.
                    if step < resumed_step:
                        self._rows[step] = {k: v for k, v in row.items() if v not in ("", None)}

    @property
    def name(self) -> str:
        return self._path.parent.parent.name

    @property
    def version(self) -> str:
        return self._path.parent.name

    @property
    def log_dir(self) -> str:
        return str(self._path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """There is no object behind this logger."""
        return

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration stands in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(step or 0, {"step": step or 0})
        # Lightning logs float32, whose eighth digit says nothing.
        row.update({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in metrics.items()})

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        names = sorted({name for row in self._rows.values() for name in row} - {"epoch", "step"})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", "step", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows[step] for step in sorted(self._rows))
        write_text(self._path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
