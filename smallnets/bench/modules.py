"""The recipe that all loops train by, and two LightningModules of other people's."""

from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics.classification import MulticlassAccuracy

from smallnets.bench.images import CLASSES
from smallnets.optim import in_foreach_form


def make_optimizer(parameters: Any) -> Optimizer:
    """The recipe's in the form that `Classifier` gives it: the loop by hand is not held back by torch's default."""
    return in_foreach_form(usual_optimizer(parameters))


def usual_optimizer(parameters: Any, fused: bool | None = None) -> Optimizer:
    """SGD with Nesterov's momentum, as in the recipes, at a rate at which random labels do no harm."""
    return SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=fused)


def make_schedule(optimizer: Optimizer) -> CosineAnnealingLR:
    """Half a cosine over ten epochs."""
    return CosineAnnealingLR(optimizer, T_max=10)


class Plain(L.LightningModule):
    """The least that Lightning can train: a loss, an optimizer and its schedule; nothing is kept or logged."""

    form = staticmethod(make_optimizer)

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> Any:
        optimizer = self.form(self.net.parameters())
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(optimizer)}


class Usual(Plain):
    """A LightningModule as tutorials write it: a metric object updated, and two figures logged, in every step."""

    form = staticmethod(usual_optimizer)

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = cross_entropy(logits, labels)
        self.accuracy.update(logits, labels)
        self.log("train/loss", loss)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss
