"""Removal of whole channels, layer by layer, through the dependency graph of torch-pruning (Fang et al. 2023).

The one file that imports torch-pruning. Its tracing changes modes, leaves layers half pruned when it fails and does not
know frozen parameters, so it works on a copy; the network itself then takes the copy's widths and values.
"""

import copy
import math
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
import torch_pruning as tp
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.surgery.widths import depthwise, fit_widths

Criterion = Literal["l1", "random"]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NoEffectWarning(UserWarning):
    """Something was asked for that changed nothing."""


def prune_layers(
    net: nn.Module,
    ratios: Mapping[str, float],
    criterion: Criterion = "l1",
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
        criterion: which channels go: the smallest L1 norms of the filters, among equal ones the first; or "random".
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
    original = getattr(net, "_orig_mod", net)  # a network under torch.compile
    steps = _steps(original, ratios)
    work = _copy(original)
    images = _images(work, image_size, in_channels)
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
            _remove(graph, layer, name, _chosen(layer.weight, number, criterion, generator))
        except UserError:
            raise
        except Exception as error:
            raise _cannot_follow(original, f"removing channels of {name}", error) from error
    _same_shape(original, work, images, shape)
    pruned = work.state_dict()
    fit_widths(original, pruned).load_state_dict(pruned)
    return net


def check_request(ratios: Mapping[str, float], criterion: str) -> None:
    """UserError for what `prune_layers` would refuse whatever the network."""
    if criterion not in get_args(Criterion):
        raise UserError(f"criterion must be one of {', '.join(get_args(Criterion))}, got {criterion!r}")
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


def _copy(net: nn.Module) -> nn.Module:
    """A copy to work on: without hooks that watch `net`, and with every parameter part of the graph."""
    if any(parameter.is_meta for parameter in net.parameters()):
        raise UserError(f"{type(net).__name__} is on the meta device and has no weights to choose channels by")
    work = copy.deepcopy(net)
    for module in work.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                # torch's own hooks compute a module's weight and belong to its forward.
                if not type(hook).__module__.startswith("torch.nn.utils"):
                    del hooks[key]
    for parameter in work.parameters():
        parameter.grad = None
        # torch-pruning follows the graph of autograd, in which a frozen layer does not appear.
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return work.eval()


def _images(net: nn.Module, image_size: int, in_channels: int) -> Tensor:
    like: Any = next(iter(net.parameters()), torch.zeros(()))
    return torch.zeros(1, in_channels, image_size, image_size, dtype=like.dtype, device=like.device)


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
        raise _cannot_follow(net, f"images of shape {list(images.shape)}", error) from error


def _cannot_follow(net: nn.Module, where: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [""])[0]
    return UserError(
        f"{type(net).__name__}'s channels cannot be followed through its forward: {where}\n"
        f"{type(error).__name__}: {reason}"
    )


def _chosen(weight: Tensor, number: int, criterion: Criterion, generator: torch.Generator) -> list[int]:
    """Indices of the `number` output channels to remove, ascending: an exact count, also with ties."""
    if criterion == "random":
        order = torch.randperm(len(weight), generator=generator)
    else:
        norms = weight.detach().double().abs().flatten(1).sum(1).cpu()
        order = torch.sort(norms, stable=True).indices
    return sorted(order[:number].tolist())


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


def _same_shape(net: nn.Module, work: nn.Module, images: Tensor, shape: torch.Size) -> None:
    """Runs the pruned copy once: its output must have the shape that it had."""
    try:
        with torch.no_grad():
            came = work(images).shape
    except Exception as error:
        raise _cannot_follow(net, "the narrower network does not run", error) from error
    if came != shape:
        raise UserError(f"{type(net).__name__} would give an output of {list(came)} instead of {list(shape)}")
