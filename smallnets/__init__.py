"""smallnets: train, prune, compare and trust compact image classifiers.

`import smallnets` is light: torch is imported when a name that needs it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "smallnets.results.load", "save": "smallnets.results.save",
    "UserError": "smallnets.errors", "RunError": "smallnets.errors",
}  # fmt: skip
__all__ = ["RunError", "UserError", "__version__", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'smallnets' has no attribute {name!r}")
