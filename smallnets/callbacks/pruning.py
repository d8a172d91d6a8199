"""`ChannelPruning`: makes a network narrower before, while or after it trains."""

import math
from typing import Any, Literal, cast

import lightning as L
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from smallnets.callbacks.budget import check_budgets
from smallnets.callbacks.channels import ChannelRecord, image_of, request_of, round_times, size_of
from smallnets.callbacks.masks import PruningSchedule, criterion_batches, criterion_loader
from smallnets.callbacks.structure import change_on_all_ranks, rebuild, require_whole_weights
from smallnets.data.seeds import global_seed, mix
from smallnets.errors import UserError
from smallnets.pruning.channel_plan import Control, Curve, start_control
from smallnets.pruning.channel_scores import ChannelCriterion
from smallnets.pruning.ranking import Scope
from smallnets.training.steps import run_length, steps_per_epoch

# The constant of this stream among those that are drawn from the run's seed.
_STREAM_PRUNE = 5


class ChannelPruning(Callback):
    """Removes channels of the network, at once or in rounds between which it trains (`pruning.ChannelPlan`).

    What goes is one of: `ratios` (document 004, layer by layer), `ratio` of the channels of all groups, or what brings
    the network within a budget (`parameters`, `macs`, ...). By default all of it goes at the start of a fit.

    Laws:
        - Round k of n happens after so many optimizer steps, at the start of an epoch; one at the run's end right after
          its last step, before validation. The last round ends exactly at the ratio or the budget.
        - A change at the start precedes optimizers and DDP. After a later one both are built anew: rates and schedule
          go on where they stood, and what the optimizer remembers of gradients (momentum) is emptied, of all layers
          alike. `EMA` and the choice of `best.ckpt` start anew.
        - A network is pruned once: neither a resumed run nor a second fit with the same callback prunes it again. A run
          that was killed anywhere and resumed ends bitwise where the uninterrupted one ends (CPU); with other settings
          than its checkpoint's it is refused.
        - Under DDP rank 0 chooses; afterwards all ranks hold its network, which is checked.

    A `ParameterBudget`, wherever it stands, counts the network when the last round is over, and not before. Figures go
    to the loggers at every round (`channels/parameters`, ..., `channels/kept` and `channels/removed`, and
    `channels/LAYER`: its output channels), and to TensorBoard a picture with a bar a layer (`layers/channels`).

    Controls (`control`) change the network before training, once, whatever the times: "scratch" gives it the pruned
    shape and fresh weights, "narrow" makes it uniformly narrower, with fresh weights, to no more parameters. Without a
    request of what to remove, the network of `--model.init_from` is the pruned one.

    Args:
        ratios: name or pattern of layers (`stages.*.conv1`, as in the network) -> share of their output channels to
            remove, in this order; each floor(share * channels that the layer has then).
        criterion: the channels with the lowest score go: `l1`, `l2`, `random`, `fpgm`, `bn_scale` or `taylor`; random
            ones are a function of the run's seed.
        ratio: share of the channels of all groups, from 0 to below 1.
        parameters, nonzero_parameters, macs, bytes, activation_bytes: limits, as in `ParameterBudget`.
        scope, multiple, floor, exclude: see `pruning.prune_channels`.
        at: when a single round happens: `0ep` (default), `10ep`, or the run's length.
        rounds: so many rounds, the first at `start` and one `every` so often (`2ep`; `500it` if that is whole epochs).
        start: by default `every`: the network trains first.
        curve: amounts after each round: `linear` or `geometric` (`pruning.ChannelPlan`).
        control: `scratch` or `narrow`.
        batches: training batches that `taylor` looks at (cross entropy of the labels).

    Attributes:
        record: plain data of what was done: the settings, `rounds` (each with `step`, `before`, `after`, `widths`,
            `kept_channels` and `removed_channels`), `before` the first and `after` the latest round, each with
            `parameters`, `nonzero_parameters`, `macs` (of one image) and `bytes`; `widths_before` the first and
            `widths` after the latest (layer -> output channels); empty before the first round.

    Raises:
        UserError: a setting out of range, no request or two; in a fit before the first step: what the functions refuse,
            a budget that cannot be kept, times within an epoch or after the run, a strategy that shards parameters, a
            checkpoint of a run that was not pruned so.
    """

    def __init__(
        self,
        ratios: dict[str, float] | None = None,
        criterion: ChannelCriterion = "l1",
        ratio: float | None = None,
        parameters: int | str | None = None,
        nonzero_parameters: int | str | None = None,
        macs: int | str | None = None,
        bytes: int | str | None = None,
        activation_bytes: int | str | None = None,
        scope: Scope = "global",
        multiple: int = 1,
        floor: int = 1,
        exclude: list[str] | None = None,
        at: str | None = None,
        rounds: int = 1,
        start: str | None = None,
        every: str | None = None,
        curve: Curve = "linear",
        control: Literal["scratch", "narrow"] | None = None,
        batches: int = 4,
    ) -> None:
        limits = {
            "parameters": parameters, "nonzero_parameters": nonzero_parameters, "macs": macs, "bytes": bytes,
            "activation_bytes": activation_bytes,
        }  # fmt: skip
        self.settings: dict[str, Any] = {
            "ratios": None if ratios is None else dict(ratios), "criterion": criterion, "ratio": ratio, **limits,
            "scope": scope, "multiple": multiple, "floor": floor, "exclude": exclude or [], "at": at,
            "rounds": rounds, "start": start, "every": every, "curve": curve, "control": control, "batches": batches,
        }  # fmt: skip
        self.plan = request_of(self.settings)
        times = round_times(at, rounds, start, every)
        self._control: Control | None = control
        # Before optimizers are built; there are no training images yet.
        only_at_start = len(times) == 1 and times[0].count == 0
        self._early = control is not None or (only_at_start and self.plan is not None and not self.plan.needs_data)
        self._when = times[:1] if self._early else times
        self._record = ChannelRecord()
        self._whole: dict[str, int] = {}
        self._steps: list[int] = []
        self._last: int | None = None
        self._done: nn.Module | None = None
        self._idle = False

    @property
    def record(self) -> dict[str, Any]:
        return self._record.plain(self.settings)

    @property
    def state_key(self) -> str:
        # Two of them may prune one run; and a checkpoint knows the one that it was pruned by.
        return self._generate_state_key(**self.settings)

    @property
    def changes_ahead(self) -> bool:
        """Whether the network will lose channels later in this fit."""
        return not self._idle and len(self._record.rounds) < len(self._when)

    # -- before the first step ---------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_weights(trainer, "ChannelPruning")
        net = cast(nn.Module, pl_module.net)
        self._idle = net is self._done
        if self._idle:
            return
        self._record, self._whole = ChannelRecord(), {}
        self._image = image_of(trainer)
        # A run that is resumed is pruned here as well: that there is a checkpoint is not known yet. What the module
        # then loads, after this and before optimizers are built, replaces widths and values.
        if self._early:
            self._change(trainer, pl_module, 0)
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for each in callbacks:
            if isinstance(each, PruningSchedule) or hasattr(each, "schedule_epochs"):
                raise UserError(
                    f"ChannelPruning during training does not go with {type(each).__name__}: masks are of the widths"
                    " that the network had"
                )
        change_on_all_ranks(trainer, net, lambda: self._check_plan(net))

    def _check_plan(self, net: nn.Module) -> None:
        assert self.plan is not None
        self.plan.check(net, **self._image)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._idle:
            return
        if self._early:
            if trainer.global_step == 0:
                self._record.log(trainer, 0)
            return
        found, length = steps_per_epoch(trainer), run_length(trainer)
        if not math.isfinite(found):
            raise UserError("ChannelPruning needs training data of a known length")
        self._last = None if length is None else length.steps
        self._steps = [time.steps(int(found)) for time in self._when]
        for at in self._steps:
            if at % int(found):
                raise UserError(
                    f"ChannelPruning changes the network between epochs, and step {at:,} is within one of"
                    f" {int(found):,} steps: give times in whole epochs, such as 2ep"
                )
            if self._last is not None and at > self._last:
                raise UserError(
                    f"ChannelPruning's last round is at step {self._steps[-1]:,}, after the run, which takes"
                    f" {self._last:,} steps"
                )
        self._check_done(trainer.global_step)
        if not self.changes_ahead:
            self._done = cast(nn.Module, pl_module.net)
            return
        if getattr(pl_module, "masks", None) is not None:
            raise UserError(
                "ChannelPruning: the network has masks, which are of the widths that it has; make them part of its"
                " structure (pruning.shrink) or start from one without masks"
            )
        if self.plan is not None and self.plan.needs_data:
            loader, batches = criterion_loader(trainer), self.settings["batches"]
            if loader is None:
                raise UserError("criterion 'taylor' needs training images from a data module of smallnets")
            if batches > len(loader):
                raise UserError(f"ChannelPruning batches={batches}, but an epoch has {len(loader)}")

    def _check_done(self, step: int) -> None:
        done = [each["step"] for each in self._record.rounds]
        if done != self._steps[: len(done)] or (self._steps[len(done) :] and self._steps[len(done)] < step):
            raise UserError(
                f"the run stands at step {step:,} with rounds at {done}, and ChannelPruning would have them at"
                f" {self._steps}; prune it in a new run: --model.init_from=CHECKPOINT instead of --ckpt_path"
            )

    # -- rounds ------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._change_if_due(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # The hook above is not called for an epoch that follows a checkpoint taken at the last batch of another.
        self._change_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last:
            self._change_if_due(trainer, pl_module)

    def _change_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if self._early or not self.changes_ahead or self._steps[len(self._record.rounds)] != step:
            return
        self._change(trainer, pl_module, step)
        rebuild(trainer, pl_module)
        self._record.log(trainer, step - 1 if step == self._last else step)
        check_budgets(trainer, pl_module)

    def _change(self, trainer: Any, module: Any, step: int) -> None:
        net, number = module.net, len(self._record.rounds) + 1
        size = size_of(net, self._image)
        self._whole = change_on_all_ranks(trainer, net, lambda: self._prune(trainer, module, number, step))
        entry = self._record.add(step, size, size_of(net, self._image))
        if not self.changes_ahead:
            self._done = net
        before, after = size.counts, entry["after"]
        which = "" if self._early else f" round {number} of {len(self._when)}, step {step:,}:"
        trainer.print(
            f"ChannelPruning:{which} {before['parameters']:,} -> {after['parameters']:,} parameters,"
            f" {before['macs']:,} -> {after['macs']:,} MACs"
        )

    def _prune(self, trainer: Any, module: Any, number: int, step: int) -> dict[str, int]:
        """On rank 0; what the plan has to know of the whole network."""
        net = module.net
        seed = mix(global_seed(), _STREAM_PRUNE, *([number] if number > 1 else []))
        if self._control is not None:
            if getattr(module, "masks", None) is not None:
                raise UserError(f"ChannelPruning control={self._control} starts anew, and this network has masks")
            pruned = net if self.plan is None else self.plan.check(net, seed=seed, **self._image)
            start_control(net, pruned, self._control, seed=mix(seed, 0), **self._image)
            return {}
        assert self.plan is not None
        whole = self._whole or self.plan.measure(net, **self._image)
        batches = criterion_batches(trainer, self.settings["batches"], step) if self.plan.needs_data else None
        self.plan.prune(net, number, whole, seed=seed, batches=batches, loss=F.cross_entropy, **self._image)
        return whole

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "whole": self._whole, "record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._idle, self._whole = False, dict(state_dict["whole"])
        self._record = ChannelRecord(state_dict["record"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self.state_key in checkpoint["callbacks"]:
            return
        others = [each for key, each in checkpoint["callbacks"].items() if key.startswith("ChannelPruning")]
        said = "was not pruned by ChannelPruning with these ratios or settings"
        if len(others) == 1:
            was = others[0]["settings"]
            changed = [f"{k} was {was.get(k)}, now {v}" for k, v in self.settings.items() if was.get(k) != v]
            said += f" ({', '.join(changed[:3])})"
        raise UserError(
            f"the checkpoint's run {said}, and a resumed run keeps its widths; prune it in a new run:"
            " --model.init_from=CHECKPOINT instead of --ckpt_path"
        )
