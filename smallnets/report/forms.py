"""Which networks are forms of one another: the real one, its quaternion form, a narrower one; told from their rows."""

import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from smallnets.config import LINKED, expand_net
from smallnets.errors import UserError
from smallnets.models.networks import NETWORKS
from smallnets.models.spec import find_class
from smallnets.pruning import Narrow
from smallnets.surgery import Quaternion, WithGray

REAL, QUATERNION, NARROWER = "real", "quaternion", "narrow"


@dataclass(frozen=True)
class Form:
    """Of a run's network: the real network that it is a form of, and what form.

    Attributes:
        name: of the real network (`resnet18`), or its class's.
        kind: `real` (also with the gray channel), `quaternion`, `narrow`, or `narrow quaternion`.
        shape: the real network's class and numbers, as text.
        data: the data set.
    """

    name: str
    kind: str
    shape: str
    data: str


def form_of(row: Mapping[str, Any]) -> Form | None:
    """The form of a row's network, by the configuration of its run; None for a row without one."""
    spec = ((row.get("config") or {}).get("model") or {}).get("net")
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        return None
    kinds = []
    while (found := _inner(spec)) is not None:
        kind, spec = found
        kinds += [kind] if kind else []
    shape = _shape(spec)
    name = _names().get(shape) or spec["class_path"].rpartition(".")[2]
    return Form(name, " ".join(kinds) or REAL, shape, str(row.get("data")))


def _inner(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """What a class does to the network `of` which it is made, and that network; None for a network of its own."""
    for cls, kind in ((Narrow, NARROWER), (Quaternion, QUATERNION), (WithGray, "")):
        if spec["class_path"].rpartition(".")[2] == cls.__name__ and spec["class_path"].startswith("smallnets."):
            of = (spec.get("init_args") or {}).get("of", "resnet18")
            return kind, _spec(of)
    return None


def _spec(of: str | dict[str, Any]) -> dict[str, Any]:
    """The spec of a name or of a spec with a bare name in it, as the classes themselves read it."""
    named = of if isinstance(of, str) else str(of.get("class_path"))
    given = {} if isinstance(of, str) else of.get("init_args") or {}
    if "." in named:
        return {"class_path": named, "init_args": given}
    try:
        found = expand_net(named)
    except UserError:  # a name of another version's
        return {"class_path": named, "init_args": given}
    return {**found, "init_args": {**found["init_args"], **given}}


def _shape(spec: Mapping[str, Any]) -> str:
    """A spec as text, with all numbers of its constructor but those of the data; a user's own class as it is."""
    numbers = dict(spec.get("init_args") or {})
    if spec["class_path"].startswith("smallnets."):  # a row makes nobody import a user's own code
        with suppress(UserError):  # a class of another version
            parameters = inspect.signature(find_class(spec["class_path"])).parameters.values()
            numbers = {**{p.name: p.default for p in parameters if p.default is not p.empty}, **numbers}
    numbers = {k: v for k, v in numbers.items() if k not in LINKED}
    return json.dumps({"class_path": spec["class_path"], "init_args": numbers}, sort_keys=True)


@cache
def _names() -> dict[str, str]:
    """Shape -> name of the named networks."""
    return {_shape(expand_net(name)): name for name in reversed(NETWORKS)}
