"""`fit`: a training step of ResNet-20 in `Trainer.fit`, against a loop by hand and against the usual stack."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from smallnets.bench.loops import Work, fresh
from smallnets.bench.pipeline import CHAINS, PILImages
from smallnets.bench.rows import Row, with_rate
from smallnets.bench.timing import Settings, alternate, compare
from smallnets.data.chunks import STEPS
from smallnets.models import make

# How many times the loop by hand `Trainer.fit` may take.
LIMITS = {"crop+flip": 1.06, "autoaugment+perspective+crop+flip": 1.08}

SHOWN = "crop+flip"  # where --model.channels_last=true is shown
# The fast mode on a GPU: 0.85 of the speed of a captured loop by hand.
MOST_OF_CAPTURED = 1 / 0.85
# A ResNet-18 of 4,815,940 parameters, and what an H200-class GPU is expected to train captured, in images a second.
WIDE, WIDE_NAME = [42, 84, 168, 336], "ResNet-18 under 5M, captured"
EXPECTED = {"ResNet-20": 150_000, WIDE_NAME: 75_000}


def network(quick: bool) -> nn.Module:
    """ResNet-20, or what is left of it."""
    return fresh(lambda: make("resnet20", blocks=[1, 1, 1], channels=[4, 8, 16]) if quick else make("resnet20"))


def measure(settings: Settings) -> list[Row]:
    """Seconds of one step at batch 128, by short fits in turn: of 250 steps on a GPU, of three on a CPU."""
    # On a CPU such a step takes most of a second: the fewer in a fit, the nearer in time are the two that are compared.
    on_gpu = settings.device.type == "cuda"
    warm, steps = (STEPS, 4 * STEPS) if on_gpu else (1, 2)
    size = 128
    if settings.quick:
        warm, steps, size = (STEPS, STEPS, 16) if on_gpu else (1, 2, 16)
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
        if name == SHOWN:
            last = partial(work.by_trainer, channels_last=True)
            sides["channels_last"] = partial(_on_new_network, last, settings.quick)
        if on_gpu:
            sides |= {
                "fast mode": partial(_on_new_network, partial(work.by_trainer, fast=True), settings.quick),
                "captured by hand": partial(_on_new_network, work.by_hand_captured, settings.quick),
            }
        seconds = alternate(sides, settings.rounds(9))
        note = f"a step of {size} images"
        rows.append(compare(f"{name}, limit", seconds, "Trainer.fit", "by hand", note).with_bar("<=", limit))
        if "fast mode" in sides:
            row = compare(f"{name}, captured", seconds, "fast mode", "captured by hand", note)
            expected = EXPECTED["ResNet-20"] if name == SHOWN else None
            rows.append(with_rate(row, size, expected).with_bar("<=", MOST_OF_CAPTURED))
        if "channels_last" in sides:
            rows.append(compare(f"{name}, layout", seconds, "channels_last", "Trainer.fit", note))
        rows.append(compare(f"{name}, usual", seconds, "usual stack", "Trainer.fit", note))
    return [*rows, _wide(settings, warm, steps, size)] if on_gpu else rows


def _wide(settings: Settings, warm: int, steps: int, size: int) -> Row:
    """The network of nearly 5M parameters, captured."""
    work = Work(settings.device, warm, steps, size, augment=CHAINS[SHOWN][0])

    def net() -> nn.Module:
        return network(True) if settings.quick else fresh(lambda: make("resnet18", channels=WIDE))

    sides = {
        "fast mode": lambda: work.by_trainer(net(), fast=True),
        "captured by hand": lambda: work.by_hand_captured(net()),
    }
    seconds = alternate(sides, settings.rounds(9))
    row = compare(WIDE_NAME, seconds, "fast mode", "captured by hand", f"a step of {size} images")
    return with_rate(row, size, EXPECTED[WIDE_NAME]).with_bar("<=", MOST_OF_CAPTURED)


def _on_new_network(train: Callable[..., float], quick: bool, *arguments: Any) -> float:
    """The seconds that `train` returns."""
    return train(network(quick), *arguments)
