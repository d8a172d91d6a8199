"""Learning-rate schedules: a linear warm-up before any schedule, and the rates that a run will use."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from smallnets.errors import RunError, UserError

MakeSchedule = Callable[[Optimizer], LRScheduler]


class LinearWarmup(LRScheduler):
    """`warmup` scheduler steps of rising rate, then `main` exactly as it would have run alone.

    Step k = 0 .. warmup - 1 uses full * (k + 1) / (warmup + 1) and step `warmup` is the first at the full rate, where
    `main` starts: gradual warm-up (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.2). The full rate is
    the one at which `main` starts (for most schedules the optimizer's own; LinearLR and CyclicLR set theirs).

    Law: the rate (and, for CyclicLR, the momentum) at step warmup + k equals bitwise what `main` alone gives at
    step k. torch's SequentialLR does not keep it: its parts overwrite each other's rates when they are built, and a
    part without a closed form starts from the rate that the warm-up left. Here `main` is built on the untouched
    optimizer, its first rates are put aside, and it is not stepped before its turn.

    Args:
        optimizer: whose rates `main` has already set to its start.
        warmup: number of scheduler steps, at least 1.
        main: schedule on the same optimizer, not yet stepped; None keeps the full rate.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, main: LRScheduler | None = None) -> None:
        self.warmup = warmup
        self.main = main
        self.full = [_value(group["lr"]) for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The rates of step `last_epoch`, which is at most `warmup`."""
        if self.last_epoch >= self.warmup:
            return [_value(full) for full in self.full]
        return [full * (self.last_epoch + 1) / (self.warmup + 1) for full in self.full]

    def step(self, epoch: int | None = None) -> None:
        """One scheduler step: the warm-up's, or `main`'s once the warm-up is over."""
        if self.main is None or self.last_epoch < self.warmup:
            super().step()
            return
        self.last_epoch += 1
        self._step_count += 1
        self.main.step()
        self._last_lr = self.main.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Plain data, with the state of `main` under "main"."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "main")}
        state["main"] = self.main.state_dict() if self.main is not None else None
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where `state_dict` was taken; the optimizer's own state dict brings the rates."""
        self.__dict__.update({k: v for k, v in state_dict.items() if k != "main"})
        if self.main is not None:
            # A copy, because CyclicLR takes entries out of what it is given.
            self.main.load_state_dict(dict(state_dict["main"]))


def _value(lr: Any) -> Any:
    return lr.clone() if isinstance(lr, Tensor) else lr


def with_warmup(
    optimizer: Optimizer, make_schedule: MakeSchedule | None, warmup: int
) -> LRScheduler | ReduceLROnPlateau | None:
    """The schedule of `make_schedule`, after `warmup` scheduler steps of linear warm-up (`LinearWarmup`).

    With `warmup` 0 it is the schedule itself; None when there is neither.

    Raises:
        UserError: `warmup` is negative, or the schedule is OneCycleLR (which has a warm-up of its own) or
            ReduceLROnPlateau (whose steps follow a metric).
    """
    if warmup < 0:
        raise UserError(f"warmup must be 0 (off) or more scheduler steps, got {warmup}")
    main = make_schedule(optimizer) if make_schedule is not None else None
    if warmup == 0:
        return main
    if isinstance(main, OneCycleLR):
        raise UserError(f"warmup {warmup} with OneCycleLR: it warms up by itself (pct_start); set warmup to 0")
    if isinstance(main, ReduceLROnPlateau):
        raise UserError(f"warmup {warmup} with ReduceLROnPlateau: it follows a metric; set warmup to 0")
    return LinearWarmup(optimizer, warmup, main)


def planned_rates(
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
    make_schedule: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau | None] | None,
    steps: int,
) -> list[float]:
    """The learning rate of group 0 at each of the first `steps` scheduler steps.

    Replays the two factories on a parameter of one element; the optimizer in use and its schedule are not touched,
    and nothing is ever optimized. ReduceLROnPlateau follows a metric that is not known yet: its rate is given as
    constant.

    Raises:
        RunError: the schedule refuses to be stepped so often (OneCycleLR beyond its `total_steps`).
    """
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(optimizer) if make_schedule is not None else None
    group = optimizer.param_groups[0]
    if schedule is None or isinstance(schedule, ReduceLROnPlateau):
        return [float(group["lr"])] * steps
    rates = []
    with warnings.catch_warnings():
        # No optimizer step is taken here, on purpose.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        for step in range(steps):
            rates.append(float(group["lr"]))
            if step < steps - 1:
                try:
                    schedule.step()
                except ValueError as error:
                    name = type(schedule).__name__
                    raise RunError(f"{name} cannot be stepped {steps - 1} times, as the run would: {error}") from error
    return rates
