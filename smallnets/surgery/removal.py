"""A network without one of its stages (document 004)."""

from typing import Any

import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.models.spec import build, spec_of

# Constructor arguments that hold one number a stage (or one number for all).
PER_STAGE = ("blocks", "channels", "kernel_sizes", "shortcut_kernel_sizes", "strides")


def remove_stage(net: nn.Module, stage: int) -> nn.Module:
    """Removes a stage of `net`, counted from 1 as in the documents, in place; returns `net`.

    What follows the stage is fitted to what precedes it: where the shapes differ, the next stage's first block gets a
    new first layer (and a new shortcut), or the head its first layer, initialised as the network's class does it, from
    the global generator. All else keeps its parameters, bit for bit and as the same objects, and the later stages their
    strides. The network's attributes (`blocks`, `channels`, `strides`, ...) are those of the shorter network, so that
    `models.spec_of` and checkpoints describe it. Its modules are new, without hooks; build the optimizer afterwards.
    Prune channels after removing stages, not before.

    Works on networks with `stages` whose constructor's arguments are attributes: ResNet, PreActResNet, VGG, and classes
    of your own that follow them.

    Raises:
        UserError: no such stage, the only one, one that cannot go (the first of a PreActResNet, whose stem has its
            channels), a network without stages, or one whose channels were pruned; `net` is then as it was.
    """
    spec = spec_of(net)
    held = getattr(net, "stages", None)
    if spec is None or not isinstance(held, nn.Sequential) or not isinstance(spec["init_args"].get("channels"), list):
        raise UserError(
            f"{type(net).__name__} has no stage to remove: it needs `stages`, `channels` and every constructor argument"
            " as attributes"
        )
    name, count = type(net).__name__, len(held)
    if isinstance(stage, bool) or not isinstance(stage, int) or not 1 <= stage <= count:
        raise UserError(f"{name} has stages 1 to {count}, got {stage!r}")
    if count == 1:
        raise UserError(f"{name} has one stage only, which cannot be removed")
    with torch.device("meta"):
        full = build(spec)
    if any(net.state_dict()[key].shape != value.shape for key, value in full.state_dict().items()):
        raise UserError(f"{name} has other widths than its numbers say: remove stages before pruning channels")

    short = build({**spec, "init_args": _without(net, spec["init_args"], stage - 1)})
    kept = _kept(net, short, stage - 1)
    strange = [key for key in short.state_dict() if key not in kept and not _follows(key, stage - 1)]
    if strange:
        raise UserError(f"{name} cannot lose stage {stage}: {strange[0]} does not follow it, and would change")
    like = next(net.parameters())
    short.to(device=like.device, dtype=like.dtype).train(net.training)
    flags = {key: value.requires_grad for key, value in kept.items()}
    short.load_state_dict(kept, strict=False, assign=True)
    for key, parameter in short.named_parameters():
        parameter.requires_grad_(flags.get(key, True))
    # The same class was built from other numbers: all that it holds takes the place of what `net` held.
    vars(net).update(vars(short))
    return net


def _without(net: nn.Module, init_args: dict[str, Any], index: int) -> dict[str, Any]:
    """The constructor's arguments of the network without the stage at `index` (from 0)."""
    short = dict(init_args)
    for name in PER_STAGE:
        if isinstance(short.get(name), list):
            short[name] = short[name][:index] + short[name][index + 1 :]
    count = len(short["channels"])
    if "strides" in short and short["strides"] is None:
        # The default is 1, then 2: only without the first stage does the place of the 1 change.
        short["strides"] = [2] * count if index == 0 else None
    if "stem_channels" in short and short["stem_channels"] is None and index == 0:
        short["stem_channels"] = init_args["channels"][0]
    return short


def _kept(net: nn.Module, short: nn.Module, index: int) -> dict[str, Any]:
    """The tensors of `net` that have a place in the shorter network, by their names there."""
    shapes = {key: value.shape for key, value in short.state_dict().items()}
    kept = {}
    for key, value in net.state_dict(keep_vars=True).items():
        head, _, rest = key.partition(".")
        if head == "stages":
            number, _, rest = rest.partition(".")
            if int(number) == index:
                continue
            key = f"stages.{int(number) - (int(number) > index)}.{rest}"
        if shapes.get(key) == value.shape:
            kept[key] = value
    return kept


def _follows(key: str, index: int) -> bool:
    """Whether a tensor of the shorter network lies behind the removed stage: in the next one's beginning, or the head.

    A head may change with any stage: one pooling less leaves it a larger map.
    """
    return key.startswith((f"stages.{index}.0.", "head."))
