"""The YAML file of a study or a search: read, its keys checked, its quick form set beside it."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from smallnets.config import read_config
from smallnets.errors import UserError

T = TypeVar("T")
# What a `budget:` may limit: the fields of `smallnets.measure.Budget`, which would import torch.
LIMITS = ("parameters", "nonzero_parameters", "macs", "bytes", "activation_bytes")


def read_spec(file: str | Path, kind: str, make: Callable[[Path, dict[str, Any]], T]) -> T:
    """What `make` makes of the file; what is wrong with it is told with the file's name.

    Args:
        kind: what the file is, `study` or `search`.
        make: takes the path and its content.

    Raises:
        UserError: the file is missing, is not YAML, or what `make` raises.
    """
    path = Path(file)
    try:
        spec = read_config(str(path))
    except UserError as error:
        raise UserError(str(error).replace("--config", kind, 1)) from error
    try:
        return make(path, spec)
    except UserError as error:
        raise UserError(f"{kind} {path}: {error}") from error


def quick_part(spec: dict[str, Any], allowed: tuple[str, ...], quick: bool) -> dict[str, Any]:
    """What the file's `quick:` puts in the place of the rest. UserError if it is asked for and not there."""
    over = mapping(spec, "quick")
    only(over, allowed, "quick")
    if quick and not over:
        raise UserError("--quick: there is no `quick:` in it")
    return over


def only(spec: dict[str, Any], allowed: tuple[str, ...], what: str) -> None:
    """UserError, with the nearest name, for a key that is not allowed."""
    for key in spec:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            raise UserError(
                f"{what} has no {key!r}; {f'nearest: {near[0]}' if near else 'allowed: ' + ', '.join(allowed)}"
            )


def mapping(spec: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key, empty where there is none. UserError for anything else."""
    value = spec.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{key}: a mapping is expected, got {value!r}")
    return value or {}


def as_list(value: Any) -> list[Any]:
    """A list as it is, nothing as an empty one, anything else as its only entry."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]
