"""A network as plain data, {"class_path": ..., "init_args": {...}}, and back: how a checkpoint rebuilds its network."""

import inspect
from collections.abc import Mapping
from difflib import SequenceMatcher
from importlib import import_module
from itertools import takewhile
from typing import Any

from torch import nn

from smallnets.errors import UserError


class _NotPlain(Exception):
    """A value that is not plain data."""


def _plain(value: Any) -> Any:
    """A copy of plain data in which tuples are lists; _NotPlain for anything else."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _plain(each) for key, each in value.items()}
    raise _NotPlain


def class_path(cls: type) -> str:
    """The dotted path under which `cls` is imported; this package's networks by their public one."""
    for room in ("smallnets.models", "smallnets.surgery"):
        if cls.__module__.startswith(f"{room}."):
            return f"{room}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _parameters(cls: type) -> list[inspect.Parameter]:
    """The constructor's parameters without self."""
    return list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]


def spec_of(net: nn.Module) -> dict[str, Any] | None:
    """{"class_path", "init_args"} of a network whose attributes mirror its constructor's arguments; else None.

    The arguments are read from the constructor's signature and their values from the attributes of the same names, so
    the network of any class, also a user's own, can be rebuilt when it keeps its arguments as plain data (None, bool,
    int, float, str, and lists, tuples and dicts of these). Tuples become lists. None too for a class that cannot be
    imported by its path (one defined inside a function) and for constructors with positional-only, `*args` or
    `**kwargs` parameters.
    """
    cls = type(net)
    if "<locals>" in cls.__qualname__:
        return None
    init_args = {}
    for parameter in _parameters(cls):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return None
        try:
            init_args[parameter.name] = _plain(getattr(net, parameter.name))
        except (AttributeError, _NotPlain):
            return None
    return {"class_path": class_path(cls), "init_args": init_args}


def nearest(name: str, known: list[str]) -> str:
    """The known names that are like `name`, as the end of a message; empty when there is none."""

    def likeness(each: str) -> tuple[float, int]:
        # Among equally like names the one with the longest common beginning comes first: resnet20 for resnet21.
        asked, there = name.lower(), each.lower()
        beginning = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, there, strict=False)))
        return SequenceMatcher(None, asked, there).ratio(), beginning

    close = [each for each in sorted(known, key=likeness, reverse=True)[:3] if likeness(each)[0] >= 0.5]
    return "; nearest: " + ", ".join(map(repr, close)) if close else ""


def find_class(path: str) -> type[nn.Module]:
    """The network class at a dotted path; UserError when there is none, with the nearest names of its module."""
    parts = path.split(".")
    # The longest importable front is the module, the rest a class in it, possibly a nested one.
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise UserError(f"cannot import {name!r}, wanted for {path!r}: {error}") from error
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                classes = [each for each in dir(found) if isinstance(getattr(found, each, None), type)]
                raise UserError(f"{path!r}: {name!r} has no {part!r}{nearest(part, classes)}")
            found = getattr(found, part)
        # Only networks are built: a spec may come out of a downloaded checkpoint and must not call arbitrary code.
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise UserError(f"{path!r} is not a class of torch.nn.Module")
        return found
    raise UserError(f"{path!r}: there is no module {parts[0]!r} to import")


def construct(cls: type[nn.Module], init_args: Mapping[str, Any]) -> nn.Module:
    """`cls(**init_args)`; UserError in one line for arguments that it does not take, lacks or refuses."""
    parameters = _parameters(cls)
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        for name in init_args:
            if name not in names:
                raise UserError(
                    f"{cls.__name__} has no argument {name!r}{nearest(name, names)} (it takes {', '.join(names)})"
                )
    try:
        return cls(**init_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"{cls.__name__}: {str(error).splitlines()[0] if str(error) else 'wrong argument'}") from error


def build(spec: Mapping[str, Any]) -> nn.Module:
    """The network of a spec, newly initialised: build(spec_of(net)) has the shapes of `net`.

    `spec` holds "class_path" (a dotted path, or a name of `smallnets.models`) and optionally "init_args". Raises
    UserError in one line for a wrong path or argument.
    """
    path, init_args = spec.get("class_path"), dict(spec.get("init_args") or {})
    if not isinstance(path, str) or not path:
        raise UserError(f"a network needs a class_path, got {path!r}")
    if "." not in path:
        from smallnets.models.networks import expand

        named = expand(path)
        path, init_args = named["class_path"], {**named["init_args"], **init_args}
    return construct(find_class(path), init_args)
