"""`masks`: what keeping nine tenths of ResNet-20's weights at zero costs, in time and in operations."""

import torch
from torch import nn
from torch.nn.utils import prune

from smallnets.bench.images import CLASSES
from smallnets.bench.loops import fresh
from smallnets.bench.modules import make_optimizer
from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.measure.dispatch import count_dispatched
from smallnets.models import make
from smallnets.pruning import Masks, select
from smallnets.pruning.criteria import magnitude

DENSITY = 0.1


class Step:
    """Forward, backward and the optimizer's step on one batch; then what is done for the masks."""

    def __init__(self, settings: Settings, kind: str) -> None:
        self.net = fresh(lambda: make("resnet20")).to(settings.device)
        size = 4 if settings.quick else 128
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(size, 3, 32, 32, generator=generator).to(settings.device)
        self.labels = (torch.arange(size) % CLASSES).to(settings.device)
        masks = select(magnitude(self.net), density=DENSITY)
        self.masks: Masks | None = masks if kind == "masks" else None
        if kind == "prune":
            for name in masks:
                layer, _, parameter = name.rpartition(".")
                prune.custom_from_mask(self.net.get_submodule(layer), parameter, masks[name])
        self.optimizer = make_optimizer(self.net.parameters())
        self()  # makes the optimizer's state and the masks' factors

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(self.images), self.labels).backward()
        self.optimizer.step()
        if self.masks is not None:
            self.masks.apply_(self.net)


def measure(settings: Settings) -> list[Row]:
    """Seconds of one training step, and the operations that the masks add to it."""
    steps = {kind: Step(settings, kind) for kind in ("dense", "masks", "prune")}
    counts = {kind: count_dispatched(step) for kind, step in steps.items()}
    sides = {kind: timed(step, settings.device) for kind, step in steps.items()}
    seconds = alternate(sides, settings.rounds(15))
    note = f"a training step of ResNet-20 at density {DENSITY}"
    added = {kind: counts[kind] - counts["dense"] for kind in ("masks", "prune")}
    operations = f"operations dispatched more than by the dense step: {added['masks']}, by prune {added['prune']}"
    share = added["masks"] / added["prune"]
    return [
        compare("masks", seconds, "masks", "dense", note),
        compare("torch.nn.utils.prune", seconds, "prune", "dense", note),
        Row("operations", "masks", "prune", None, None, share, share, share, 1, operations).with_bar(
            "==", 1, "operations", added["masks"]
        ),
    ]
