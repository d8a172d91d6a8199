"""Which layers and which values of a network are rounded, read off its graph."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from smallnets.errors import UserError
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear
from smallnets.layers.quaternion_norm import QuaternionBatchNorm2d
from smallnets.surgery.fold import LayerTracer, norms_of

_WEIGHTED = (nn.Conv2d, nn.Linear, QuaternionConv2d, QuaternionLinear)
# What gives out some of the values that it is given, and so needs no range of its own. (Dropout, once trained.)
_PASSING_MODULES = (nn.Flatten, nn.Identity, nn.MaxPool2d, nn.Dropout)
_PASSING = (
    torch.flatten, F.max_pool2d, operator.getitem, "flatten", "unflatten", "view", "reshape", "permute", "transpose",
    "contiguous", "squeeze", "unsqueeze", "movedim",
)  # fmt: skip
_ADDING = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU = (F.relu, torch.relu, "relu", "relu_")


def followed(net: nn.Module) -> fx.Graph:
    """The calls of `net`'s forward, modules without children taken as they are; UserError where it cannot be had."""
    try:
        return LayerTracer().trace(net)
    except Exception as error:  # whatever the code of a user's network raises
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"{type(net).__name__} cannot be quantised, its forward cannot be followed:\n{reason}"
        ) from error


def layers_of(net: nn.Module, graph: fx.Graph) -> dict[str, nn.Module]:
    """The layers whose weights are rounded, by name.

    Raises:
        UserError: there is none; a grouped quaternion convolution; a convolution that a whitening norm follows.
    """
    targets = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    found = {name: net.get_submodule(name) for name in targets}
    layers: dict[str, nn.Module] = {name: module for name, module in found.items() if isinstance(module, _WEIGHTED)}
    if not layers:
        raise UserError(f"{type(net).__name__} has no convolution and no linear layer to quantise")
    for name, module in layers.items():
        if isinstance(module, QuaternionConv2d) and module.groups > 1:
            raise UserError(f"{name}: a quaternion convolution of {module.groups} groups cannot be quantised")
    for name, norm in norms_of(net).items():
        if isinstance(net.get_submodule(norm), QuaternionBatchNorm2d):
            raise UserError(
                f"{norm} cannot be quantised: a whitening norm mixes the channels of {name}, which have scales of their"
                " own; use norm='real'"
            )
    return layers


def inputs_of(net: nn.Module, graph: fx.Graph) -> dict[str, list[str]]:
    """For each layer with a weight the names of the values that it reads, one for each call."""
    inputs: dict[str, list[str]] = {}
    for node in graph.nodes:
        if isinstance(_module(net, node), _WEIGHTED):
            inputs.setdefault(str(node.target), []).append(_source(net, node.args[0]).name)
    return inputs


def points_of(net: nn.Module, graph: fx.Graph) -> list[fx.Node]:
    """The values that are rounded, in the order in which they are computed."""
    norms = norms_of(net)

    def stored(node: fx.Node) -> fx.Node:
        """What is stored of a value: that after the BatchNorm and the ReLU that alone read it."""
        if node.op == "call_module" and str(node.target) in norms:
            (node,) = node.users
        users = list(node.users)
        rectified = len(users) == 1 and (isinstance(_module(net, users[0]), nn.ReLU) or users[0].target in _RELU)
        return users[0] if rectified else node

    chosen = set()
    for node in graph.nodes:
        if isinstance(_module(net, node), _WEIGHTED):
            chosen |= {_source(net, node.args[0]), stored(node)}
        elif node.target in _ADDING and all(isinstance(each, fx.Node) for each in node.args[:2]):
            chosen.add(stored(node))
    return [node for node in graph.nodes if node in chosen and any(user.op != "output" for user in node.users)]


def with_modules(
    net: nn.Module, graph: fx.Graph, layers: Mapping[str, nn.Module], points: Mapping[str, nn.Module]
) -> fx.GraphModule:
    """The graph with other modules for some layers, and a module after some values; all else is `net`'s own."""
    root: dict[str, Any] = {}
    number = 0
    for node in list(graph.nodes):
        if node.op == "call_module":
            root[str(node.target)] = layers.get(str(node.target)) or net.get_submodule(str(node.target))
        elif node.op == "get_attr":
            root[str(node.target)] = operator.attrgetter(str(node.target))(net)
        if node.name in points:
            name, number = f"point_{number}", number + 1
            root[name] = points[node.name]
            with graph.inserting_after(node):
                rounded = graph.call_module(name, (node,))
            node.replace_all_uses_with(rounded, delete_user_cb=lambda user, own=rounded: user is not own)
    return fx.GraphModule(root, graph)


def _module(net: nn.Module, node: fx.Node) -> nn.Module | None:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def _source(net: nn.Module, node: Any) -> fx.Node:
    """Where a value comes from, behind what only passes on or picks out values."""
    while isinstance(_module(net, node), _PASSING_MODULES) or node.target in _PASSING:
        if not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    return node
