"""AdaBound (Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate")."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class AdaBound(Optimizer):
    """Adam whose rate of each weight is clipped to bounds that close in on one rate, that of SGD.

    At the t-th step of a weight w with gradient g, to which `weight_decay` * w is added first:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        rate = lr sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + eps)
        w = w - m * clip(rate, final (1 - 1 / (gamma t + 1)), final (1 + 1 / (gamma t)))

    with final = `final_lr` * lr / base lr, so that a schedule of `lr` scales the bounds too. With `amsbound` the
    largest v so far takes the place of v in the rate (AMSBound). The results are those of the package `adabound`
    0.0.5 up to rounding.

    The base lr is a group's rate when the group was added. It is kept in the group as `base_lr` and so in the state
    dict: an optimizer goes on exactly where the loaded one stood, whatever rate it was itself built with. Where the
    base lr is 0 there is nothing to scale by, and final is `final_lr` as it is. Nothing moves in a step in which lr or
    `final_lr` is 0, and m, v and t still advance. With `gamma` 0 there are no bounds, and this is Adam.

    A parameter without a gradient is skipped and its t stays. A step is the same few operations on lists of tensors
    however many tensors there are, and reads nothing back from the device.

    Traps:
        - With gamma 1e-3 the bounds are within 17 % of `final_lr` after 6,000 steps: from then on it is SGD on an
          exponential *average* of gradients, and like SGD with momentum 0.9 at a tenth of `final_lr`. A comparison
          with SGD then compares learning rates (document 000).
        - `weight_decay` is L2 added to the gradient, as in Adam, not decoupled as in AdamW.

    Args:
        params: parameters or groups; a group may set any of the following for itself, and `base_lr`.
        lr: Adam's rate.
        betas: decay of the averages of gradient and squared gradient, each in [0, 1).
        final_lr: the rate (of SGD) that the bounds close in on.
        gamma: how fast they do, in [0, 1).
        eps: added to the root of the squared average.
        weight_decay: L2 penalty.
        amsbound: keep the maximum of the squared average (AMSBound).

    Raises:
        ValueError: a number out of its range, a complex parameter, or a loaded state dict without `base_lr`.
        RuntimeError: in `step`, before anything has moved, for a sparse gradient.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "final_lr": final_lr,
            "gamma": gamma,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsbound": amsbound,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with a base lr of its own: its rate now, or the `base_lr` that it brings."""
        if isinstance(param_group, dict):
            _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if any(p.is_complex() for p in group["params"]):
            self.param_groups.pop()
            raise ValueError("AdaBound does not support complex parameters")
        # A copy, because schedules change a rate that is a tensor in place.
        group.setdefault("base_lr", float(group["lr"]))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Reached by load_state_dict, copy and pickle. A guess at a missing base lr could be wrong tenfold, silently.
        if any("base_lr" not in group for group in state["param_groups"]):
            raise ValueError(
                "AdaBound's state dict has a group without base_lr (is it another optimizer's?): "
                "put the rate that its run began with into param_groups as base_lr"
            )
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns what `closure` returns, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Groups that differ in weight decay alone are updated together.
        alike: dict[_Settings, dict[Any, list[_Row]]] = {}
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: Any = [p.grad for p in params]
            if any(grad.layout != torch.strided for grad in grads):
                raise RuntimeError("AdaBound does not support sparse gradients")
            self._begin(params, group["amsbound"])
            if group["weight_decay"] != 0:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            lists = alike.setdefault(_Settings.of(group), {})
            for p, grad in zip(params, grads, strict=True):
                state = self.state[p]
                # torch is fast on lists of one device and type.
                lists.setdefault((state["step"], p.device, p.dtype), []).append((p, grad, state))
        for settings, lists in alike.items():
            for (steps, _, dtype), rows in lists.items():
                _update(settings, steps + 1, dtype, rows)
        return loss

    def _begin(self, params: list[Tensor], amsbound: bool) -> None:
        """Gives the parameters that are new here their state: no step yet, and averages of 0."""
        new = [p for p in params if not self.state[p]]
        if not new:
            return
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsbound else 2]
        zeros = torch._foreach_mul(new * len(names), 0.0)
        torch._foreach_zero_(zeros)  # also where a weight was NaN or infinite
        for i, p in enumerate(new):
            averages = {name: zeros[k * len(new) + i] for k, name in enumerate(names)}
            self.state[p] = {"step": 0, **averages}


_Row = tuple[Tensor, Tensor, dict[str, Any]]  # parameter, its gradient with weight decay, its state


class _Settings(NamedTuple):
    lr: float
    base_lr: float
    betas: tuple[float, float]
    final_lr: float
    gamma: float
    eps: float
    amsbound: bool

    @classmethod
    def of(cls, group: dict[str, Any]) -> "_Settings":
        beta1, beta2 = group["betas"]
        return cls(
            lr=float(group["lr"]),
            base_lr=group["base_lr"],
            betas=(beta1, beta2),
            final_lr=group["final_lr"],
            gamma=group["gamma"],
            eps=group["eps"],
            amsbound=group["amsbound"],
        )

    def bounds(self, step: int) -> tuple[float, float]:
        """The least and the greatest rate of a weight at its `step`-th step."""
        final = self.final_lr * self.lr / self.base_lr if self.base_lr > 0 else self.final_lr
        pace = self.gamma * step
        return final * (1 - 1 / (pace + 1)), final * (1 + 1 / pace) if pace > 0 else math.inf


def _update(settings: _Settings, step: int, dtype: torch.dtype, rows: list[_Row]) -> None:
    """The `step`-th step of parameters of one type on one device."""
    params, grads, states = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    averages = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    beta1, beta2 = settings.betas
    for state in states:
        state["step"] = step
    torch._foreach_lerp_(averages, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    if settings.amsbound:
        maxima = [state["max_exp_avg_sq"] for state in states]
        torch._foreach_maximum_(maxima, squares)
        squares = maxima
    rate = settings.lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    lower, upper = settings.bounds(step)
    if rate == 0 or upper == 0:
        return
    # To clip rate / denominator to [lower, upper] is to clip the denominator to [rate / upper, rate / lower], which
    # leaves the division to the operation that moves the weights.
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_add_(denominators, settings.eps)
    torch._foreach_clamp_min_(denominators, rate / upper)
    if rate < lower * torch.finfo(dtype).max:  # a bound beyond the type's range bounds nothing, and torch refuses it
        torch._foreach_clamp_max_(denominators, rate / lower)
    torch._foreach_addcdiv_(params, averages, denominators, -rate)


def _check(group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    for name, value, end in (
        ("lr", group["lr"], math.inf),
        ("base_lr", group.get("base_lr", 0.0), math.inf),
        ("betas[0]", beta1, 1.0),
        ("betas[1]", beta2, 1.0),
        ("final_lr", group["final_lr"], math.inf),
        ("gamma", group["gamma"], 1.0),
        ("eps", group["eps"], math.inf),
        ("weight_decay", group["weight_decay"], math.inf),
    ):
        if not 0.0 <= value < end:
            raise ValueError(f"AdaBound's {name} must be 0 or more and below {end:g}, got {value}")
