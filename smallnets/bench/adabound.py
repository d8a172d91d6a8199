"""`adabound`: a step on ResNet-20's parameters, against the package `adabound` and torch's Adam."""

import warnings

import adabound
import torch
from torch.optim import Adam, Optimizer

from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.measure.dispatch import count_dispatched
from smallnets.models import resnet20
from smallnets.optim import AdaBound

MOST_OPERATIONS, MOST_OF_THE_PACKAGE = 15, 0.6


def measure(settings: Settings) -> list[Row]:
    """Seconds of one step with weight decay, and the operations that it dispatches."""
    ours = AdaBound(parameters_of_resnet20(settings.device), weight_decay=5e-4)
    theirs = adabound.AdaBound(parameters_of_resnet20(settings.device), weight_decay=5e-4)
    adam = Adam(parameters_of_resnet20(settings.device), weight_decay=5e-4, foreach=True)
    optimizers: dict[str, Optimizer] = {"AdaBound": ours, "package": theirs, "Adam, foreach": adam}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls functions of torch that are deprecated
        for optimizer in optimizers.values():
            optimizer.step()  # makes the state
        counts = {name: count_dispatched(optimizer.step) for name, optimizer in optimizers.items()}
        times = 2 if settings.quick else 50
        sides = {name: timed(optimizer.step, settings.device, times) for name, optimizer in optimizers.items()}
        seconds = alternate(sides, settings.rounds(15))
    note = "a step on the 65 tensors of ResNet-20"
    share = counts["AdaBound"] / counts["package"]
    operations = f"operations dispatched a step: AdaBound {counts['AdaBound']}, " + ", ".join(
        f"{name} {count}" for name, count in counts.items() if name != "AdaBound"
    )
    return [
        compare("against its package", seconds, "AdaBound", "package", note).with_bar("<=", MOST_OF_THE_PACKAGE),
        compare("against Adam", seconds, "AdaBound", "Adam, foreach", note),
        Row("operations", "AdaBound", "package", None, None, share, share, share, 1, operations).with_bar(
            "<=", MOST_OPERATIONS, "operations", counts["AdaBound"]
        ),
    ]


def parameters_of_resnet20(device: torch.device) -> list[torch.nn.Parameter]:
    """The 65 tensors of a ResNet-20, with gradients."""
    parameters = list(resnet20().to(device).parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.01)
    return parameters
