"""Learning rates that are known to work, and how far from them a run's rate is."""

from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer


@dataclass(frozen=True)
class Reference:
    """A learning rate `lr` that works at `batch` images a step, and the rule that carries it to other batches.

    `linear`: the rate grows with the batch (Goyal et al. 2017, "Accurate, Large Minibatch SGD"), for optimizers whose
    step is proportional to the gradient. `square-root`: it grows with the batch's root (Krizhevsky 2014; for Adam and
    RMSprop Malladi et al. 2022), for optimizers that divide by the gradient's size.
    """

    lr: float
    batch: int
    rule: Literal["linear", "square-root"]

    def at(self, batch: int) -> float:
        """The rate at a global batch of `batch` images."""
        ratio = batch / self.batch
        return self.lr * (ratio if self.rule == "linear" else ratio**0.5)


_ADAPTIVE = Reference(1e-3, 128, "square-root")
#: By class name of the optimizer. SGD's stands for momentum 0.9.
REFERENCES: dict[str, Reference] = {
    "SGD": Reference(0.1, 128, "linear"),
    "Adam": _ADAPTIVE,
    "AdamW": _ADAPTIVE,
    "RMSprop": _ADAPTIVE,
    "AdaBound": _ADAPTIVE,
}
TOO_HIGH, TOO_LOW = 8.0, 1 / 256


def rate_far_from_reference(optimizer: Optimizer, rate: float, batch: int) -> str | None:
    """A sentence when `rate` is at least 8 times, or at most 1/256 of, the reference at `batch`; else None.

    `rate` is the highest that the run uses, `batch` the images of one optimizer step over all ranks. Factor 8 lets
    the stated recipes of the five documents pass but the one that failed (document 000: SGD 0.1 at batch 8, 16 times);
    1/256 lets their fine-tuning rates pass. SGD's step over many gradients is lr / (1 - momentum), so its reference is
    scaled to the momentum at hand. Optimizers without an entry in `REFERENCES` are not judged.
    """
    name = type(optimizer).__name__
    reference = REFERENCES.get(name)
    if reference is None or batch < 1:
        return None
    rule = "linearly" if reference.rule == "linear" else "by the square root"
    at_batch = reference.at(batch)
    momentum = optimizer.param_groups[0].get("momentum", 0.9) if name == "SGD" else 0.9
    if momentum != 0.9:
        at_batch *= (1 - momentum) / (1 - 0.9)
        rule += f" and to momentum {momentum:g}"
    if at_batch <= 0:
        return None
    ratio = rate / at_batch
    # The thresholds themselves warn, whatever the rounding.
    if TOO_LOW * (1 + 1e-9) < ratio < TOO_HIGH * (1 - 1e-9):
        return None
    times = f"{ratio:.3g}x" if ratio >= 1 or ratio == 0 else f"1/{1 / ratio:.0f} of"
    return (
        f"{name} lr {rate:g} at batch {batch} is {times} the reference {reference.lr:g} at batch {reference.batch}"
        f" scaled {rule} ({at_batch:.4g})"
    )
