"""A resumed run goes on as it was: what may change in its configuration, and what may not."""

from pathlib import Path
from typing import Any

import yaml

from smallnets.errors import UserError
from smallnets.results.provenance import flatten

# Where and how long a run trains, what is looked at on the way, and where the data lie.
_MAY_CHANGE = ("trainer.", "health.", "look.", "name", "checkpoint_every", "data.root", "data.download", "data.cache",
               "data.predict_from", "data.eval_batch_size", "model.compile")  # fmt: skip

# What of the trainer's settings makes the weights.
_MAKE = tuple(
    f"trainer.{name}"
    for name in ("gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "precision",
                 "limit_train_batches", "overfit_batches")
)  # fmt: skip
_CALLBACKS = "trainer.callbacks"
# Callbacks of this package that only watch.
_WATCH = ("Health", "ParameterBudget", "TensorBoardLook", "TensorBoardTest")


def require_same_settings(path: Path, now: dict[str, Any]) -> None:
    """Raises UserError if `now` differs from the run's `config.yaml` in what makes its network, data or optimizer.

    The optimizer's and the schedule's settings come from the checkpoint, so a new value would be shown and not used.
    Callbacks of this package that act on the weights (pruning, rounds, an average) must be there again; those that
    prune compare their settings themselves.
    """
    if not path.is_file():
        return
    stored = yaml.safe_load(path.read_text())
    before, after = flatten(stored) | _callbacks(stored), flatten(now) | _callbacks(now)
    changed = [
        k
        for k in sorted({*before, *after})
        if before.get(k) != after.get(k) and (k in (_CALLBACKS, *_MAKE) or not k.startswith(_MAY_CHANGE))
    ]
    if changed:
        shown = ", ".join(f"{k} was {before.get(k)}, now {after.get(k)}" for k in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"--ckpt_path=last goes on with a run as it was: {shown}{more}. For other settings start a new run from its"
            " weights: --model.init_from=CHECKPOINT"
        )


def _callbacks(config: dict[str, Any]) -> dict[str, Any]:
    """The classes of those that act, under one name."""
    given = (config.get("trainer") or {}).get("callbacks") or []
    paths = [str(each.get("class_path", "")).rpartition(".") for each in given]
    acting = [name for room, _, name in paths if room == "smallnets.callbacks" and name not in _WATCH]
    return {_CALLBACKS: ", ".join(acting) or None}
