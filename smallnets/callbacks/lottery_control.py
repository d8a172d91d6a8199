"""`LotteryControl`: a fit from a stored round of a lottery: its ticket again, or what it is to be compared with."""

import copy
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from smallnets.callbacks.rounds import LOTTERY_KEY, STREAM_MASKS, of_rank_0, refuse_what_disturbs_rounds, start_round
from smallnets.data.chunks import ChunkedLoader
from smallnets.data.seeds import global_seed, mix
from smallnets.errors import UserError
from smallnets.pruning.controls import random_erk_masks, random_masks, shuffled_masks
from smallnets.pruning.criteria import grasp, magnitude, snip, synflow
from smallnets.pruning.lottery import LotteryPlan, Snapshot, snapshot
from smallnets.pruning.masks import Masks
from smallnets.pruning.narrow import fresh_like
from smallnets.pruning.select import select
from smallnets.results.load import CHECKPOINT_KEY, network_of, read_checkpoint
from smallnets.training.restart import shift_epochs
from smallnets.training.steps import steps_per_epoch

Control = Literal[
    "ticket", "random_mask", "shuffled_mask", "one_shot",  # from the rewind point
    "random_reinit", "random_erk", "snip", "grasp", "synflow", "dense",  # from a start of their own
]  # fmt: skip
_FROM_REWIND_POINT = ("ticket", "random_mask", "shuffled_mask", "one_shot")


