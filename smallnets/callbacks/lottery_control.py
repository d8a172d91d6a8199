"""`LotteryControl`: a fit from a stored round of a lottery: its ticket again, or what it is to be compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from smallnets.callbacks.channels import image_of
from smallnets.callbacks.lottery_kinds import (
    AS_LONG,
    FROM_REWIND_POINT,
    OF_ONE_ROUND,
    WITHOUT_MASKS,
    Control,
    chosen_masks,
    dense_masks,
    epochs_of,
)
from smallnets.callbacks.rounds import (
    LOTTERY_KEY,
    STREAM_MASKS,
    RoundEnd,
    RoundFigures,
    checkpoint_folder,
    of_rank_0,
    read_round,
    refuse_what_disturbs_rounds,
    require_validation,
    start_round,
)
from smallnets.callbacks.structure import change_on_all_ranks
from smallnets.data.seeds import global_seed, mix
from smallnets.errors import UserError
from smallnets.pruning.controls import narrow_
from smallnets.pruning.lottery import LotteryPlan, Snapshot, restore_, snapshot
from smallnets.pruning.masks import Masks
from smallnets.pruning.narrow import fresh_like
from smallnets.results.load import CHECKPOINT_KEY
from smallnets.training.restart import shift_epochs
from smallnets.training.steps import steps_per_epoch


class LotteryControl(Callback):
    """Trains, in one fit, what a stored round of a `LotteryTicket` is to be compared with, or several rounds in turn.

    All that have masks keep exactly as many weights as the round's ticket, in the units of its lottery. From the rewind
    point, for the epochs of a round, with the lottery's weights, buffers, schedule and epochs:

        - `ticket`: the ticket itself; of round 0 the dense network, without masks, which goes on from the rewind point
          with an empty optimizer, as every ticket does. With another `--data.order_seed` or `--data.augment_seed` it
          is a child (`connectivity.instability`): two of them tell whether the network is stable to the noise of SGD;
        - `random_mask`: other weights, as many in each layer;
        - `shuffled_mask`: other weights, as many in each output unit;
        - `one_shot`: pruned at once by the dense training's magnitudes; it reads `round-0.ckpt` beside the round;
        - `one_shot_as_long`: the same for as many epochs as the rounds up to this one had together, on the schedule of
          this fit's own configuration, which is to be stretched accordingly.

    From step 0, for `epochs_per_round` epochs (weights without training deserve all of it):

        - `random_reinit`: the ticket's masks on weights that are drawn anew, by the network's own initialisation and
          `mask_seed`;
        - `random_erk`: a random choice with the densities of Erdős-Rényi-Kernel;
        - `snip`, `grasp`, `synflow`: masks chosen before training, by `criterion_batches` training batches.

      These but the first start from this fit's own initial network, which is the lottery's where `--seed_everything`
      and the network are.

    - `narrow`: no masks; the network of the same class with all widths times one factor, the widest that has at most as
      many parameters as the ticket's network has that are not removed (`pruning.controls.narrow_`), drawn anew by
      `mask_seed` and trained from step 0 for `epochs_per_round` epochs.
    - `dense`: no masks, from this fit's initial network, trained as long as the lottery was up to this round: all its
      epochs, on the schedule of this fit's own configuration, which is to be stretched accordingly.

    Law of several rounds: each is trained for as long, and comes out, bitwise on a CPU, as in a fit of it alone; also
    in a run that was killed anywhere and resumed. `--trainer.max_epochs` is the sum. `EMA` and the choice of
    `best.ckpt` start anew in each; the row's accuracy is that of the last, those of all are in the record. At the end
    of each of several `checkpoints/round-<r>.ckpt` is written.

    The seeds of initialisation (`--seed_everything`), order and augmentation (`--data.order_seed`,
    `--data.augment_seed`) and masks (`mask_seed`) are independent of each other.

    Args:
        from_round: `checkpoints/round-<r>.ckpt` of a lottery's run, or a list of such; one for `dense`, `narrow` and
            `one_shot_as_long`.
        control: what is trained.
        mask_seed: of random masks and fresh weights; by default the run's seed.
        criterion_batches: training batches, augmented as in training, that `snip` and `grasp` see; under DDP
            those of rank 0.

    Attributes:
        record: plain data of the round that was begun last: `control`, `from_round`, `round`, `mask_seed`, `kept`,
            `total`, `density`, `layers` (name -> density), those of `narrow` being the ticket's, beside its own
            `parameters`; and `rounds`, for each that is over the same without `control` and `mask_seed`, with `epochs`
            and the figures that `LotteryTicket` keeps of a round.

    Raises:
        UserError: a checkpoint that is not of a lottery's round, or of another network, or of round 0 where masks are
            needed; several that are not of one lottery, or a round twice; `max_epochs` other than named above; a
            network that cannot be narrowed; rounds that may pass without a validation.
    """

    def __init__(
        self,
        from_round: str | Sequence[str],
        control: Control = "ticket",
        mask_seed: int | None = None,
        criterion_batches: int = 1,
    ) -> None:
        if control not in get_args(Control):
            raise UserError(f"control must be one of {', '.join(get_args(Control))}, got {control!r}")
        if criterion_batches < 1:
            raise UserError(f"criterion_batches must be 1 or more, got {criterion_batches}")
        self.from_round = [str(each) for each in ([from_round] if isinstance(from_round, (str, Path)) else from_round)]
        if not self.from_round or (control in OF_ONE_ROUND and len(self.from_round) > 1):
            alone = control in OF_ONE_ROUND
            asked = "one checkpoint is expected" if alone else "a checkpoint, or several, is expected"
            raise UserError(f"from_round of {control}: {asked}, got {len(self.from_round)}")
        self.control = control
        self.mask_seed, self.criterion_batches = mask_seed, criterion_batches
        self.record: dict[str, Any] = {}
        self._figures = RoundFigures()
        self._initial: Snapshot | None = None  # of this fit, where several rounds start from it

    @property
    def schedule_epochs(self) -> int | None:
        """Epochs that the learning rate's schedule has to span; None where it is the fit's own length."""
        return None if self.control in AS_LONG else self._plan.epochs

    # -- before the first step ---------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        refuse_what_disturbs_rounds(trainer, "LotteryControl")
        self.record, self._initial = {}, None
        self._rounds = [self._read(path, cast(nn.Module, pl_module.net)) for path in self.from_round]
        self._plan = LotteryPlan.from_plain(self._rounds[0]["plan"])
        numbers = [stored["round"] for stored in self._rounds]
        for path, stored in zip(self.from_round, self._rounds, strict=True):
            if stored["plan"] != self._rounds[0]["plan"] or not _same(stored["weights"], self._rounds[0]["weights"]):
                raise UserError(f"{path} is of another lottery than {self.from_round[0]}")
            if numbers.count(stored["round"]) > 1:
                raise UserError(f"from_round names round {stored['round']} twice")
        if self.control in FROM_REWIND_POINT and self._plan.rewind != "weights":
            raise UserError(
                f"{self.control} starts from rewound weights, and this lottery has rewind={self._plan.rewind}"
            )
        if self.control == "narrow":
            # Before the optimizer is built. A resumed run is narrowed as well: what it then loads has these widths.
            net, masks, seed = cast(nn.Module, pl_module.net), self._rounds[0]["masks"], mix(self._seed, STREAM_MASKS)
            image = image_of(trainer)
            change_on_all_ranks(trainer, net, lambda: narrow_(net, masks, seed, **image))
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(each, RoundEnd) for each in callbacks):
            callbacks.insert(callbacks.index(self) + 1, RoundEnd(self._close_round))

    def _read(self, path: str, net: nn.Module) -> dict[str, Any]:
        """What a lottery's round has stored, with its `masks`."""
        checkpoint = read_round(path)
        stored = checkpoint[CHECKPOINT_KEY]["masks"]
        masks = Masks.from_state_dict(stored) if stored else None
        if masks is None and self.control not in ("dense", "ticket"):
            raise UserError(f"{path} is of the dense training, without masks: {self.control} takes a later round")
        if masks is not None and self.control != "narrow":  # whose network may be narrow from an earlier fit
            try:
                masks.weights(net)
            except UserError as error:
                raise UserError(f"{path} is of another network: {error}") from error
        return {**checkpoint[LOTTERY_KEY], "masks": masks}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps, plan = steps_per_epoch(trainer), self._plan
        for path, stored in zip(self.from_round, self._rounds, strict=True):
            if steps != (there := stored["steps_per_epoch"]):
                raise UserError(f"an epoch has {steps} steps here and {there} in the lottery of {path}")
        self._steps, numbers = int(steps), [stored["round"] for stored in self._rounds]
        self._each = epochs_of(self.control, plan, numbers[0], self._steps)
        require_validation(trainer, self._each)
        asked, most = self._each * len(numbers), cast(Any, trainer).max_epochs
        if most != asked and not cast(Any, trainer).fast_dev_run:
            which = f"round {numbers[0]}" if len(numbers) == 1 else f"each of rounds {', '.join(map(str, numbers))}"
            raise UserError(f"--trainer.max_epochs must be {asked} for {self.control} of {which}, got {most}")
        self._first = plan.epochs - plan.epochs_of_round(self._steps) if self.control in FROM_REWIND_POINT else 0
        place = trainer.current_epoch // self._each
        shift_epochs(trainer, pl_module, self._first - place * self._each)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        place, epoch = divmod(trainer.current_epoch, self._each)
        if epoch:
            return
        self._figures.begin()
        stored, module = self._rounds[place], cast(Any, pl_module)
        masks = stored["masks"] if self.control in WITHOUT_MASKS else self._start(trainer, module, place)
        if masks is None or self.control == "dense":
            masks = dense_masks(module.net, stored)
        done = self.record.get("rounds", [])
        self.record = {
            "control": self.control,
            "from_round": self.from_round[place],
            "round": stored["round"],
            "mask_seed": self._seed,
            "kept": masks.kept,
            "total": masks.total,
            "density": masks.density,
            "layers": {layer.name.removesuffix(".weight"): layer.density for layer in masks.layers},
            "rounds": done,
        }
        if self.control == "narrow":
            self.record["parameters"] = sum(each.numel() for each in module.net.parameters() if each.requires_grad)

    def _start(self, trainer: Any, module: Any, place: int) -> Masks | None:
        from_point, stored = self.control in FROM_REWIND_POINT, self._rounds[place]
        if not from_point and len(self._rounds) > 1:
            if self._initial is None:
                self._initial = snapshot(module.net)
            restore_(module.net, self._initial)  # what criteria see, and where a round starts
        weights = stored["weights"] if from_point else self._fresh(module.net)
        masks = stored["masks"]
        if masks is not None:
            masks = chosen_masks(
                self.control, self._plan, masks, self.from_round[place], trainer, module.net,
                mix(self._seed, STREAM_MASKS), self.criterion_batches,
            )  # fmt: skip
        masks, weights = of_rank_0(trainer, masks, weights)
        within = self._plan.rewind_step(self._steps) % self._steps if from_point else 0
        start_round(
            trainer, module, masks=None if masks is None else masks.to(module.device), weights=weights,
            standing=stored["standing"] if from_point and self.control not in AS_LONG else None, epoch=self._first,
            batch=within * trainer.accumulate_grad_batches,
        )  # fmt: skip
        return masks

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._figures.validated(trainer)

    def _close_round(self, trainer: Any, module: Any) -> None:
        if (trainer.current_epoch + 1) % self._each:
            return
        folder, name = checkpoint_folder(trainer), "last.ckpt"
        if len(self._rounds) > 1:
            name = f"round-{self.record['round']}.ckpt"
        about = {k: v for k, v in self.record.items() if k not in ("control", "mask_seed", "rounds")}
        checkpoint = f"{folder.name}/{name}" if folder is not None else None
        entry = {**about, "epochs": self._each, **self._figures.of(trainer), "checkpoint": checkpoint}
        self.record["rounds"] = [each for each in self.record["rounds"] if each["round"] != entry["round"]] + [entry]
        if folder is not None and len(self._rounds) > 1:
            trainer.save_checkpoint(folder / name)

    # -- what is trained ---------------------------------------------------------------------------------------------

    @property
    def _seed(self) -> int:
        return global_seed() if self.mask_seed is None else self.mask_seed

    def _fresh(self, net: nn.Module) -> Snapshot:
        if self.control != "random_reinit":
            return snapshot(net)
        # A stream of its own: with the seed itself the lottery's own initial weights would come again.
        return snapshot(fresh_like(net, mix(self._seed, STREAM_MASKS)))

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        figures = self._figures.state_dict()
        return {"settings": self._settings(), "record": self.record, "figures": figures, "initial": self._initial}

    def _settings(self) -> dict[str, Any]:
        return {
            "control": self.control,
            "from_round": [Path(each).name for each in self.from_round],  # the folder may have moved
            "mask_seed": self.mask_seed,
            "criterion_batches": self.criterion_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = state_dict["settings"], self._settings()
        if differing := [f"{name}={before[name]} (now {now[name]})" for name in now if before[name] != now[name]]:
            raise UserError(f"the checkpoint is of another LotteryControl: {', '.join(differing)}")
        self.record, self._initial = dict(state_dict["record"]), state_dict["initial"]
        self._figures.load_state_dict(state_dict["figures"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self.state_key not in checkpoint["callbacks"]:
            raise UserError("the checkpoint is not of a run with LotteryControl")


def _same(one: Snapshot, other: Snapshot) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
