"""What makes a run: its settings without defaults and without what only names or shows it, and their digest."""

import hashlib
import inspect
import json
from importlib import import_module
from typing import Any

from smallnets.data import MODULES

# What names a run, says where it works or what is shown of it; the seed is told beside the digest.
_NOT_A_SETTING = (
    "name", "run", "ckpt_path", "weights_only", "config", "reread_test", "seed_everything", "checkpoint_every", "look",
    "trainer.default_root_dir", "trainer.logger", "trainer.enable_progress_bar", "trainer.enable_model_summary",
    "trainer.profiler", "trainer.log_every_n_steps", "data.init_args.download", "data.init_args.cache",
    "data.init_args.predict_from", "data.init_args.eval_batch_size",
)  # fmt: skip


def settings_digest(settings: dict[str, Any]) -> str:
    """Eight hexadecimal digits of the SHA-256 of `essential_settings`, whatever the order of their keys."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def essential_settings(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved configuration decides a run's result, but the seed.

    An option that is at its default is left out, also within a class's `init_args`: a new option with a default makes
    no other run of the old configuration. Where a named data set lies is left out too; an `ImageFolder` is its folder.

    Args:
        config: a resolved configuration as plain data.
        defaults: the same of a command line without any option.
    """
    kept = json.loads(json.dumps(config, default=str))
    dropped = list(_NOT_A_SETTING)
    if (config.get("data") or {}).get("class_path") in [f"smallnets.data.{m}" for m in MODULES if m != "ImageFolder"]:
        dropped.append("data.init_args.root")
    for name in dropped:
        *path, last = name.split(".")
        holder = kept
        for key in path:
            holder = holder.get(key) or {}
        holder.pop(last, None)
    return _without_defaults(kept, json.loads(json.dumps(defaults, default=str)))


def _without_defaults(value: Any, default: Any) -> Any:
    """`value` without the entries that equal those of `default`; a class's arguments against its signature."""
    if isinstance(value, list):
        return [_without_defaults(v, None) for v in value]
    if not isinstance(value, dict):
        return value
    if "class_path" in value:
        given = value.get("init_args") or {}
        return {**value, "init_args": _different(given, _signature_defaults(value["class_path"]))}
    return _different(value, default if isinstance(default, dict) else {})


def _different(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _without_defaults(v, defaults.get(k)) for k, v in given.items() if k not in defaults or v != defaults[k]}
    # A group of which nothing is left is at its defaults.
    return {k: v for k, v in kept.items() if v != {} or not isinstance(defaults.get(k), dict)}


def _signature_defaults(class_path: str) -> dict[str, Any]:
    """The default values of a class's constructor, or of a function, as plain data; none if it cannot be looked at."""
    module, _, name = class_path.rpartition(".")
    try:
        parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    found = {p.name: p.default for p in parameters if p.default is not p.empty}
    return json.loads(json.dumps(found, default=str))
