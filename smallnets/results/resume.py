"""A resumed run goes on as it was: what may change in its configuration, and what may not."""

from pathlib import Path
from typing import Any

import yaml

from smallnets.errors import UserError
from smallnets.results.provenance import flatten

# Where and how long a run trains, what is looked at on the way, and where the data lie.
_MAY_CHANGE = ("trainer.", "health.", "look.", "name", "checkpoint_every", "data.root", "data.download", "data.cache",
               "data.predict_from", "data.eval_batch_size", "model.compile")  # fmt: skip


def require_same_settings(path: Path, now: dict[str, Any]) -> None:
    """Raises UserError if `now` differs from the run's `config.yaml` in what makes its network, data or optimizer.

    The optimizer's and the schedule's settings come from the checkpoint, so a new value would be shown and not used.
    """
    if not path.is_file():
        return
    before, after = (flatten(c) for c in (yaml.safe_load(path.read_text()), now))
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k) and not k.startswith(_MAY_CHANGE)]
    if changed:
        shown = ", ".join(f"{k} was {before.get(k)}, now {after.get(k)}" for k in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"--ckpt_path=last goes on with a run as it was: {shown}{more}. For other settings start a new run from its"
            " weights: --model.init_from=CHECKPOINT"
        )
