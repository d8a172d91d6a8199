"""What the dependency graph of torch-pruning (Fang et al. 2023) is asked for: layers narrowed one after the other, and
the groups of coupled channels.

The one file that imports torch-pruning. Its tracing changes modes, leaves layers half pruned when it fails and does not
know frozen parameters, so it works on a copy; the network itself then takes the copy's widths and values.
"""

import math
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, get_args

import torch
import torch_pruning as tp
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.pruning.channel_scores import FilterCriterion, filter_scores
from smallnets.pruning.groups import Group, Part, Role, head_groups, proven
from smallnets.pruning.prunable import plain
from smallnets.pruning.quaternion_channels import quaternion_groups
from smallnets.pruning.trial import NoEffectWarning, bare_copy, blank_images, cannot_follow, require_shape
from smallnets.surgery.quaternion import Quaternion
from smallnets.surgery.widths import depthwise, fit_widths

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def prune_layers(
    net: nn.Module,
    ratios: Mapping[str, float],
    criterion: FilterCriterion = "l1",
    image_size: int = 32,
    in_channels: int = 3,
    seed: int = 0,
) -> nn.Module:
    """Removes output channels of layers of `net`, one layer after the other, in place; returns `net`.

    Each layer in its turn loses floor(ratio * width) of the output channels that it has *then*, exactly, and with them
    goes all that belongs to them elsewhere: BatchNorm, the inputs of the layers behind, and the same channels of every
    layer whose output is added to its own. Layers that are tied by sums are thus narrowed again by each of them that is
    named (document 004; torch-pruning's high-level pruner does it once).

    Laws:
        - The network is physically smaller: shapes, parameters, MACs and stored bytes fall. It gives the logits that it
          gave before when all that was removed was zero.
        - Modes, `requires_grad` and hooks stay as they are. Layers that change have new parameters: build the optimizer
          afterwards.
        - When an error is raised the network is as it was.

    Args:
        net: takes images (N, in_channels, image_size, image_size); convolutions and linear layers can be named.
        ratios: name or pattern (`stages.*.conv1`) -> share of the layer's channels to remove, from 0 to below 1, in
            this order; the layers of one pattern in the network's order.
        criterion: which channels go, of the filters that the layer has then: the smallest L1 or L2 norms ("l1", "l2"),
            those nearest to the others ("fpgm"), or "random"; among equal ones the first.
        image_size, in_channels: of an image that the network takes, to trace it.
        seed: of the random criterion; the draw depends on nothing else.

    Raises:
        UserError: a ratio out of range, a pattern that matches no layer, a layer named twice, one that gives the
            logits or whose width is tied to another width, one that would lose all channels, or a network that
            torch-pruning cannot follow.

    Warns:
        NoEffectWarning: a ratio above 0 is less than one channel of its layer.
    """
    check_request(ratios, criterion)
    original = plain(net)  # a network under torch.compile
    steps = _steps(original, ratios)
    work = bare_copy(original)
    images = blank_images(work, image_size, in_channels)
    graph, shape = _traced(work, images)
    generator = torch.Generator().manual_seed(seed)
    for name, ratio in steps:
        layer: Any = work.get_submodule(name)
        width = len(layer.weight)
        # The decimal that was written: 0.29 of 100 is 29, which the nearest binary number misses.
        number = math.floor(Fraction(str(ratio)) * width)
        if number == 0:
            if ratio:
                warnings.warn(
                    f"{name}: {ratio} of {width} channels is less than one, nothing removed", NoEffectWarning, 2
                )
            continue
        try:
            order = torch.sort(filter_scores(layer.weight, criterion, generator), stable=True).indices
            _remove(graph, layer, name, sorted(order[:number].tolist()))
        except UserError:
            raise
        except Exception as error:
            raise cannot_follow(original, f"removing channels of {name}", error) from error
    require_shape(original, work, images, shape)
    pruned = work.state_dict()
    fit_widths(original, pruned).load_state_dict(pruned)
    return net


def channel_groups(net: nn.Module, image_size: int = 32, in_channels: int = 3) -> list[Group]:
    """The groups of coupled channels of `net` that can be removed, in the network's order; `net` stays as it is.

    Coupled are layers whose outputs are added to each other. A group is there when the network without some of its
    channels computes what the network with zeros in their place does, which is tried with random weights. Left whole
    are the logits, tokens and whatever else a LayerNorm or GroupNorm takes together, parameters that are no layer's,
    grouped and transposed convolutions, sums of different widths (shortcut "A"), and channels that are tied in a way
    that the graph does not know. Of this package's attention the heads are a group. Of a quaternion network a unit is
    a quaternion channel, four real ones.

    Raises UserError for a network that torch-pruning cannot follow, or that has no such group.
    """
    if isinstance(whole := plain(net), Quaternion):
        return quaternion_groups(whole, channel_groups, image_size)
    work = bare_copy(whole)
    images = blank_images(work, image_size, in_channels)
    graph, _ = _traced(work, images)
    places = {name: place for place, (name, _) in enumerate(work.named_modules())}
    found = list(head_groups(work))
    heads = {group.name for group in found}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = list(graph.get_all_groups())
    except Exception as error:
        raise cannot_follow(work, "its groups of channels", error) from error
    for items in traced:
        group = _group(work, graph, items, places)
        if group is not None and group.width > 1 and heads.isdisjoint(group.layers):
            found.append(group)
    found = proven(work, sorted(found, key=lambda group: places[group.name]), images)
    if not found:
        raise UserError(f"{type(net).__name__} has no channels that can be removed")
    return found


