"""What a `LotteryControl` may train: where each control starts, for how long, and by which masks."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.callbacks.ema import trained_weights
from smallnets.data.chunks import first_batches
from smallnets.pruning.controls import random_erk_masks, random_masks, shuffled_masks
from smallnets.pruning.criteria import Scores, grasp, magnitude, snip, synflow
from smallnets.pruning.lottery import LotteryPlan
from smallnets.pruning.masks import Masks
from smallnets.pruning.named import check_unit
from smallnets.pruning.quaternion import by_unit, choose
from smallnets.pruning.select import select
from smallnets.results.load import network_of, read_checkpoint

Control = Literal[
    "ticket", "random_mask", "shuffled_mask", "one_shot", "one_shot_as_long",  # from the rewind point
    "random_reinit", "random_erk", "snip", "grasp", "synflow", "narrow", "dense",  # from a start of their own
]  # fmt: skip
FROM_REWIND_POINT = ("ticket", "random_mask", "shuffled_mask", "one_shot", "one_shot_as_long")
# Of one round only: their length, or their network, is that round's.
OF_ONE_ROUND = ("dense", "narrow", "one_shot_as_long")
# Trained on the schedule of the fit's own configuration, over the fit's own length.
AS_LONG = ("dense", "one_shot_as_long")
WITHOUT_MASKS = ("dense", "narrow")


def epochs_of(control: str, plan: LotteryPlan, number: int, steps: int) -> int:
    """Epochs that a control of round `number` is trained for, where an epoch has so many steps."""
    match control:
        case "dense":
            return plan.epochs_in_all(steps, number)
        case "one_shot_as_long":
            return number * plan.epochs_of_round(steps)
    return plan.epochs_of_round(steps) if control in FROM_REWIND_POINT else plan.epochs


def chosen_masks(
    control: str,
    plan: LotteryPlan,
    masks: Masks,
    path: str,
    trainer: Any,
    net: nn.Module,
    seed: int,
    criterion_batches: int,
) -> Masks:
    """The masks of a control of the round whose `masks` these are, with exactly as many weights, in the plan's units.

    Args:
        path: the round's checkpoint; one-shot pruning reads the dense network of `round-0.ckpt` beside it.
        net: the fit's own network, which the criteria before training see.
        seed: of random masks.
        criterion_batches: training batches, augmented, that `snip` and `grasp` see.
    """
    dense = Masks({name: torch.ones_like(mask) for name, mask in masks.items()})

    def of_units(make: Callable[[Masks], Masks]) -> Masks:
        return by_unit(net, masks, plan.unit, make)

    def best(scores: Scores, norm: bool = False) -> Masks:
        return choose(net, scores, masks, plan.unit, partial(_of_count, plan=plan), norm)

    def batches() -> list[tuple[Tensor, Tensor]]:
        return first_batches(trainer.datamodule, criterion_batches, trainer.strategy.root_device)

    match control:
        case "random_mask":
            return of_units(lambda each: random_masks(each, seed))
        case "shuffled_mask":
            return of_units(lambda each: shuffled_masks(each, seed))
        case "random_erk":
            return of_units(lambda each: random_erk_masks(each, seed))
        case "one_shot" | "one_shot_as_long":
            return best(magnitude(_dense_network(path, net), dense), norm=True)
        case "snip":
            return best(snip(net, batches(), F.cross_entropy, dense))
        case "grasp":
            return best(grasp(net, batches(), F.cross_entropy, dense))
        case "synflow":
            check_unit("synflow", plan.unit)
            data = trainer.datamodule
            return synflow(net, kept=masks.kept, in_channels=data.in_channels, image_size=data.image_size, masks=dense)
    return masks


def _dense_network(path: str, net: nn.Module) -> nn.Module:
    """The trained dense network beside a round: its weights, as the lottery's own choice, not their average."""
    beside = Path(path).with_name("round-0.ckpt")
    checkpoint = read_checkpoint(beside)
    weights = {**checkpoint, "state_dict": trained_weights(checkpoint)}
    return network_of(weights, beside, net=copy.deepcopy(net))


def _of_count(scores: Scores, masks: Masks, plan: LotteryPlan) -> Masks:
    """As many as the ticket has, in all or in each layer, as its lottery chose."""
    if plan.scope == "global":
        return select(scores, kept=masks.kept)
    return select(scores, scope="layer", densities={layer.name: layer.density for layer in masks.layers})


def dense_masks(net: nn.Module, stored: dict[str, Any]) -> Masks:
    """All weights of the layers that have masks in the lottery whose round is `stored`."""
    settings = stored["settings"]
    return Masks.dense(net, cast(Any, settings["include"]), settings["exclude"])
