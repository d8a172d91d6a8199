"""Which weights of a network may have masks, by default and by name."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedParameter

from smallnets.errors import UserError
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear

_WEIGHTED = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    QuaternionConv2d, QuaternionLinear,
)  # fmt: skip
_NEVER = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)
# Learned tensors that are added to the activations like a bias, whatever their number of dimensions.
_ADDED = ("pos_embed", "position", "cls_token", "class_token")


def plain(net: nn.Module) -> nn.Module:
    """The network itself, where `torch.compile` has wrapped it."""
    return getattr(net, "_orig_mod", net)


def prunable(net: nn.Module) -> tuple[dict[str, nn.Parameter], list[str]]:
    """All parameters that may have a mask, by name, and the names of those that have one by default."""
    never = {
        id(parameter)
        for module in net.modules()
        if isinstance(module, _NEVER) or "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    allowed: dict[str, nn.Parameter] = {}
    usual = []
    for path, module in net.named_modules():
        weighted = isinstance(module, _WEIGHTED)
        if weighted and "weight" not in module._parameters:
            raise UserError(
                f"{path or type(module).__name__}: its weight is computed from other tensors (torch.nn.utils.prune or a"
                " parametrization); make it a plain parameter first"
            )
        for last, parameter in module._parameters.items():
            name = f"{path}.{last}" if path else last
            if isinstance(parameter, UninitializedParameter):
                raise UserError(f"{name} has no shape yet: run the network once before it gets masks")
            if (
                parameter is None
                or id(parameter) in never
                or parameter.dim() < 2
                or not parameter.numel()
                or last == "bias"
                or last.endswith("_bias")
                or any(word in last for word in _ADDED)
            ):
                continue
            never.add(id(parameter))  # a tensor that two layers share has one mask, under its first name
            allowed[name] = parameter
            if weighted:
                usual.append(name)
    return allowed, usual


def head_of(net: nn.Module) -> str:
    """The name of the weight of the network's head: its last convolution or linear layer, whether it has a mask or not.

    The same rule as that of `surgery.to_quaternion`. Raises UserError for a network that has none.
    """
    usual = prunable(plain(net))[1]
    if not usual:
        raise UserError(f"{type(plain(net)).__name__} has no convolution or linear layer, and so no head")
    return usual[-1]


def matched(net: nn.Module, names: Iterable[str], patterns: Sequence[str], what: str) -> list[str]:
    """Those of `names` that one of the patterns matches, in their own order; each pattern must match something."""
    if isinstance(patterns, str):
        raise UserError(f"{what} takes a list of patterns, got the string {patterns!r}")
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fits(name, pattern)}
        if not matches:
            every = [name for name, _ in net.named_parameters()]
            other = next((name for name in every if fits(name, pattern)), None)
            raise UserError(
                f"{what} pattern {pattern!r} matches none of the {len(names)} weights of {type(net).__name__} that can"
                f" be chosen ({', '.join(names[:3])}, ...)" + (f"; {other} is not one of them" if other else "")
            )
        found |= matches
    return [name for name in names if name in found]


def fits(name: str, pattern: str) -> bool:
    """Whether the pattern matches the name of a weight (`head.weight`) or of its layer (`head`)."""
    layer = name.rpartition(".")[0]
    return name == pattern or layer == pattern or fnmatchcase(name, pattern) or fnmatchcase(layer, pattern)
