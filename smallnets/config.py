"""Names to classes: what the command line and the configs may abbreviate.

`resnet20` stands for `smallnets.models.ResNet` with its numbers, `quaternion_resnet20` for its conversion by
`smallnets.surgery.Quaternion`, `narrow_resnet20` for the widest within a budget by `smallnets.pruning.Narrow`, `SGD`
for `torch.optim.SGD`, `CIFAR10` for `smallnets.data.CIFAR10`, `StepLR` for `torch.optim.lr_scheduler.StepLR`. The
abbreviations are written out before parsing, on the command line and in YAML alike, so that the parser sees class paths
and nothing but.
"""

import difflib
import inspect
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from smallnets.errors import UserError

# The network's constructor arguments that come from the data, not from the user.
LINKED = ("num_classes", "in_channels", "image_size")
# `narrow_resnet18` with `--model.net.parameters=200k`: the widest ResNet-18 within a budget.
NARROW = "narrow_"


def expand_net(name: str) -> dict[str, Any]:
    """`resnet20` -> class path and *all* numbers of the constructor, so that nothing of an earlier choice stays."""
    from smallnets.models.spec import find_class
    from smallnets.surgery import names

    if name.startswith(NARROW):
        of = name.removeprefix(NARROW)
        names.expand(of)
        spec: dict[str, Any] = {"class_path": "smallnets.pruning.Narrow", "init_args": {"of": of}}
    else:
        spec = names.expand(name)
    cls = find_class(spec["class_path"])
    defaults = {
        p.name: p.default
        for p in inspect.signature(cls).parameters.values()
        if p.default is not p.empty and p.name not in LINKED
    }
    return {"class_path": spec["class_path"], "init_args": _plain({**defaults, **spec["init_args"]})}


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML and JSON know no tuples."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _subclasses(module: str, base: type) -> list[str]:
    """Public names of `module` that are subclasses of `base`, without `base` itself."""
    return [n for n, v in vars(import_module(module)).items() if _is_a(v, base) and v is not base and n[0] != "_"]


def _among(kind: str, paths: dict[str, str], name: str) -> dict[str, Any]:
    """The class path of a bare name; UserError with the nearest ones for a name that is not known."""
    if name not in paths:
        near = difflib.get_close_matches(name, paths, n=3, cutoff=0.5) or sorted(paths)
        raise UserError(f"no {kind} is called {name!r}; nearest: {', '.join(near)} (or give a dotted class path)")
    return {"class_path": f"{paths[name]}.{name}", "init_args": {}}


def _expand_optimizer(name: str) -> dict[str, Any]:
    from torch.optim import Optimizer

    from smallnets import optim

    paths = dict.fromkeys(_subclasses("torch.optim", Optimizer), "torch.optim")
    paths |= {n: "smallnets.optim" for n in optim.__all__ if _is_a(getattr(optim, n), Optimizer)}
    return _among("optimizer", paths, name)


def _expand_scheduler(name: str) -> dict[str, Any]:
    from torch.optim.lr_scheduler import LRScheduler

    module = "torch.optim.lr_scheduler"
    paths = dict.fromkeys(_subclasses(module, LRScheduler), module)
    # Lightning's form of this one says which figure it watches (`monitor`).
    return _among("schedule", {**paths, "ReduceLROnPlateau": "lightning.pytorch.cli"}, name)


def _expand_data(name: str) -> dict[str, Any]:
    from smallnets import data

    names = [n for n in data.__all__ if _is_a(getattr(data, n), data.ImageData) and n != "ImageData"]
    return _among("data set", dict.fromkeys(names, "smallnets.data"), name)


def _is_a(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


# Option -> what writes its bare names out.
EXPANSIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "model.net": expand_net,
    "model.optimizer": _expand_optimizer,
    "model.scheduler": _expand_scheduler,
    "data": _expand_data,
}


def expand_arguments(
    argv: list[str], keep: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
) -> list[str]:
    """Writes the abbreviations of a command line out; configs become their expanded text, what `keep` leaves of them.

    Raises:
        UserError: a config that is missing or not YAML, or a name that is not known.
    """
    out: list[str] = []
    rest = iter(argv)
    for argument in rest:
        option, equals, value = argument.partition("=")
        name = {"-c": "config"}.get(option, option.removeprefix("--"))
        if (name != "config" and name not in EXPANSIONS) or argument == name:
            out.append(argument)
            continue
        if not equals:
            value = next(rest, "")
        if name == "config":
            out += ["--config", json.dumps(keep(expand_config(read_config(value))))]
        elif _is_bare(value):
            spec = EXPANSIONS[name](value)
            out.append(f"--{name}={spec['class_path']}")
            out += [
                f"--{name}.{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in spec["init_args"].items()
            ]
        else:
            out.append(f"--{name}={value}")
    return out


def _is_bare(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and value != "null"


def read_config(path: str) -> dict[str, Any]:
    """A config file's options, as they are written.

    Raises:
        UserError: no such file, not YAML, or not a mapping.
    """
    try:
        text = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"--config {path}: {reason}") from error
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"--config {path} is not YAML: {getattr(error, 'problem', None) or error}{where}") from error
    if not isinstance(config, dict):
        raise UserError(f"--config {path} must hold options (a mapping), it holds {type(config).__name__}")
    return config


def expand_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with its bare names written out; numbers that are given stay above those of the name."""
    for option, expand in EXPANSIONS.items():
        *path, last = option.split(".")
        holder: Any = config
        for key in path:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or last not in holder:
            continue
        value = holder[last]
        if _is_bare(value):
            holder[last] = expand(value)
        elif isinstance(value, dict) and _is_bare(value.get("class_path")):
            spec = expand(value["class_path"])
            given = value.get("init_args") or {}
            holder[last] = {**value, "class_path": spec["class_path"], "init_args": {**spec["init_args"], **given}}
    return config
