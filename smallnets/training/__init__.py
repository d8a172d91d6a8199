"""`Classifier`, the LightningModule, and what it is made of; the parts import without Lightning."""

from typing import Any

__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    if name == "Classifier":
        from smallnets.training.classifier import Classifier

        return Classifier
    raise AttributeError(f"module 'smallnets.training' has no attribute {name!r}")
