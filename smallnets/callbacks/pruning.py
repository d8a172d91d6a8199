"""Makes a network narrower before its training starts."""

from typing import Any, Literal, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from smallnets.data.seeds import global_seed, mix
from smallnets.errors import UserError
from smallnets.measure import Counts, count
from smallnets.pruning import prune_layers
from smallnets.pruning.structured import check_request

# The constant of this stream among those that are drawn from the run's seed.
_STREAM_PRUNE = 5


class ChannelPruning(Callback):
    """Removes channels of the network at the start of a fit, layer by layer (`pruning.prune_layers`; document 004).

    Laws:
        - A network is pruned once: neither a resumed run nor a second fit with the same callback prunes it again. A
          resumed run has the widths and weights of its checkpoint.
        - Optimizers are built, and DDP wraps the network, afterwards. Under DDP all ranks hold the same widths, which
          depend on the ratios alone, and the weights of rank 0.

    A `ParameterBudget`, wherever it stands, counts the pruned network: it looks at the first batch. It is not asked any
    earlier, because further callbacks may still make the network smaller.

    Args:
        ratios: name or pattern of layers (`stages.*.conv1`, as in the network) -> share of their output channels to
            remove, in this order; each floor(share * channels that the layer has then).
        criterion: the channels with the smallest L1 norms, or random ones (a function of the run's seed).

    Attributes:
        record: plain data of what was done: `ratios`, `criterion`, and `before` and `after`, each with `parameters`,
            `nonzero_parameters`, `macs` (of one image) and `bytes`; empty before the first fit, and from the
            checkpoint in a resumed run.

    Raises:
        UserError: no ratios, or what `prune_layers` refuses; in a fit, a checkpoint of a run that was not pruned so.
    """

    def __init__(self, ratios: dict[str, float], criterion: Literal["l1", "random"] = "l1") -> None:
        if not ratios:
            raise UserError("ChannelPruning needs ratios: names or patterns of layers, each with a share to remove")
        check_request(ratios, criterion)
        self.ratios, self.criterion = dict(ratios), criterion
        self.record: dict[str, Any] = {}
        self._pruned: nn.Module | None = None

    @property
    def state_key(self) -> str:
        # Two of them may prune one run; and a checkpoint knows the one that it was pruned by.
        return self._generate_state_key(ratios=self.ratios, criterion=self.criterion)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # A run that is resumed is pruned here as well: that there is a checkpoint is not known yet. What the module
        # then loads, after this and before optimizers are built, replaces widths and values.
        net = cast(nn.Module, pl_module.net)
        if stage != "fit" or net is self._pruned:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "image_size") or not hasattr(data, "in_channels"):
            raise UserError("ChannelPruning needs a data module with image_size and in_channels to trace the network")
        image = {"image_size": int(data.image_size), "in_channels": int(data.in_channels)}
        before = _plain(count(net, **image))
        prune_layers(net, self.ratios, self.criterion, seed=mix(global_seed(), _STREAM_PRUNE), **image)
        after = _plain(count(net, **image))
        self._pruned = net
        self.record = {"ratios": self.ratios, "criterion": self.criterion, "before": before, "after": after}
        trainer.print(
            f"ChannelPruning: {before['parameters']:,} -> {after['parameters']:,} parameters,"
            f" {before['macs']:,} -> {after['macs']:,} MACs"
        )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self.state_key not in checkpoint["callbacks"]:
            raise UserError(
                "the checkpoint's run was not pruned by ChannelPruning with these ratios, and a resumed run keeps its"
                " widths; prune it in a new run: --model.init_from=CHECKPOINT instead of --ckpt_path"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record = dict(state_dict["record"])


def _plain(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in ("parameters", "nonzero_parameters", "macs", "bytes")}