def _group(net: nn.Module, graph: Any, items: Any, places: Mapping[str, int]) -> Group | None:
    """The group that torch-pruning found, as a value; None if it is to be left whole."""
    names = {module: name for name, module in net.named_modules()}
    width, layers = len(items[0].idxs), []
    parts: list[Part] = []
    for item in items:
        node, module = item.dep.target, item.dep.target.module
        out = graph.is_out_channel_pruning_fn(item.dep.handler)
        if module not in names:
            if type(module).__name__ == "_OutputOp" or isinstance(module, nn.Parameter):
                return None
            continue
        weighted = isinstance(module, (*_CONVS, nn.Linear))
        if not weighted and not isinstance(module, _NORMS):
            return None
        if weighted and out and not node.outputs:
            return None
        if isinstance(module, _CONVS) and module.groups > 1 and not depthwise(module):
            return None
        name, rows = names[module], out or depthwise(module)
        role: Role = "norm" if not weighted else "filter" if rows else "input"
        units, index = torch.tensor(item.root_idxs), torch.tensor(item.idxs)
        dim = 0 if rows or not weighted else 1
        if role == "filter":
            if len(module.weight) != width:
                return None
            layers.append(name)
        for last, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dim() > dim:
                if int(index.max()) >= tensor.shape[dim]:
                    return None
                parts.append(Part(name, f"{name}.{last}" if name else last, dim, role, units, index))
    layers.sort(key=places.__getitem__)
    return Group(layers[0], width, tuple(layers), tuple(parts))


def check_request(ratios: Mapping[str, float], criterion: str) -> None:
    """UserError for what `prune_layers` would refuse whatever the network."""
    if criterion not in get_args(FilterCriterion):
        raise UserError(f"criterion must be one of {', '.join(get_args(FilterCriterion))}, got {criterion!r}")
    for pattern, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise UserError(f"the ratio of {pattern!r} must be a number from 0 to below 1, got {ratio!r}")


def _steps(net: nn.Module, ratios: Mapping[str, float]) -> list[tuple[str, float]]:
    """(layer, share) in the order of the mapping, patterns written out."""
    layers = [name for name, module in net.named_modules() if isinstance(module, (*_CONVS, nn.Linear))]
    owner: dict[str, str] = {}
    steps = []
    for pattern, ratio in ratios.items():
        matched = [name for name in layers if name == pattern or fnmatchcase(name, pattern)]
        if not matched:
            some = ", ".join(layers[:3])
            raise UserError(
                f"{pattern!r} matches none of the {len(layers)} convolutions and linear layers of"
                f" {type(net).__name__} ({some}, ...)"
            )
        for name in matched:
            if name in owner:
                raise UserError(f"{name} is named twice: by {owner[name]!r} and by {pattern!r}")
            owner[name] = pattern
            steps.append((name, ratio))
    return steps


def _traced(net: nn.Module, images: Tensor) -> tuple[Any, torch.Size]:
    """The dependency graph of `net`, and the shape of its output."""
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            # It warns of operations that it takes for elementwise ones; what it gets wrong is found out below.
            warnings.simplefilter("ignore")
            output = net(images)
            if output.grad_fn is None:
                raise UserError(f"{type(net).__name__} computes its output without gradients and cannot be followed")
            # A tuple: of a bare tensor torch-pruning first tries the images one by one.
            return tp.DependencyGraph().build_dependency(net, (images,), verbose=False), output.shape
    except UserError:
        raise
    except Exception as error:  # whatever the code of a user's network raises
        raise cannot_follow(net, f"images of shape {list(images.shape)}", error) from error


def _remove(graph: Any, layer: Any, name: str, channels: list[int]) -> None:
    """Removes `channels` of the layer and what depends on them; UserError before anything that would be unsound."""
    if isinstance(layer, nn.Linear):
        group = graph.get_pruning_group(layer, tp.prune_linear_out_channels, channels)
    else:
        group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, channels)
    width = len(layer.weight)
    for dependency, indices in group.items:
        node, out = dependency.target, graph.is_out_channel_pruning_fn(dependency.handler)
        module = node.module
        weighted = isinstance(module, (*_CONVS, nn.Linear))
        where = graph._module2name.get(module, "")
        if type(module).__name__ == "_OutputOp" or (weighted and out and not node.outputs):
            raise UserError(f"{name} cannot lose channels: they are the network's output")
        if not weighted:
            continue
        if isinstance(module, _CONVS) and module.groups > 1 and not depthwise(module):
            raise UserError(f"{name} cannot lose channels: {where} is a convolution of {module.groups} groups")
        have = module.weight.shape[0 if out or depthwise(module) else 1]
        if out and have != width:
            # torch-pruning takes the padding of channels (shortcut "A") for an elementwise operation.
            raise UserError(
                f"{name} cannot lose channels: its {width} are added to the {have} of {where}, as shortcut 'A' does"
            )
        if len(set(indices)) >= have:
            raise UserError(f"{name}: removing {len(channels)} of {width} channels would leave nothing of {where}")
    group.prune()
