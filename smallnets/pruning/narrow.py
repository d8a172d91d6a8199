"""Controls for a pruned network: the same class uniformly narrower, and the pruned shape from a fresh start."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.layers.arguments import whole
from smallnets.layers.init import init_convs
from smallnets.measure import Budget, count
from smallnets.models.spec import build, spec_of
from smallnets.pruning.prunable import plain
from smallnets.surgery.widths import fit_widths

# Constructor arguments that are widths, in the networks of this package and by custom.
WIDTHS = (
    "channels",
    "stem_channels",
    "growth_rate",
    "dim",
    "mlp_dim",
    "head_widths",
    "hidden_widths",
    "width",
    "widths",
)


def narrow(
    net: nn.Module,
    budget: Budget | None = None,
    *,
    factor: float | None = None,
    multiple: int = 1,
    widths: Sequence[str] | None = None,
    image_size: int = 32,
    in_channels: int = 3,
    seed: int = 0,
) -> nn.Module:
    """A new network of the class of `net` with all widths times one factor of at most 1, freshly initialised.

    It is the control for a pruned network: as large, but narrowed uniformly and without a choice of channels. With a
    budget, the factor is the largest for which the network fits.

    Laws:
        - Every width is w * factor, rounded down to a multiple of `multiple`, at least one multiple (and at most w, so
          that a width below `multiple` stays). A transformer's `dim` is rounded to multiples of its heads too.
        - With a budget, no larger factor gives a network of other widths that fits.
        - The same `seed` gives the same network; the global generators are left alone.

    Args:
        net: a network whose constructor's arguments are its attributes (`models.spec_of`), with the widths that they
            say; it stays as it is.
        factor: above 0, at most 1, instead of a budget.
        widths: constructor arguments to scale, numbers or lists of numbers; by default those of `WIDTHS` that the class
            has.

    Raises:
        UserError: not one of budget and factor, a number out of range, a network that is not described by its
            arguments or was pruned, no such argument, or a budget below the narrowest network, with its counts.
    """
    net = plain(net)
    if (budget is None) == (factor is None):
        raise UserError(f"narrow needs either a budget or a factor, got budget={budget} and factor={factor}")
    whole("multiple", multiple)
    spec = _spec(net)
    init_args = _inner(spec)["init_args"]
    held = _held(net, init_args, widths)
    heads = init_args.get("heads")
    grains = {name: math.lcm(multiple, heads) if name == "dim" and heads else multiple for name in held}

    def scaled(share: Fraction) -> dict[str, Any]:
        found = copy.deepcopy(spec)
        _inner(found)["init_args"].update({name: _times(each, share, grains[name]) for name, each in held.items()})
        return found

    if factor is not None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1:
            raise UserError(f"factor must be a number above 0 and at most 1, got {factor!r}")
        share = Fraction(str(factor))
    else:
        assert budget is not None
        # Only at these factors does a width change.
        bends = sorted(
            {
                Fraction(kept, each)
                for name, value in held.items()
                for each in _numbers(value)
                for kept in range(grains[name], each + 1, grains[name])
            }
            | {Fraction(1)}
        )
        share = _largest(bends, scaled, budget, image_size, in_channels)
    with _seeded(seed):
        fresh = build(scaled(share))
    return _like(fresh, net)


def fresh_like(net: nn.Module, seed: int = 0, init: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """A new network with the widths of `net`, pruned or not, freshly initialised: the shape without the weights.

    Laws:
        - A network of unchanged widths comes as its class builds it after `torch.manual_seed(seed)`, bitwise.
        - Layers of other widths start as theirs do: drawn by their own `reset_parameters` for the widths they have,
          then by `init`. The same `seed` gives the same network; the global generators are left alone.
        - `net` stays as it is; device, precision, modes and `requires_grad` are those of `net`.

    Args:
        init: what the class does with each of its layers after it has built it, called with every layer whose widths
            changed; by default `layers.init_convs` for this package's networks and nothing for others.

    Raises:
        UserError: a network that is not described by its constructor's arguments, or whose widths cannot be changed.
    """
    net = plain(net)
    spec = _spec(net, pruned=True)
    state = net.state_dict()
    if init is None and type(net).__module__.startswith("smallnets.models."):
        init = init_convs
    with _seeded(seed):
        fresh = build(spec)
        shapes = {key: value.shape for key, value in fresh.state_dict().items()}
        fit_widths(fresh, state)
        for name, module in fresh.named_modules():
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            keys = [f"{name}.{last}" if name else last for last, _ in own]
            if all(state[key].shape == shapes[key] for key in keys if key in shapes):
                continue
            if not callable(getattr(module, "reset_parameters", None)):
                raise UserError(
                    f"{name or type(module).__name__} was pruned, and has no reset_parameters to start anew"
                )
            module.reset_parameters()
            if init is not None:
                init(module)
    return _like(fresh, net)


def _spec(net: nn.Module, pruned: bool = False) -> dict[str, Any]:
    """The spec of `net`; UserError without one, or, unless it may be pruned, with other widths than the spec's."""
    spec = spec_of(net)
    if spec is None:
        raise UserError(
            f"{type(net).__name__} cannot be built anew: it must keep every constructor argument as an attribute"
        )
    if not pruned:
        with torch.device("meta"):
            full = build(spec)
        state = net.state_dict()
        if any(key not in state or state[key].shape != value.shape for key, value in full.state_dict().items()):
            raise UserError(f"{type(net).__name__} has other widths than its numbers say: narrow the unpruned network")
    return spec


