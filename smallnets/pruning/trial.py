"""Trying a removal of channels on a copy before the network itself is touched."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.pruning.groups import Group, Removed, remove
from smallnets.pruning.prunable import plain


class NoEffectWarning(UserWarning):
    """Something was asked for that changed nothing."""


def bare_copy(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode: without hooks that watch `net`, and with every parameter part of the graph."""
    if any(parameter.is_meta for parameter in net.parameters()):
        raise UserError(f"{type(net).__name__} is on the meta device and has no weights to choose channels by")
    try:
        work = copy.deepcopy(net)
    except RuntimeError as error:  # torch's own, of a tensor that is computed from others
        raise UserError(
            f"{type(net).__name__} cannot be copied: make weights that are computed from others (torch.nn.utils.prune)"
            " plain parameters first"
        ) from error
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


def blank_images(net: nn.Module, image_size: int, in_channels: int) -> Tensor:
    """One image of zeros, of the precision and in the place of the network's parameters."""
    like: Tensor = next(iter(net.parameters()), torch.zeros(()))
    return torch.zeros(1, in_channels, image_size, image_size, dtype=like.dtype, device=like.device)


def cannot_follow(net: nn.Module, where: str, error: Exception) -> UserError:
    """The error for a network whose own code, or whose tracing, raised `error`."""
    reason = (str(error).splitlines() or [""])[0]
    return UserError(
        f"{type(net).__name__}'s channels cannot be followed through its forward: {where}\n"
        f"{type(error).__name__}: {reason}"
    )


def require_shape(net: nn.Module, work: nn.Module, images: Tensor, shape: torch.Size) -> None:
    """Runs the pruned copy once: its output must have the shape that it had."""
    try:
        with torch.no_grad():
            came = work(images).shape
    except Exception as error:
        raise cannot_follow(net, "the narrower network does not run", error) from error
    if came != shape:
        raise UserError(f"{type(net).__name__} would give an output of {list(came)} instead of {list(shape)}")


def checked_removal(
    net: nn.Module, groups: Sequence[Group], removed: Removed, image_size: int = 32, in_channels: int = 3
) -> nn.Module:
    """Removes units of groups of `net` in place, after a copy without them has run; returns `net`."""
    original = plain(net)
    work = bare_copy(original)
    images = blank_images(work, image_size, in_channels)
    with torch.no_grad():
        shape = work(images).shape
    require_shape(original, remove(work, groups, removed), images, shape)
    remove(original, groups, removed)
    return net