class LotteryControl(Callback):
    """Trains, at the start of one fit, what a stored round of a `LotteryTicket` is to be compared with.

    All keep exactly as many weights as the round's ticket. From the rewind point, for the epochs of a round, with the
    lottery's weights, buffers, schedule and epochs:

        - `ticket`: the ticket itself (with another `--data.order_seed`: a child for `connectivity.instability`);
        - `random_mask`: other weights, as many in each layer;
        - `shuffled_mask`: other weights, as many in each output unit;
        - `one_shot`: pruned at once by the dense training's magnitudes; it reads `round-0.ckpt` beside the round.

    From step 0, for `epochs_per_round` epochs (weights without training deserve all of it):

        - `random_reinit`: the ticket's masks on weights that are drawn anew, by the network's own initialisation and
          `mask_seed`;
        - `random_erk`: a random choice with the densities of Erdős-Rényi-Kernel;
        - `snip`, `grasp`, `synflow`: masks chosen before training, by `criterion_batches` training batches.

      These but the first start from this fit's own initial network, which is the lottery's where `--seed_everything`
      and the network are.

    - `dense`: no masks, from this fit's initial network, trained as long as the lottery was up to this round: all its
      epochs, on the schedule of this fit's own configuration, which is to be stretched accordingly.

    The seeds of initialisation (`--seed_everything`), order and augmentation (`--data.order_seed`,
    `--data.augment_seed`) and masks (`mask_seed`) are independent of each other.

    Args:
        from_round: `checkpoints/round-<r>.ckpt` of a lottery's run.
        control: what is trained.
        mask_seed: of random masks and fresh weights; by default the run's seed.
        criterion_batches: training batches, augmented as in training, that `snip` and `grasp` see; under DDP
            those of rank 0.

    Attributes:
        record: plain data: `control`, `from_round`, `round`, `mask_seed`, `kept`, `total`, `density`, `layers`.

    Raises:
        UserError: a checkpoint that is not of a lottery's round, or of another network, or of round 0 where masks are
            needed; `max_epochs` other than named above.
    """

    def __init__(
        self, from_round: str, control: Control = "ticket", mask_seed: int | None = None, criterion_batches: int = 1
    ) -> None:
        if control not in get_args(Control):
            raise UserError(f"control must be one of {', '.join(get_args(Control))}, got {control!r}")
        if criterion_batches < 1:
            raise UserError(f"criterion_batches must be 1 or more, got {criterion_batches}")
        self.from_round, self.control = str(from_round), control
        self.mask_seed, self.criterion_batches = mask_seed, criterion_batches
        self.record: dict[str, Any] = {}

    @property
    def schedule_epochs(self) -> int | None:
        """Epochs that the learning rate's schedule has to span; None where it is the fit's own length."""
        return None if self.control == "dense" else self._plan.epochs

    # -- before the first step ---------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        refuse_what_disturbs_rounds(trainer, "LotteryControl")
        self.record = {}
        checkpoint = read_checkpoint(self.from_round)
        if LOTTERY_KEY not in checkpoint:
            raise UserError(f"{self.from_round} is not of a lottery: take checkpoints/round-<r>.ckpt of its run")
        self._stored = checkpoint[LOTTERY_KEY]
        self._plan = LotteryPlan.from_plain(self._stored["plan"])
        masks = checkpoint[CHECKPOINT_KEY]["masks"]
        self._masks = Masks.from_state_dict(masks) if masks else None
        if self._masks is None and self.control != "dense":
            raise UserError(f"{self.from_round} is of the dense training, without masks: take a later round")
        if self._masks is not None:
            try:
                self._masks.weights(cast(nn.Module, pl_module.net))
            except UserError as error:
                raise UserError(f"{self.from_round} is of another network: {error}") from error
        if self.control in _FROM_REWIND_POINT and self._plan.rewind != "weights":
            raise UserError(
                f"{self.control} starts from rewound weights, and this lottery has rewind={self._plan.rewind}"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps, there = steps_per_epoch(trainer), self._stored["steps_per_epoch"]
        if steps != there:
            raise UserError(f"an epoch has {steps} steps here and {there} in the lottery of {self.from_round}")
        number, plan = self._stored["round"], self._plan
        if self.control == "dense":
            asked = plan.epochs_in_all(there, number)
        else:
            asked = plan.epochs_of_round(there) if self.control in _FROM_REWIND_POINT else plan.epochs
        most = cast(Any, trainer).max_epochs
        if most != asked and not cast(Any, trainer).fast_dev_run:
            raise UserError(f"--trainer.max_epochs must be {asked} for {self.control} of round {number}, got {most}")
        self._first = plan.epochs - plan.epochs_of_round(there) if self.control in _FROM_REWIND_POINT else 0
        shift_epochs(trainer, pl_module, self._first)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch or self.control == "dense":
            return
        module: Any = pl_module
        assert self._masks is not None
        from_point = self.control in _FROM_REWIND_POINT
        weights = self._stored["weights"] if from_point else self._fresh(module.net)
        masks, weights = of_rank_0(trainer, self._chosen(trainer, module), weights)
        per_epoch = self._stored["steps_per_epoch"]
        within = self._plan.rewind_step(per_epoch) % per_epoch if from_point else 0
        start_round(
            trainer, module, masks=masks.to(module.device), weights=weights,
            standing=self._stored["standing"] if from_point else None, epoch=self._first,
            batch=within * cast(Any, trainer).accumulate_grad_batches,
        )  # fmt: skip
        self.record = {
            "control": self.control,
            "from_round": self.from_round,
            "round": self._stored["round"],
            "mask_seed": self._seed,
            "kept": masks.kept,
            "total": masks.total,
            "density": masks.density,
            "layers": {layer.name.removesuffix(".weight"): layer.density for layer in masks.layers},
        }

    # -- what is trained ---------------------------------------------------------------------------------------------

    @property
    def _seed(self) -> int:
        return global_seed() if self.mask_seed is None else self.mask_seed

    def _fresh(self, net: nn.Module) -> Snapshot:
        if self.control != "random_reinit":
            return snapshot(net)
        # A stream of its own: with the seed itself the lottery's own initial weights would come again.
        return snapshot(fresh_like(net, mix(self._seed, STREAM_MASKS)))

    def _chosen(self, trainer: Any, module: Any) -> Masks:
        masks, seed = cast(Masks, self._masks), mix(self._seed, STREAM_MASKS)
        dense = Masks({name: torch.ones_like(mask) for name, mask in masks.items()})
        net: nn.Module = module.net
        match self.control:
            case "random_mask":
                return random_masks(masks, seed)
            case "shuffled_mask":
                return shuffled_masks(masks, seed)
            case "random_erk":
                return random_erk_masks(masks, seed)
            case "one_shot":
                path = Path(self.from_round).with_name("round-0.ckpt")
                trained = network_of(read_checkpoint(path), path, net=copy.deepcopy(net))
                return _of_count(magnitude(trained, dense), masks, self._plan)
            case "snip":
                return _of_count(snip(net, self._batches(trainer), F.cross_entropy, dense), masks, self._plan)
            case "grasp":
                return _of_count(grasp(net, self._batches(trainer), F.cross_entropy, dense), masks, self._plan)
            case "synflow":
                data = trainer.datamodule
                return synflow(
                    net, kept=masks.kept, in_channels=data.in_channels, image_size=data.image_size, masks=dense
                )
        return masks

    def _batches(self, trainer: Any) -> list[tuple[Tensor, Tensor]]:
        """The first training batches of epoch 0, from a loader of their own: the fit's stays where it is."""
        data = trainer.datamodule
        loader = data.train_dataloader()
        loader = loader.loader if isinstance(loader, ChunkedLoader) else loader
        found = []
        for _, batch in zip(range(self.criterion_batches), loader, strict=False):
            batch = data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0)
            found.append(data.on_after_batch_transfer(batch, 0))
        return found

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"control": self.control, "record": self.record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["control"] != self.control:
            raise UserError(f"the checkpoint is of control={state_dict['control']}, asked for is {self.control}")
        self.record = dict(state_dict["record"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self.state_key not in checkpoint["callbacks"]:
            raise UserError("the checkpoint is not of a run with LotteryControl")


def _of_count(scores: dict[str, Tensor], masks: Masks, plan: LotteryPlan) -> Masks:
    """As many as the ticket has, in all or in each layer, as its lottery chose."""
    if plan.scope == "global":
        return select(scores, kept=masks.kept)
    return select(scores, scope="layer", densities={layer.name: layer.density for layer in masks.layers})
