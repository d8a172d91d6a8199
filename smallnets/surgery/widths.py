"""Rebuild a network with the widths that a state dict has."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from smallnets.errors import UserError
from smallnets.models.vit import Attention


def fit_widths(net: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> nn.Module:
    """Gives every layer of `net`, in place, the widths of its tensors in `state`; returns `net`.

    A network whose channels were removed has the modules of the full one with narrower tensors. Widths are read from
    the shapes alone: convolutions (depthwise ones too), linear layers, batch, instance and layer norms, parameters that
    a class of its own holds, and the number of heads of this package's attention, each of the width that it was built
    with. Values are not loaded: layers whose width changes hold uninitialised values until
    `net.load_state_dict(state)`. Parameters that change are new objects, so an optimizer is to be built afterwards;
    they keep their type, device, memory format and `requires_grad`, and a tensor that several layers share stays
    shared. With `strict=False` names that only one side has are let pass.

    Raises:
        UserError: a tensor of `state` belongs to no layer of `net`, or to one whose width cannot be changed; `net` is
            then as it was.
    """
    if strict:
        _check_names(net, state)
    changed = list(_changed(net, state))
    for module, name, key in changed:
        _check(module, name, key, getattr(module, name), tuple(state[key].shape))
    heads = dict(_heads(net, state))
    fresh: dict[int, Tensor] = {}
    for module, name, key in changed:
        old = getattr(module, name)
        if id(old) not in fresh:
            fresh[id(old)] = _empty(old, tuple(state[key].shape))
        setattr(module, name, fresh[id(old)])
        _tell(module, name)
    for attention, number in heads.items():
        attention.heads = number
    return net


def _check_names(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected, came = set(net.state_dict()), set(state)
    if expected != came:
        odd = sorted(expected ^ came)[0]
        where = "the checkpoint lacks" if odd in expected else "the network has no place for"
        raise UserError(
            f"the weights do not belong to a {type(net).__name__} of these numbers: {where} {odd!r}"
            f" ({len(expected ^ came)} names differ)"
        )


def _changed(net: nn.Module, state: Mapping[str, Tensor]) -> Any:
    """(module, name, key) of each tensor whose shape in `state` is another."""
    for prefix, module in net.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            key = f"{prefix}.{name}" if prefix else name
            if key in state and state[key].shape != tensor.shape:
                yield module, name, key


def _heads(net: nn.Module, state: Mapping[str, Tensor]) -> Iterator[tuple[Attention, int]]:
    """(attention, number of heads that its q, k, v projection in `state` has); UserError for a part of a head."""
    for prefix, module in net.named_modules():
        key = f"{prefix}.qkv.weight" if prefix else "qkv.weight"
        if isinstance(module, Attention) and isinstance(module.qkv, nn.Linear) and key in state:
            number, rest = divmod(state[key].shape[0], 3 * module.head_width)
            if rest or not number:
                raise UserError(
                    f"{key} has {state[key].shape[0]} rows in the checkpoint, which are no whole heads of"
                    f" {module.head_width} channels for q, k and v"
                )
            yield module, number


def _check(module: nn.Module, name: str, key: str, old: Tensor, shape: tuple[int, ...]) -> None:
    """UserError unless `module` can be given `shape` for its tensor `name`."""
    was = tuple(old.shape)
    if len(shape) != len(was):
        raise UserError(f"{key} has {len(shape)} dimensions in the checkpoint and {len(was)} in the network")
    if isinstance(module, _ConvNd):
        if module.transposed or not (module.groups == 1 or depthwise(module)):
            # Whether groups or channels of each group were removed cannot be told from the shape.
            kind = "transposed" if module.transposed else f"grouped ({module.groups} groups)"
            raise UserError(f"{key}: the width of a {kind} convolution cannot be changed")
        # A kernel of another size is no narrower layer; a depthwise filter always sees one channel.
        fixed = slice(2, None) if module.groups == 1 else slice(1, None)
    elif isinstance(module, (nn.Linear, _NormBase)):
        fixed = slice(2, None)
    elif isinstance(module, nn.LayerNorm):
        fixed = slice(1, None)
    elif type(module).__module__.startswith("torch.nn."):
        # It keeps numbers beside its tensors that nobody would change.
        raise UserError(f"{key}: the width of a {type(module).__name__} cannot be read from a state dict")
    else:
        return
    if shape[fixed] != was[fixed]:
        raise UserError(f"{key} has shape {list(shape)} in the checkpoint and {list(was)} in the network")


def depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one filter for every channel."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def _empty(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised tensor of `shape` that is in all else like `old`."""
    last = old.dim() == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    fresh = torch.empty(shape, dtype=old.dtype, device=old.device, memory_format=layout)
    return nn.Parameter(fresh, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else fresh


def _tell(module: Any, name: str) -> None:
    """Makes the numbers that a layer keeps beside its tensors agree with them: forward and repr read these."""
    shape = tuple(getattr(module, name).shape)
    if isinstance(module, _ConvNd) and name == "weight":
        if module.groups > 1:
            module.groups = shape[0]
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear) and name == "weight":
        module.out_features, module.in_features = shape
    elif isinstance(module, _NormBase):
        module.num_features = shape[0] if shape else module.num_features
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = shape
