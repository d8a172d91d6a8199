"""smallnets: train, prune, compare and trust compact image classifiers.

`import smallnets` is light: torch is imported when a name that needs it is first used. The rooms are names of it too:
`smallnets.data`, `smallnets.models`, `smallnets.pruning`, ...
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "Classifier": "smallnets.training.classifier", "trainer": "smallnets.callbacks.trainer",
    "load": "smallnets.results.load", "save": "smallnets.results.save",
    "predict": "smallnets.results.predictions", "show": "smallnets.report.show",
    "UserError": "smallnets.errors", "RunError": "smallnets.errors",
}  # fmt: skip
_ROOMS = (
    "callbacks", "compress", "data", "layers", "measure", "models", "optim", "pruning", "report", "results", "surgery",
    "training",
)  # fmt: skip
__all__ = ["Classifier", "RunError", "UserError", "__version__", "load", "predict", "save", "show", "trainer"]


def __getattr__(name: str) -> Any:
    if name in _LAZY or name in _ROOMS:
        from smallnets.requirements import require_packages

        require_packages()
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _ROOMS:
        return import_module(f"smallnets.{name}")
    raise AttributeError(f"module 'smallnets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_ROOMS])
