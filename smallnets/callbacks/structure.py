"""A change of structure inside a fit: the same on all ranks, and followed by all that hangs on parameters."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from smallnets.callbacks.checkpoint import forget_best
from smallnets.callbacks.ema import EMA
from smallnets.errors import RunError, UserError
from smallnets.surgery.widths import fit_widths
from smallnets.training.restart import restart_optimizers, standing


def require_whole_weights(trainer: Any, who: str) -> None:
    """UserError for a strategy that shards parameters."""
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        name = type(trainer.strategy).__name__
        raise UserError(f"{who} needs whole weights on every rank, {name} shards them: use ddp")


def change_on_all_ranks(trainer: Any, net: nn.Module, change: Callable[[], Any]) -> Any:
    """`change()` narrows `net` in place on rank 0; the others take widths and values from there. Returns its result.

    Laws: afterwards all ranks hold bitwise the same network, which is checked by hashes; where `change` raises a
    UserError or RunError, all ranks raise it.
    """
    found: dict[str, Any] = {}
    if trainer.is_global_zero:
        try:
            found["result"] = change()
        except (UserError, RunError) as error:
            found = {"error": str(error), "user": isinstance(error, UserError)}
    if trainer.world_size > 1:
        if trainer.is_global_zero and "error" not in found:
            found["state"] = {name: value.detach().cpu() for name, value in net.state_dict().items()}
        found = trainer.strategy.broadcast(found)
    if "error" in found:
        raise (UserError if found["user"] else RunError)(found["error"])
    if not trainer.is_global_zero:
        fit_widths(net, found["state"]).load_state_dict(found["state"])
    require_equal_ranks(trainer, net)
    return found["result"]


def require_equal_ranks(trainer: Any, net: nn.Module) -> None:
    """RunError, on every rank, unless all ranks hold bitwise the same parameters and buffers."""
    if trainer.world_size == 1:
        return
    mine = digest(net)
    if not trainer.strategy.reduce_boolean_decision(mine == trainer.strategy.broadcast(mine), all=True):
        raise RunError("the ranks hold different networks after a change of structure")


def digest(net: nn.Module) -> str:
    """SHA-256 of names, types, shapes and bytes of all parameters and buffers."""
    total = hashlib.sha256()
    for name, value in net.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def rebuild(trainer: Any, module: Any) -> None:
    """To be called on every rank after the network of `module` got other parameters, between two steps of a fit.

    Laws:
        - DDP wraps the network anew; without that its ranks diverge.
        - Optimizer and schedule are built anew and stand where they stood: every setting of the optimizer's groups and
          the schedule's place. What the optimizer remembers of gradients is emptied, of unchanged layers too.
        - No gradient of before is left. `EMA` and the choice of a best checkpoint start anew.
    """
    at = standing(trainer)
    module.zero_grad(set_to_none=True)
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
    restart_optimizers(trainer, at)
    if getattr(module, "_compiled", ()):
        torch.compiler.reset()  # or every round would count towards the limit of recompilations
    for callback in trainer.callbacks:
        if isinstance(callback, EMA):
            callback.restart()
    forget_best(trainer)
