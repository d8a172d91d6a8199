"""The figures of an evaluation, as metric objects."""

from typing import Any

from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


def figures(num_classes: int, prefix: str) -> MetricCollection:
    """Mean loss and micro accuracy; from 20 classes on, where it says something, the top-5 accuracy too."""
    metrics: dict[str, Any] = {
        "loss": MeanMetric(),
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
    }
    if num_classes >= 20:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, validate_args=False)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
