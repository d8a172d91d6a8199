"""`PruningSchedule`: masks whose density falls while a network trains."""

import math
from typing import Any, Literal, cast

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from smallnets.callbacks.board import draw_masks
from smallnets.callbacks.budget import check_budgets
from smallnets.callbacks.checkpoint import forget_best
from smallnets.callbacks.structure import require_whole_weights
from smallnets.data.chunks import unchunked
from smallnets.data.loader import BatchLoader
from smallnets.data.seeds import global_seed, mix
from smallnets.errors import RunError, UserError
from smallnets.measure import count
from smallnets.pruning.criteria import Movement
from smallnets.pruning.masks import Masks
from smallnets.pruning.named import check_unit, criterion_named, next_masks
from smallnets.pruning.quaternion import Unit, units
from smallnets.pruning.schedules import schedule_of
from smallnets.pruning.select import kept_of
from smallnets.pruning.sizes import kept_macs, packed_bytes
from smallnets.training.steps import StepCallback, run_length, steps_per_epoch

# The constant of this stream among those that are drawn from the run's seed.
_STREAM_MASKS = 6


class PruningSchedule(StepCallback):
    """Lowers the density of a `Classifier`'s masks by a schedule (`pruning.schedules`, `pruning.next_masks`).

    Laws:
        - After the rounds at step s (after s optimizer steps and before the next) exactly density * total weights are
          kept, rounded half up, and each masked weight is 0.0 from then on (`Classifier.set_masks`). With the unit
          `quaternion` that is the count of quaternions, and of real layers' weights.
        - A run resumed from any checkpoint ends bitwise where the uninterrupted one ends (CPU), the sums of the
          criterion `movement` included; with another schedule than the checkpoint's it is refused.
        - Under DDP rank 0 chooses the masks, and all ranks set these.
        - The images that a criterion looks at are a function of (seed, step) alone: the first batches of an order of
          their own, not augmented. The loader's place and every generator are left as they are.
        - A checkpoint that is chosen by a monitored figure is chosen among those of the latest density: earlier, denser
          networks no longer count (`best.ckpt` is written anew).

    Scores are taken in training mode with the cross entropy of the labels. At every change the densities go to the
    loggers (`density/total`, `density/LAYER`, `pruning/...`, in the row of the step before), to TensorBoard a picture
    with a bar a layer (`layers/masks`), and a line is printed.

    Args:
        density: share of the weights to keep in the end, from 0 to 1.
        criterion: `magnitude`, `random`, `gradient_magnitude`, `taylor`, `snip`, `grasp`, `synflow` or `movement`.
        scope: `global`, where all weights compete, or `layer`.
        densities: with scope `layer`: `uniform` (default) or `erk`.
        floor: weights that every layer keeps at least.
        unit: what is kept or removed together: `weight`; of quaternion networks also `component`, where r, i, j and k
            are four layers, or `quaternion` (`pruning.quaternion.choose`). Not for `synflow`.
        include: patterns of the weights to prune (`stages.*`); by default those of all convolutions and linear layers.
        exclude: patterns of those to leave out (`head`).
        curve: `one_shot`, or `linear`, `geometric` or `cubic` from `start` to `end`.
        at: when a one-shot curve prunes: `0it` before training, the run's length after it, `500it`, `2ep`.
        start, end: of the other curves; `start` is `0it` by default.
        every: one round every so often; by default `1ep`.
        initial: density at `start`; below 1 it is that of a network which has masks already, or of a first cut.
        batches: training batches that a criterion which needs data looks at.
        rounds: of `synflow`, at each change.

    Attributes:
        record: plain data of what was done: the settings, `rounds` (each with `step`, `density`, `kept`, `removed`,
            `total`, `macs` of one image that meet a kept weight, `packed_bytes`: the network stored with its kept
            weights and one bit for each that has a mask, `kept_by_layer`) and `layers` (kept and total after the last
            round).

    Raises:
        UserError: a setting out of range; and before the first step of a fit: a pattern that matches nothing, a
            schedule that ends after the run, a density that rises above that of masks which are there already, a floor
            that cannot be kept, a strategy that shards parameters.
    """

    def __init__(
        self,
        density: float,
        criterion: str = "magnitude",
        scope: Literal["global", "layer"] = "global",
        densities: Literal["uniform", "erk"] | None = None,
        floor: int = 1,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        curve: Literal["one_shot", "linear", "geometric", "cubic"] = "one_shot",
        at: str | None = None,
        start: str | None = None,
        end: str | None = None,
        every: str | None = None,
        initial: float = 1.0,
        batches: int = 4,
        rounds: int = 100,
        unit: Unit = "weight",
    ) -> None:
        self._needs = criterion_named(criterion).needs
        check_unit(criterion, unit)
        for name, number in {"batches": batches, "rounds": rounds}.items():
            if number < 1:
                raise UserError(f"PruningSchedule {name} must be 1 or more, got {number}")
        self.settings: dict[str, Any] = {
            "density": density, "criterion": criterion, "scope": scope, "densities": densities, "floor": floor,
            "include": None if include is None else list(include), "exclude": list(exclude or []), "curve": curve,
            "at": at, "start": start, "end": end, "every": every, "initial": initial, "batches": batches,
            "rounds": rounds, "unit": unit,
        }  # fmt: skip
        self.schedule = schedule_of(curve, density, at, start, end, every, initial)
        self._image: dict[str, Any] = {}
        self._how: dict[str, Any] = {"scope": scope, "densities": densities, "floor": floor, "unit": unit}
        self._rounds: list[dict[str, Any]] = []
        self._layers: dict[str, dict[str, int]] = {}
        self._changes: dict[int, float] = {}
        self._movement: Movement | None = None
        self._stored_movement: dict[str, Tensor] | None = None

    @property
    def record(self) -> dict[str, Any]:
        return {**self.settings, "rounds": self._rounds, "layers": self._layers} if self._rounds else {}

    @property
    def masks_ahead(self) -> bool:
        """Whether masks will still remove weights in this fit."""
        return len(self._rounds) < len(self._changes)

    # -- before the first step ---------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_weights(trainer, "PruningSchedule")
        if not hasattr(pl_module, "set_masks"):
            raise UserError(f"PruningSchedule sets the masks of a Classifier, not of a {type(pl_module).__name__}")
        if self._needs == "movement" and str(trainer.precision).startswith("16"):
            raise UserError(f"movement sums gradients, which overflow in {trainer.precision}: use bf16-mixed")
        net = cast(nn.Module, pl_module.net)
        layers = self._all(net)
        # Whatever the scores will be: the counts can be had.
        next_masks(net, layers, "magnitude", self.settings["density"], **self._how)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if step == 0:  # a run of its own, whatever this callback has done before
            self._rounds, self._layers = [], {}
            self._movement = self._stored_movement = None
        self._plan(trainer)
        missed = {at for at in self._changes if 0 < at <= step} ^ {r["step"] for r in self._rounds if r["step"] > 0}
        if missed:
            raise UserError(
                f"the run stands at step {step:,}, and its masks were not made by this schedule (step {min(missed):,});"
                " prune it in a new run: --model.init_from=CHECKPOINT instead of --ckpt_path"
            )
        net = cast(nn.Module, pl_module.net)
        self._check_masks(net, cast(Any, pl_module).masks, step)
        self._image = _image(getattr(trainer, "datamodule", None), net)
        self._counts = count(net, **self._image)
        if self._needs == "batches":
            self._check_data(trainer)
        if self._needs == "movement" and self._movement is None:
            if 0 in self._changes:
                raise UserError("movement has seen no step at 0it: start or at must be later")
            self._movement = Movement(net, self._all(net))
            if self._stored_movement is not None:
                self._movement.load_state_dict(self._stored_movement)
        if step == 0:
            self.after_optimizer_step(trainer, pl_module, 0)

    def _plan(self, trainer: L.Trainer) -> None:
        found = steps_per_epoch(trainer)
        per_epoch = int(found) if math.isfinite(found) else None
        length = run_length(trainer)
        if length is not None:
            self.schedule.check(length.steps, per_epoch)
        self._changes = {at: self.schedule.density_at(at, per_epoch) for at in self.schedule.changes(per_epoch)}

    def _check_masks(self, net: nn.Module, masks: Masks | None, step: int) -> None:
        layers = self._all(net)
        if masks is None:
            return
        if differing := masks.keys() ^ layers.keys():
            raise UserError(
                f"the network has masks already, of other layers than the schedule prunes: {sorted(differing)[0]} in"
                " one of them only; choose the same with include and exclude"
            )
        masks.weights(net)
        ahead = [at for at in self._changes if at > step or at == step == 0]
        groups = units(net, masks, self.settings["unit"])
        if ahead and any(kept_of(each.total, self._changes[ahead[0]]) > each.kept for each in groups):
            raise UserError(
                f"the network's masks keep {masks.density:.4g} of the weights already, and the schedule asks for"
                f" {self._changes[ahead[0]]:.4g} at step {ahead[0]:,}: the density must not rise; see `initial`"
            )

    def _check_data(self, trainer: L.Trainer) -> None:
        loader = criterion_loader(trainer)
        if loader is None:
            raise UserError(f"{self.settings['criterion']} needs training images from a data module of smallnets")
        if self.settings["batches"] > len(loader):
            raise UserError(f"PruningSchedule batches={self.settings['batches']}, but an epoch has {len(loader)}")

    def _all(self, net: nn.Module) -> Masks:
        return Masks.dense(net, self.settings["include"], self.settings["exclude"])

    # -- in every step -----------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if self._movement is not None and trainer.global_step < max(self._changes):
            self._movement.update(cast(nn.Module, pl_module.net))

    def after_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        if step not in self._changes:
            return
        module = cast(Any, pl_module)
        masks = self._chosen(trainer, module, step)
        module.set_masks(masks)
        forget_best(trainer)
        self._note(trainer, module.net, masks, step)
        if not self.masks_ahead:
            check_budgets(trainer, pl_module)

    def _chosen(self, trainer: L.Trainer, module: Any, step: int) -> Masks:
        """Those that rank 0 chooses; where it fails, all ranks do."""
        found: dict[str, Any] = {}
        if trainer.is_global_zero:
            try:
                found["masks"] = self._next(trainer, module, step).state_dict()
            except (UserError, RunError) as error:
                found = {"error": str(error)}
        found = trainer.strategy.broadcast(found)
        if "error" in found:
            raise RunError(f"PruningSchedule at step {step:,}: {found['error']}")
        return Masks.from_state_dict(found["masks"]).to(module.device)

    def _next(self, trainer: L.Trainer, module: Any, step: int) -> Masks:
        masks = module.masks if module.masks is not None else self._all(module.net)
        return next_masks(
            module.net,
            masks,
            self.settings["criterion"],
            self._changes[step],
            **self._how,
            batches=criterion_batches(trainer, self.settings["batches"], step) if self._needs == "batches" else (),
            seed=mix(global_seed(), _STREAM_MASKS),
            movement=self._movement,
            rounds=self.settings["rounds"],
            **self._image,
        )

    def _note(self, trainer: L.Trainer, net: nn.Module, masks: Masks, step: int) -> None:
        entry: dict[str, Any] = {
            "step": step, "density": masks.density, "kept": masks.kept, "removed": masks.total - masks.kept,
            "total": masks.total, "macs": kept_macs(self._counts, masks), "packed_bytes": packed_bytes(net, masks),
            "kept_by_layer": {each.name: each.kept for each in masks.layers},
        }  # fmt: skip
        self._rounds.append(entry)
        self._layers = {each.name: {"kept": each.kept, "total": each.total} for each in masks.layers}
        figures = {f"pruning/{name}": entry[name] for name in ("kept", "removed", "macs", "packed_bytes")}
        figures |= {f"density/{each.name.removesuffix('.weight')}": each.density for each in masks.layers}
        figures |= {"density/total": masks.density, "epoch": trainer.current_epoch}
        for logger in trainer.loggers:
            # In the row of the last step that was taken, as Lightning counts them from 0.
            logger.log_metrics(figures, step=max(0, step - 1))
        draw_masks(trainer, masks, max(0, step - 1))
        trainer.print(
            f"PruningSchedule: after step {step:,} density {masks.density:.4g}, {masks.kept:,} of {masks.total:,} kept,"
            f" {entry['macs']:,} of {self._counts.macs:,} MACs"
        )

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        movement = None if self._movement is None else self._movement.state_dict()
        return {"settings": self.settings, "rounds": self._rounds, "layers": self._layers, "movement": movement}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rounds, self._layers = [dict(each) for each in state_dict["rounds"]], dict(state_dict["layers"])
        self._movement, self._stored_movement = None, state_dict["movement"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        before = checkpoint["callbacks"].get(self.state_key, {}).get("settings", {})
        changed = [name for name, value in self.settings.items() if name not in before or before[name] != value]
        if changed:
            shown = ", ".join(f"{n} was {before.get(n)}, now {self.settings[n]}" for n in changed[:3])
            raise UserError(
                f"a resumed run keeps its pruning schedule: {shown if before else 'the checkpoint has none'}; for"
                " another start a new run: --model.init_from=CHECKPOINT"
            )


def _image(data: Any, net: Any) -> dict[str, int]:
    """The form of an image: the data's; without a data module that for which the network was built."""
    usual = {"image_size": 32, "in_channels": 3}
    return {name: int(getattr(data, name, None) or getattr(net, name, None) or value) for name, value in usual.items()}


def criterion_loader(trainer: Any) -> BatchLoader | None:
    loader = unchunked(trainer.train_dataloader)
    known = hasattr(getattr(trainer, "datamodule", None), "on_after_batch_transfer")
    return loader if known and isinstance(loader, BatchLoader) else None


def criterion_batches(trainer: Any, number: int, step: int) -> list[tuple[Tensor, Tensor]]:
    """Training batches of one rank, as they come to the network, from an order that is a function of (seed, step)."""
    loader, data = criterion_loader(trainer), trainer.datamodule
    assert loader is not None, "on_train_start asks for it"
    seed = mix(loader.seed, _STREAM_MASKS, step)
    own = BatchLoader(
        loader.images, loader.labels, loader.indices, batch_size=loader.batch_size, seed=seed, train=False
    )
    found = [batch for batch, _ in zip(own, range(number), strict=False)]
    device = trainer.strategy.root_device
    return [data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0) for batch in found]
