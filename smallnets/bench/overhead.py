"""`overhead`: what Lightning adds to a step that has nearly nothing to compute."""

from torch import nn

from smallnets.bench.images import CLASSES
from smallnets.bench.loops import Work, fresh
from smallnets.bench.modules import Plain, Usual
from smallnets.bench.rows import Row
from smallnets.bench.timing import Settings, alternate, compare
from smallnets.callbacks import Health
from smallnets.data.chunks import STEPS

MOST_RAW_STEPS, MOST_RAW_STEPS_FAST = 1.5, 0.3


def network() -> nn.Module:
    """192 values in, 32 hidden, 10 logits."""
    return fresh(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, CLASSES)))


def measure(settings: Settings) -> list[Row]:
    """Seconds of one step on batches of 128 images of 8 x 8; the bar is on what is added, in steps by hand."""
    warm, steps = STEPS, STEPS if settings.quick else 10 * STEPS
    work = Work(settings.device, warm, steps, image_size=8)
    sides = {
        "Trainer.fit": lambda: work.by_trainer(network()),
        "by hand": lambda: work.by_hand(network()),
        "fast mode": lambda: work.by_trainer(network(), fast=True),
        "with Health": lambda: work.by_trainer(network(), Health()),
        "steps of Trainer.fit": lambda: work.by_trainer(network(), steps_alone=True),
        "smallnets fit": lambda: work.by_run(network()),
        "smallnets fit, bar": lambda: work.by_run(network(), bar=True),
        "plain module": lambda: work.by_module(Plain(network())),
        "usual module": lambda: work.by_module(Usual(network())),
    }
    seconds = alternate(sides, settings.rounds(9))
    note = "a step of a network of 6,506 parameters"
    plain = compare("Classifier", seconds, "Trainer.fit", "by hand", note)
    fast = compare("Classifier, fast mode", seconds, "fast mode", "by hand", note)
    return [
        plain.with_bar("<=", MOST_RAW_STEPS, "steps by hand added", plain.ratio - 1),
        fast.with_bar("<=", MOST_RAW_STEPS_FAST, "steps by hand added", fast.ratio - 1),
        compare("Classifier with Health", seconds, "with Health", "by hand", note),
        compare("a run's folder, logs and pictures", seconds, "smallnets fit", "steps of Trainer.fit", note),
        compare("and a progress bar", seconds, "smallnets fit, bar", "steps of Trainer.fit", note),
        compare("nothing but a loss, Lightning's own cost", seconds, "plain module", "by hand", note),
        compare("a metric updated and two values logged a step", seconds, "usual module", "by hand", note),
    ]
