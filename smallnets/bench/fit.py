"""`fit`: a training step of ResNet-20 in `Trainer.fit`, against a loop by hand and against the usual stack."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from smallnets.bench.loops import Work, fresh
from smallnets.bench.pipeline import CHAINS, PILImages
from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare
from smallnets.models import make

# How many times the loop by hand `Trainer.fit` may take.
LIMITS = {"crop+flip": 1.06, "autoaugment+perspective+crop+flip": 1.08}


def network(quick: bool) -> nn.Module:
    """ResNet-20, or what is left of it."""
    return fresh(lambda: make("resnet20", blocks=[1, 1, 1], channels=[4, 8, 16]) if quick else make("resnet20"))


def measure(settings: Settings) -> list[Row]:
    """Seconds of one step at batch 128, by short fits in turn: of 220 steps on a GPU, of three on a CPU."""
    # On a CPU such a step takes most of a second: the fewer in a fit, the nearer in time are the two that are compared.
    warm, steps = (20, 200) if settings.device.type == "cuda" else (1, 2)
    size = 128
    if settings.quick:
        warm, steps, size = 1, 2, 16
    rows = []
    for name, limit in LIMITS.items():
        specs, transforms, _ = CHAINS[name]
        work = Work(settings.device, warm, steps, size, augment=specs)
        pictures = PILImages(work.batches, transforms())
        sides = {
            "Trainer.fit": partial(_on_new_network, work.by_trainer, settings.quick),
            "by hand": partial(_on_new_network, work.by_hand, settings.quick),
            "usual stack": partial(_on_new_network, work.by_usual_stack, settings.quick, pictures),
        }
        seconds = alternate(sides, settings.rounds(9))
        note = f"a step of {size} images"
        rows.append(compare(f"{name}, limit", seconds, "Trainer.fit", "by hand", note).with_bar("<=", limit))
        rows.append(compare(f"{name}, usual", seconds, "usual stack", "Trainer.fit", note))
    return rows


def _on_new_network(train: Callable[..., float], quick: bool, *arguments: Any) -> float:
    """The seconds that `train` returns."""
    return train(network(quick), *arguments)
