"""Rebuild a network with the widths that a state dict has."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from smallnets.errors import UserError


def fit_widths(net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Gives every layer of `net`, in place, the widths of its tensors in `state`; returns `net`.

    A network whose channels were removed has the modules of the full one with narrower tensors. Widths are read from
    the shapes alone: convolutions (grouped ones too), linear layers, batch and layer norms. Values are not loaded;
    layers whose width changes hold uninitialised values until `net.load_state_dict(state)`.

    Raises:
        UserError: a tensor of `state` belongs to no layer of `net`, or to one whose width cannot be changed.
    """
    for prefix, module in net.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            key = f"{prefix}.{name}" if prefix else name
            if key in state and state[key].shape != tensor.shape:
                _resize(module, prefix, name, state)
    expected, came = set(net.state_dict()), set(state)
    if expected != came:
        odd = sorted(expected ^ came)[0]
        where = "the checkpoint lacks" if odd in expected else "the network has no place for"
        raise UserError(
            f"the weights do not belong to a {type(net).__name__} of these numbers: {where} {odd!r}"
            f" ({len(expected ^ came)} names differ)"
        )
    return net


def _resize(module: nn.Module, prefix: str, name: str, state: Mapping[str, Tensor]) -> None:
    shape = tuple(state[f"{prefix}.{name}" if prefix else name].shape)
    old = getattr(module, name)
    if len(shape) != old.dim():
        raise UserError(f"{prefix}.{name} has {len(shape)} dimensions in the checkpoint and {old.dim()} in the network")
    fresh = torch.empty(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(fresh, requires_grad=old.requires_grad))
    else:
        module.register_buffer(name, fresh)
    if name not in ("weight", "running_mean"):
        return
    # The numbers beside the tensors must agree with them: forward and repr read these.
    if isinstance(module, _ConvNd):
        if module.groups > 1:
            # A depthwise layer loses whole groups; one input channel a group stays one.
            per_group = old.shape[1]
            if shape[1] != per_group:
                raise UserError(f"{prefix}: a grouped convolution's channels per group cannot change")
            module.groups = module.groups * shape[0] // old.shape[0]
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, _BatchNorm):
        module.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = shape
    elif name == "weight":
        raise UserError(f"{prefix}: the width of a {type(module).__name__} cannot be read from a state dict")