def _inner(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec that holds the widths: itself, or that of the network which a converted one was made of."""
    nested = [each for each in spec["init_args"].values() if isinstance(each, dict) and "class_path" in each]
    return _inner(nested[0]) if len(nested) == 1 else spec


def _held(net: nn.Module, init_args: Mapping[str, Any], widths: Sequence[str] | None) -> dict[str, Any]:
    """The arguments that are widths, with their values."""
    for name in widths or ():
        if not list(_numbers(init_args.get(name))):
            have = ", ".join(each for each in init_args if list(_numbers(init_args[each])))
            raise UserError(f"widths: {type(net).__name__} has no numbers called {name!r} (it has {have})")
    held = {name: init_args[name] for name in (widths or WIDTHS) if list(_numbers(init_args.get(name)))}
    if not held:
        raise UserError(
            f"{type(net).__name__} has none of the arguments {', '.join(WIDTHS)}: name its own with widths=[...]"
        )
    return held


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers of an argument: itself, or those of a list."""
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _times(value: Any, share: Fraction, grain: int) -> Any:
    if isinstance(value, list):
        return [_times(each, share, grain) for each in value]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return min(value, max(grain, math.floor(value * share) // grain * grain))


def _largest(
    bends: Sequence[Fraction],
    scaled: Callable[[Fraction], dict[str, Any]],
    budget: Budget,
    image_size: int,
    in_channels: int,
) -> Fraction:
    """The largest factor of `bends`, ascending, whose network fits."""

    def over(share: Fraction) -> list[str]:
        with torch.device("meta"):
            built = build(scaled(share))
        return budget.check(count(built, image_size, in_channels))

    if not over(bends[-1]):
        return bends[-1]
    if broken := over(bends[0]):
        raise UserError(f"the narrowest network of this shape is over the budget: {'; '.join(broken)}")
    low, high = 0, len(bends) - 1  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if over(bends[middle]) else (middle, high)
    return bends[low]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng([]):
        # Not torch.manual_seed: it reaches devices that are not put back.
        torch.default_generator.manual_seed(seed)
        yield


def _like(fresh: nn.Module, net: nn.Module) -> nn.Module:
    """Device, precision, modes and `requires_grad` of `net`, by name."""
    first = next(net.parameters(), None)
    if first is not None:
        fresh.to(device=first.device, dtype=first.dtype)
    flags = {name: each.requires_grad for name, each in net.named_parameters()}
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(flags.get(name, True))
    modes = {name: module.training for name, module in net.named_modules()}
    for name, module in fresh.named_modules():
        module.training = modes.get(name, net.training)
    return fresh
