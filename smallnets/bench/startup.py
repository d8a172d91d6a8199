"""`startup`: how long a user waits for `smallnets --help`, and for the first training step."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare
from smallnets.errors import RunError

MOST_SECONDS_OF_HELP = 1.5
_ROOT = Path(__file__).parents[2]
QUICKSTART = _ROOT / "configs" / "quickstart.yaml"


class LeaveAtFirstStep(Callback):
    """Ends the process, at once and with nothing written, when the first optimizer step is done."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        os._exit(0)


def measure(settings: Settings) -> list[Row]:
    """Seconds of whole processes, files already in the system's cache.

    The first step is that of the quickstart's configuration, which a checkout has; an installed package is measured
    without it.
    """
    smallnets = [sys.executable, "-m", "smallnets"]
    rounds = settings.rounds(5)
    seconds = alternate(
        {
            "smallnets --help": _process([*smallnets, "--help"], settings),
            "python": _process([sys.executable, "-c", "pass"], settings),
        },
        rounds,
    )
    row = compare("--help", seconds, "smallnets --help", "python", "a process")
    rows = [row.with_bar("<=", MOST_SECONDS_OF_HELP, "seconds", row.median_a_seconds)]
    if QUICKSTART.exists():
        accelerator = "gpu" if settings.device.type == "cuda" else "cpu"
        fit = [*smallnets, "fit", "--config", str(QUICKSTART), f"--trainer.accelerator={accelerator}"]
        fit += ["--trainer.fast_dev_run=1", f"--trainer.callbacks+={__name__}.{LeaveAtFirstStep.__name__}"]
        imports = [sys.executable, "-c", "import torch, torchvision, torchmetrics, lightning"]
        seconds = alternate({"fit": _process(fit, settings), "imports": _process(imports, settings)}, rounds)
        note = "a process until the quickstart's first step; until torch and Lightning are imported"
        rows.append(compare("first step", seconds, "fit", "imports", note))
    return rows


def _process(command: Sequence[str], settings: Settings) -> Callable[[], float]:
    """A function that runs a command in an empty folder and returns its seconds; one run has gone before.

    Raises:
        RunError: the command failed.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(settings.threads)}

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["(nothing was printed)"])[-1]
            raise RunError(f"{' '.join(command)} ended with {done.returncode}: {last}")
        return seconds

    if not settings.quick:
        run()
    return run
