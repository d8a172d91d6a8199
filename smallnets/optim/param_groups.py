"""Parameter groups: which parameters weight decay acts on."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from smallnets.errors import RunError, UserError

_NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Learned tensors that are added to the activations like a bias, whatever their number of dimensions.
_BIAS_LIKE = ("pos_embed", "position", "cls_token", "class_token")


def param_groups(net: nn.Module, spare_norm_and_bias: bool) -> list[dict[str, Any]]:
    """The groups that an optimizer takes, covering every trainable parameter of `net` exactly once.

    Without the flag: one group of all trainable parameters, in the order of `net.named_parameters()`. With it: first
    the parameters that the optimizer's own weight decay acts on, then a group with `weight_decay` 0 of what is spared:
    every parameter of a normalisation layer, every bias and every other parameter of at most one dimension, and
    position embeddings and class tokens (by name), as is usual for batch-normalised networks (He et al. 2019, "Bag of
    Tricks for Image Classification") and transformers. Each group keeps the order of `net.named_parameters()`, so that
    an optimizer's state dict fits a network that was built again. An empty group is left out. A tensor that two
    layers share is listed once, under its first name. Frozen parameters (`requires_grad=False`) are in no group.

    Raises:
        UserError: nothing in `net` is trainable.
        RunError: the groups would not cover every trainable parameter exactly once.
    """
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not trainable:
        raise UserError(f"{type(net).__name__} has no trainable parameter: nothing for an optimizer to do")
    if not spare_norm_and_bias:
        return [{"params": list(trainable.values())}]
    norms = {id(p) for module in net.modules() if _is_norm(module) for p in module.parameters(recurse=False)}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in trainable.items():
        last = name.rpartition(".")[2]
        spare = (
            id(parameter) in norms
            or parameter.dim() <= 1
            or last == "bias"
            or last.endswith("_bias")
            or any(word in last for word in _BIAS_LIKE)
        )
        (spared if spare else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    listed = [id(p) for group in groups for p in group["params"]]
    expected = {id(p) for p in net.parameters() if p.requires_grad}
    if len(listed) != len(expected) or set(listed) != expected:
        raise RunError(f"parameter groups cover {len(listed)} of {len(expected)} trainable tensors")
    return [group for group in groups if group["params"]]


def _is_norm(module: nn.Module) -> bool:
    # The name covers norms that are not torch's own, such as a quaternion batch norm.
    return isinstance(module, _NORMS) or "Norm" in type(module).__name__
