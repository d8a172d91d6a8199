"""`optimizer`: a step on ResNet-20's parameters in torch's default form, over lists of tensors, and fused."""

from collections.abc import Callable
from functools import partial

from torch.optim import Adam, Optimizer

from smallnets.bench.adabound import parameters_of_resnet20
from smallnets.bench.modules import usual_optimizer
from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.measure.dispatch import count_dispatched
from smallnets.optim import in_foreach_form

RECIPES: dict[str, Callable[..., Optimizer]] = {
    "SGD": usual_optimizer,
    "Adam": partial(Adam, weight_decay=5e-4),
}


def measure(settings: Settings) -> list[Row]:
    """Seconds of one step of each form against torch's default for the device, and the operations dispatched."""
    rows = []
    times = 2 if settings.quick else 50
    for name, make in RECIPES.items():
        forms = {
            "as Classifier has it": in_foreach_form(make(parameters_of_resnet20(settings.device))),
            "torch's default": make(parameters_of_resnet20(settings.device)),
            "fused": make(parameters_of_resnet20(settings.device), fused=True),
        }
        for optimizer in forms.values():
            optimizer.step()  # makes the state
        counts = {form: count_dispatched(optimizer.step) for form, optimizer in forms.items()}
        sides = {form: timed(optimizer.step, settings.device, times) for form, optimizer in forms.items()}
        seconds = alternate(sides, settings.rounds(15))
        note = "a step on the 65 tensors of ResNet-20; dispatched operations: "
        note += ", ".join(f"{form} {count}" for form, count in counts.items())
        ours, default, fused = forms
        rows += [compare(name, seconds, ours, default, note), compare(f"{name}, fused", seconds, fused, default, note)]
    return rows
