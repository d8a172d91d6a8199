"""The figures of an evaluation, as metric objects."""

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


class TopFive(MulticlassAccuracy):
    """Share of the images whose class is among the five largest of their logits (N, C or more)."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        # torchmetrics' own `top_k` takes exactly C logits, and some networks have more.
        nearest = preds.topk(5, 1).indices
        found = (nearest == target[:, None]).any(1)
        super().update(nearest[:, 0].where(~found, target), target)


def figures(num_classes: int, prefix: str) -> MetricCollection:
    """Mean loss and micro accuracy; from 20 classes on, where it says something, the top-5 accuracy too."""
    metrics: dict[str, Any] = {
        "loss": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
    }
    if num_classes >= 20:
        metrics["accuracy_top5"] = TopFive(num_classes, average="micro", validate_args=False)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
