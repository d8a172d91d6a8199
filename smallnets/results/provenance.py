"""Where a result came from: code, versions, machine, configuration."""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What names a run or says where and how fast it runs, but does not change what is computed.
_NOT_IN_DIGEST = ("name", "run", "ckpt_path", "weights_only", "config")
_PACKAGES = ("smallnets", "torch", "torchvision", "lightning", "torchmetrics", "torch-pruning", "numpy")


def config_digest(config: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a resolved configuration, whatever the order of its keys."""
    kept = {k: v for k, v in config.items() if k not in _NOT_IN_DIGEST}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_state() -> dict[str, Any]:
    """Revision of the code, and whether files differ from it; nulls where the package is not in a git checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A copy installed under a checkout's virtual environment is not that checkout's code.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
    if tracked is None:
        return {"revision": None, "dirty": None}
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b.c` -> value; lists become their JSON, `init_args` is left out of the names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix.rstrip(".") if key in ("init_args", "class_path") else f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, (list, tuple)):
            flat[name] = json.dumps(value, default=str)
        elif value is not None:
            flat[name] = value
    return flat
