"""`lottery`: a fit of several rounds with `LotteryTicket`, against a plain fit of the same epochs."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from smallnets.bench.images import RandomImages
from smallnets.bench.loops import fresh, quiet
from smallnets.bench.modules import make_optimizer, make_schedule
from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, clock, compare
from smallnets.callbacks import LotteryTicket
from smallnets.models import make
from smallnets.training import Classifier

# How many times the plain fit the lottery may take.
LIMIT = 1.03
ROUNDS = 3


@dataclass(frozen=True)
class Rounds:
    """A dense training of `epochs` and `ROUNDS` rounds of as many."""

    device: torch.device
    network: Callable[[], nn.Module]
    epochs: int
    steps: int
    batch_size: int
    image_size: int

    @cached_property
    def data(self) -> RandomImages:
        return RandomImages(self.steps, self.batch_size, self.image_size)

    def lottery(self) -> float:
        """Seconds with pruning and rewinding between the rounds, and a checkpoint at the end of each."""
        return self._fit(LotteryTicket(rounds=ROUNDS, epochs_per_round=self.epochs, fraction=0.2))

    def plain(self) -> float:
        """Seconds without."""
        return self._fit()

    def _fit(self, *callbacks: Callback) -> float:
        module = Classifier(fresh(self.network), make_optimizer, make_schedule)
        with quiet(), tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                accelerator="gpu" if self.device.type == "cuda" else "cpu",
                devices=1,
                max_epochs=(ROUNDS + 1) * self.epochs,
                num_sanity_val_steps=0,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=[*callbacks, ModelCheckpoint(folder, save_last=True, save_top_k=0)],
            )
            start = clock(self.device)
            trainer.fit(module, datamodule=self.data)
            return clock(self.device) - start


def measure(settings: Settings) -> list[Row]:
    """Seconds of whole fits; both sides write last.ckpt after every epoch."""
    device, small = settings.device, partial(make, "lenet_300_100", in_channels=3, image_size=8)
    if settings.quick:
        cases = {"lenet_300_100": Rounds(device, small, 1, 2, 16, 8)}
    else:
        cases = {
            # As the rounds on digits are.
            "lenet_300_100": Rounds(device, small, 20, 23, 60, 8),
            # Far shorter than real rounds are: what comes between two of them is a larger share.
            "resnet20": Rounds(device, partial(make, "resnet20"), 1, 10, 128, 32),
        }
    rows = []
    for name, case in cases.items():
        seconds = alternate({"lottery": case.lottery, "plain": case.plain}, settings.rounds(5))
        note = f"{ROUNDS + 1} x {case.epochs} epochs of {case.steps} steps of {case.batch_size} images"
        rows.append(compare(name, seconds, "lottery", "plain", note).with_bar("<=", LIMIT))
    return rows
