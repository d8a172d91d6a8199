"""Starting anew inside a fit: optimizers and schedules built again, standing at a step; epochs seen again."""

from typing import Any, cast

import torch

from smallnets.data.chunks import ChunkedLoader, unchunked
from smallnets.data.loader import BatchLoader
from smallnets.errors import UserError


def standing(trainer: Any) -> dict[str, Any]:
    """Where optimizer and schedule stand: plain data, without what the optimizer remembers of gradients.

    `groups`: the settings of the optimizer's parameter groups (rates, momenta, ...); `schedules`: the schedules' state.
    """
    return {
        "groups": [
            {key: _copied(value) for key, value in group.items() if key != "params"}
            for group in trainer.optimizers[0].param_groups
        ],
        "schedules": [_copied(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
    }


def restart_optimizers(trainer: Any, at: dict[str, Any] | None = None, constant: bool = False) -> None:
    """Builds optimizer and schedule anew, inside a fit, as `configure_optimizers` does when a fit starts.

    Law: the optimizer's state is empty, and no momentum or average of before is left. With `at` (of `standing`) rates
    and schedule are those of that moment, whatever the schedule; without, those of the start of a fit.

    Args:
        constant: leave the schedule away: the rates stay those of `at`. `keep_constant` says so again after a resume.
    """
    trainer.strategy.setup_optimizers(trainer)
    if at is not None:
        groups = trainer.optimizers[0].param_groups
        if len(groups) != len(at["groups"]):
            raise UserError(f"the optimizer has {len(groups)} parameter groups; stored were {len(at['groups'])}")
        for config, state in zip(trainer.lr_scheduler_configs, at["schedules"], strict=True):
            config.scheduler.load_state_dict(_copied(state))
        for group, settings in zip(groups, at["groups"], strict=True):
            group.update(_copied(settings))
    if constant:
        keep_constant(trainer)


def keep_constant(trainer: Any) -> None:
    """Takes the schedules off a fit: rates stay as they are."""
    trainer.strategy.lr_scheduler_configs = []


def shift_epochs(trainer: Any, module: Any, shift: int) -> None:
    """Makes epoch e of the fit see and draw what epoch e + shift of a plain fit does: order, augmentation, dropout.

    Takes effect at once for what is drawn in steps, and for the loader at its next `set_epoch`.
    """
    module.epoch_shift = shift
    batch_loader(trainer).epoch_shift = shift


def batch_loader(trainer: Any) -> BatchLoader:
    """The loader of single batches behind a fit's training data."""
    loader = unchunked(trainer.train_dataloader)
    if not isinstance(loader, BatchLoader):
        raise UserError(f"seeing epochs again needs a data module of smallnets, got a {type(loader).__name__}")
    return loader


def begin_epoch_at(trainer: Any, batch: int) -> None:
    """Makes the epoch that is about to start begin at a batch of it; to be called in `on_train_epoch_start`.

    The trainer's loops are put where those of a run stand that is resumed from the middle of an epoch (Lightning 2.6),
    so that batches have their own numbers, the epoch ends with validation, and a checkpoint within it can be resumed.
    """
    loader = batch_loader(trainer)
    loader.set_epoch(trainer.current_epoch)  # by a shift that is new
    if batch == 0:
        return
    loader.load_state_dict({**loader.state_dict(), "batch": batch})
    fit_loop = trainer.fit_loop
    loop, done = fit_loop.epoch_loop, batch
    chunked = trainer.train_dataloader
    if isinstance(chunked, ChunkedLoader):
        done = len(chunked) - -(-(chunked.steps - batch) // chunked.size)  # chunks, the first of which is cut
    current = loop.batch_progress.current
    current.ready = current.started = current.processed = current.completed = done
    loop.batch_progress.is_last_batch = False
    loop.val_loop.batch_progress.total.reset()
    iter(fit_loop._data_fetcher)  # a resumed run has its iterator already
    loop.restarting = True
    # What a resumed loop adds for the step whose checkpoint it came from.
    loop._batches_that_stepped -= 1


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        copied = {key: _copied(each) for key, each in value.items()}
        return copied if type(value) is dict else cast(Any, type(value))(copied)
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(each) for each in value)
    return value
