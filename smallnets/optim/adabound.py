"""AdaBound (Luo et al. 2019, "Adaptive Gradient Methods with Dynamic Bound of Learning Rate")."""

import warnings
from typing import Any

import adabound
import torch


def _spend_deprecation_warning() -> None:
    """Calls the two deprecated overloads that the package uses once, with their warnings off.

    torch gives this warning once a process, from C++. Spending it here leaves the warning filters alone while
    training; changing them in every step would make Python repeat every other once-only warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one: Any = torch.ones(())  # torch's stubs do not know the deprecated overloads
        one.add_(1, one)
        one.addcmul_(1, one, one)
        one.add(1, one)


class AdaBound(adabound.AdaBound):
    """The package's optimizer, number for number, without its warnings about deprecated overloads.

    A step is Adam's, with the rate of each weight clipped to
    [final (1 - 1 / (gamma t + 1)), final (1 + 1 / (gamma t))], where final = `final_lr` * lr / (lr at construction).

    Traps:
        - The rates at construction are remembered (`base_lrs`) and are *not* in the state dict. To resume, build the
          optimizer at its initial rate, as the first time, and then load the state dict: the continuation is bitwise
          exact, also under a schedule. An optimizer built at the reduced rate would scale `final_lr` wrongly.
        - For the same reason a group added later (`add_param_group`) is never trained, and a rate of 0 or a `gamma`
          of 0 divides by zero.
        - With gamma 1e-3 the bounds are within 15 % of `final_lr` after some 6,000 steps: from then on it is
          SGD on an exponential *average* of gradients, and like SGD with momentum 0.9 at a tenth of `final_lr`. A
          comparison with SGD then compares learning rates (document 000).
        - `weight_decay` is L2 added to the gradient, as in Adam, not decoupled as in AdamW.
        - The package loops over tensors, in some ten small operations each: slow on a GPU.

    Args:
        params: parameters or groups.
        lr: Adam's rate.
        betas: decay of the averages of gradient and squared gradient.
        final_lr: the rate (of SGD) that the bounds close in on.
        gamma: how fast they do.
        eps: added to the root of the squared average.
        weight_decay: L2 penalty.
        amsbound: keep the maximum of the squared average (AMSBound).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
    ) -> None:
        _spend_deprecation_warning()
        super().__init__(params, lr, betas, final_lr, gamma, eps, weight_decay, amsbound)
