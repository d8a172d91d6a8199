"""`LotteryTicket`: all rounds of a lottery inside one fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from smallnets.callbacks.rounds import (
    LOTTERY_KEY,
    STREAM_MASKS,
    RoundEnd,
    RoundFigures,
    checkpoint_folder,
    of_rank_0,
    refuse_what_disturbs_rounds,
    require_validation,
    start_round,
    take_over_dense,
)
from smallnets.data.seeds import global_seed, mix
from smallnets.errors import UserError
from smallnets.pruning.lottery import Criterion, LotteryPlan, Rewind, Snapshot, snapshot
from smallnets.pruning.masks import Masks
from smallnets.pruning.quaternion import Unit
from smallnets.pruning.select import Scope
from smallnets.training.restart import keep_constant, shift_epochs, standing
from smallnets.training.steps import StepCallback, steps_per_epoch


class LotteryTicket(StepCallback):
    """Iterative pruning with rewinding (Frankle and Carbin 2019; Frankle et al. 2020; Renda et al. 2020), in one fit.

    Round 0 is the dense training, of `epochs_per_round` epochs. Then come `rounds` rounds: prune by the trained
    weights, rewind, train from the rewind point to the end of the schedule. `--trainer.max_epochs` must be the sum,

        epochs_per_round + rounds * (epochs_per_round - whole epochs before the rewind point),

    which is (rounds + 1) * epochs_per_round where the weights go back to the start. From a rewind point within an
    epoch, a round's first epoch has the images that were seen after it.

    Laws:
        - Counts: after round r kept -= ceil(fraction * kept) r times, exactly (`LotteryPlan`).
        - At the start of a round the weights are mask x (weights at the rewind point), every buffer is that point's,
          the optimizer's state is empty, schedule and rates stand where they stood, and order, augmentation, dropout
          and mixing are those of the dense training from there: a round differs from the dense training in its masks
          alone (as in open_lth with a fixed seed of the data order).
        - The tickets equal those of a plain PyTorch loop, and those of a run that was killed anywhere and resumed,
          bitwise on a CPU; those of the fast mode too. Under DDP every rank has the masks and weights of rank 0.

    `EMA` and the choice of `best.ckpt` start anew in each round; so `best.ckpt` and the row's accuracy are in the end
    those of the last round. With EMA masks are chosen by the trained weights, not by their average. At the end of each
    round `checkpoints/round-<r>.ckpt` is written: `smallnets.load` gives its network, `LotteryControl` starts from it.

    With `from_round` the dense training of another lottery is taken over, not trained again: the fit has the `rounds`
    later ones alone, and `max_epochs` is their sum. With another `rewind` it is that lottery's control: learning-rate
    rewinding or fine-tuning. Law: with the same settings its rounds are those of the other, bitwise on a CPU.

    Args:
        rounds, epochs_per_round, fraction, densities, criterion, scope, head_rate_half, rewind_to, rewind: see
            `LotteryPlan`, where `epochs_per_round` is `epochs`.
        unit, floor: see there too.
        include, exclude: patterns of the layers that get masks; by default all convolutions and linear layers.
        mask_seed: of the random criterion; by default the run's seed.
        from_round: `checkpoints/round-0.ckpt` of a lottery's run with the same `epochs_per_round` and `rewind_to`.

    Attributes:
        record: plain data: `plan`, `from_round` where there is one, and `rounds`, of each round that is over `round`,
            `kept`, `total`, `density`, `layers` (name -> density), figures of its last epoch (`val_accuracy`,
            `val_loss`, where it was validated, `train_accuracy`, `train_loss`), `val_accuracy_best`, `epochs`,
            `seconds` and `checkpoint`.

    Raises:
        UserError: what `LotteryPlan` refuses; and in a fit, before the first step: other `max_epochs`, a rewind point
            after the dense training, a layer that would be emptied, EarlyStopping, PruningSchedule, `max_steps`, a
            checkpoint that is not of this plan or of other epochs, a network that has masks already, rounds that may
            pass without a validation.
    """

    def __init__(
        self,
        rounds: int,
        epochs_per_round: int,
        fraction: float | None = None,
        densities: Sequence[float] | None = None,
        criterion: Criterion = "magnitude",
        scope: Scope = "global",
        head_rate_half: bool = False,
        rewind_to: str = "0it",
        rewind: Rewind = "weights",
        include: list[str] | None = None,
        exclude: Sequence[str] = (),
        mask_seed: int | None = None,
        unit: Unit = "weight",
        floor: int = 0,
        from_round: str | None = None,
    ) -> None:
        self.plan = LotteryPlan(
            rounds, epochs_per_round, fraction, None if densities is None else cast(Any, densities), criterion, scope,
            head_rate_half, rewind_to, rewind, unit, floor,
        )  # fmt: skip
        self.include, self.exclude, self.mask_seed = include, list(exclude), mask_seed
        self.from_round = from_round
        self._settings = {
            "include": include, "exclude": self.exclude, "mask_seed": mask_seed,
            "from_round": None if from_round is None else Path(from_round).name,  # the folder may have moved
        }  # fmt: skip
        self._forget()

    def _forget(self) -> None:
        self.record: dict[str, Any] = {"plan": self.plan.as_plain(), "rounds": []}
        if self.from_round is not None:
            self.record["from_round"] = self.from_round
        self._figures = RoundFigures()
        self._weights: Snapshot | None = None  # of the rewind point
        self._standing: dict[str, Any] | None = None  # optimizer and schedule there
        self._final: dict[str, Any] | None = None  # and in the last step of the dense training
        self._resumed: int | None = None  # the steps of an epoch in the checkpoint
        self._steps = self._rewind_step = self._round = 0

    @property
    def schedule_epochs(self) -> int:
        """Epochs that the learning rate's schedule has to span: those of the dense training."""
        return self.plan.epochs

    @property
    def masks_ahead(self) -> bool:
        """Whether rounds will still remove weights in this fit."""
        return self._round < self.plan.rounds

    # -- before the first step ---------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._forget()
        refuse_what_disturbs_rounds(trainer, "LotteryTicket")
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(each, RoundEnd) for each in callbacks):
            # Behind this one, so that what is being called stays in its place, and before the trainer's checkpoints.
            callbacks.insert(callbacks.index(self) + 1, RoundEnd(self._close_round))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        if self._resumed is None:
            if module.masks is not None:
                raise UserError("LotteryTicket begins with a dense network, and this one has masks (--model.init_from)")
            self.plan.check(module.net, self._dense(module))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = steps_per_epoch(trainer)
        if steps == float("inf"):
            raise UserError("LotteryTicket needs training data of a known length")
        self._steps = int(steps)
        self._rewind_step = self.plan.rewind_step(self._steps)
        each, elsewhere = self.plan.epochs_of_round(self._steps), self._elsewhere
        asked, most = self.plan.epochs_in_all(self._steps) - elsewhere, cast(Any, trainer).max_epochs
        if most != asked and not cast(Any, trainer).fast_dev_run:
            first = f"{self.plan.epochs} epochs of dense training and " if not elsewhere else ""
            raise UserError(
                f"--trainer.max_epochs must be {asked}, got {most}: {first}{self.plan.rounds} rounds of {each}"
            )
        require_validation(trainer, each)
        if self._resumed is not None:
            if self._resumed != self._steps:
                raise UserError(
                    f"an epoch has {self._steps} steps here and {self._resumed} in the checkpoint's lottery"
                )
            number, epoch = self._place(trainer)
            shift_epochs(trainer, pl_module, epoch - trainer.current_epoch)
            if number and self.plan.rewind == "none":
                keep_constant(trainer)
        elif self.from_round is not None:
            stored = take_over_dense(self.from_round, self.plan, self._steps, cast(Any, pl_module).net)
            self._weights, self._standing, self._final = stored["weights"], stored["standing"], stored["final"]
            self.record["rounds"] = [each for each in stored["rounds"] if each["round"] == 0]

    @property
    def _elsewhere(self) -> int:
        """Epochs of this lottery that another fit has trained."""
        return self.plan.epochs if self.from_round is not None else 0

    def _place(self, trainer: L.Trainer) -> tuple[int, int]:
        """(round, epoch of the dense training) of the fit's current epoch."""
        return self.plan.locate(trainer.current_epoch + self._elsewhere, self._steps)

    # -- rounds ------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._round, epoch = self._place(trainer)
        first = self.plan.epochs - self.plan.epochs_of_round(self._steps)
        if self._round == 0:
            if epoch == 0:
                self._figures.begin()
                if self._rewind_step == 0:
                    self._weights, self._standing = snapshot(pl_module.net), standing(trainer)  # type: ignore[arg-type]
        elif epoch == first:
            self._figures.begin()
            self._start(trainer, pl_module, epoch)

    def _start(self, trainer: Any, module: Any, epoch: int) -> None:
        before = module.masks or self._dense(module)
        seed = mix(global_seed() if self.mask_seed is None else self.mask_seed, STREAM_MASKS, self._round)
        masks = self.plan.prune(module.net, before, self._round, seed)
        rewound = self._weights if self.plan.rewind == "weights" else snapshot(module.net)
        masks, rewound = cast(tuple[Masks, Snapshot], of_rank_0(trainer, masks, rewound))
        constant = self.plan.rewind == "none"
        start_round(
            trainer, module, masks=masks, weights=rewound,
            standing=self._final if constant else self._standing, constant=constant, epoch=epoch,
            batch=self._rewind_step % self._steps * trainer.accumulate_grad_batches,
        )  # fmt: skip

    def after_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if self.from_round is not None:
            return
        if step == self._rewind_step:
            self._weights = snapshot(pl_module.net)  # type: ignore[arg-type]
        if step == self.plan.epochs * self._steps:
            self._final = standing(trainer)  # before the schedule's last step, which cosine makes to 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        # Schedules are stepped after the hook above, by the step or by the epoch; before the next step all are done.
        if self._standing is None and trainer.global_step == self._rewind_step:
            self._standing = standing(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._figures.validated(trainer)

    def _close_round(self, trainer: Any, module: Any) -> None:
        number, epoch = self._place(trainer)
        if epoch != self.plan.epochs - 1:
            return
        masks = module.masks or self._dense(module)
        folder = checkpoint_folder(trainer)
        path = folder / f"round-{number}.ckpt" if folder is not None else None
        entry = {
            "round": number,
            "kept": masks.kept,
            "total": masks.total,
            "density": masks.density,
            "layers": {layer.name.removesuffix(".weight"): layer.density for layer in masks.layers},
            "epochs": self.plan.epochs if number == 0 else self.plan.epochs_of_round(self._steps),
            **self._figures.of(trainer),
            "checkpoint": f"{path.parent.name}/{path.name}" if path is not None else None,
        }
        self.record["rounds"] = [each for each in self.record["rounds"] if each["round"] != number] + [entry]
        shown = {
            "lottery/round": number,
            "lottery/density": masks.density,
            "lottery/val_accuracy": entry["val_accuracy"],
        }
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in shown.items() if v is not None}, trainer.global_step - 1)
        if path is not None:
            trainer.save_checkpoint(path)

    def _dense(self, module: Any) -> Masks:
        return Masks.dense(module.net, self.include, self.exclude)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[LOTTERY_KEY] = {
            "plan": self.plan.as_plain(),
            "settings": self._settings,
            "steps_per_epoch": self._steps,
            "round": self._round,
            "rounds": self.record["rounds"],
            "figures": self._figures.state_dict(),
            "weights": self._weights,
            "standing": self._standing,
            "final": self._final,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        stored = checkpoint.get(LOTTERY_KEY)
        if stored is None:
            raise UserError("the checkpoint is not of a lottery: a run goes on with LotteryTicket as it began with it")
        mine, theirs = {**self.plan.as_plain(), **self._settings}, {**stored["plan"], **stored["settings"]}
        differing = [f"{k}={theirs.get(k)} (now {mine[k]})" for k in mine if mine[k] != theirs.get(k)]
        if differing:
            raise UserError(f"the checkpoint is of another lottery: {', '.join(differing)}")
        self.record["rounds"] = list(stored["rounds"])
        self._round = stored["round"]
        self._figures.load_state_dict(stored["figures"])
        self._weights, self._standing, self._final = stored["weights"], stored["standing"], stored["final"]
        self._resumed = stored["steps_per_epoch"]
