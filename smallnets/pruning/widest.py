"""`Narrow`: the widest network of a shape within a budget, by one option of the command line."""

import inspect
from typing import Any

import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.measure import Budget
from smallnets.models.spec import build, find_class, spec_of
from smallnets.pruning.narrow import narrow
from smallnets.surgery.names import expand
from smallnets.surgery.quaternion import Quaternion


class Narrow(nn.Module):
    """The widest network of a shape within a budget: `--model.net=narrow_resnet18 --model.net.parameters=1M`.

    What is built is a network of the class that `of` names, with all its widths times one factor (`pruning.narrow`),
    and nothing around it: its checkpoint holds its numbers and is loaded as any other's, whatever this class becomes.

    Laws: no larger factor gives a network of other widths that fits; with the same generator it starts bitwise as its
    class with those numbers does.

    Args:
        of: a network's name (`resnet18`, `quaternion_resnet18`), or {"class_path": ..., "init_args": {...}}.
        parameters, macs, bytes, activation_bytes: limits, at least one, such as 1M (`measure.Budget`).
        multiple: of which widths are multiples; by default 4 for a quaternion network and 1 for others.

    Raises:
        UserError: no limit, a limit below the narrowest network's, no such network, or one that has no widths.
    """

    def __new__(  # type: ignore[misc]
        cls,
        of: str | dict[str, Any] = "resnet18",
        parameters: int | str | None = None,
        macs: int | str | None = None,
        bytes: int | str | None = None,
        activation_bytes: int | str | None = None,
        multiple: int | None = None,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> nn.Module:
        limits = {"parameters": parameters, "macs": macs, "bytes": bytes, "activation_bytes": activation_bytes}
        if all(limit is None for limit in limits.values()):
            raise UserError(f"a narrow network needs a limit: --model.net.parameters=1M, or one of {', '.join(limits)}")
        spec: dict[str, Any] = {"class_path": of} if isinstance(of, str) else dict(of)
        if "." not in str(spec.get("class_path")):
            named = expand(str(spec.get("class_path")))
            spec = {**named, "init_args": {**named["init_args"], **(spec.get("init_args") or {})}}
        given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        takes = inspect.signature(find_class(spec["class_path"])).parameters
        spec["init_args"] = {**(spec.get("init_args") or {}), **{k: v for k, v in given.items() if k in takes}}
        with torch.device("meta"):
            full = build(spec)
            small = narrow(
                full, Budget(**limits), multiple=multiple or (4 if isinstance(full, Quaternion) else 1),
                image_size=image_size, in_channels=in_channels,
            )  # fmt: skip
        found = spec_of(small)
        assert found is not None  # or narrow would have refused it
        # Not `small` itself: `narrow` draws from a seed of its own, and a run's is the run's.
        return build(found)
