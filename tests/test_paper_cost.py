"""Every study of a document opens with its commands, what it asks and what it costs: runs, and an estimate of time."""

import json
import re
from functools import lru_cache
from typing import Any

import pytest
import torch
from test_paper_studies import CLASSES, FILES, FOLDER, IMAGES, ROOT, narrowed_by_parameters, planned, resolver

from smallnets.measure import count
from smallnets.models.spec import build
from smallnets.studies.search_space import Search
from smallnets.studies.study import Study

# Measured on one thread of a CPU, validation included: ResNet-20 (40,813,184 MACs), batch 128, 8 epochs of 45,000
# images in 1,191 s of its own time.
RATE, OF_MACS = 300, 40_813_184
TRAIN = {"CIFAR10": 45_000, "CIFAR100": 45_000, "MNIST": 54_000, "ImageNet64": 1_153_050, "Digits": 1_348}
SIDES = {"ImageNet64": 64, "MNIST": 28, "Digits": 8}
# Of networks so small that a step's fixed costs decide: LeNet-300-100 on digits in the fast mode (README's tour) on a
# busy thread. Their operations alone would promise ten times as many.
MOST = 5_000
CAPPED = f", but at most {MOST:,} images/s"
DERIVED = "epochs x images x MACs, at the 300 images/s of ResNet-20 (40,813,184 MACs, batch 128) there"
# ResNet-18 after document 004's pruning, which comes before the first step.
PRUNED_004 = 304_570_904
UNITS = {"hours": 3600, "days": 86_400, "years": 365.25 * 86_400}
SEARCHES = sorted((ROOT / "configs/search").glob("004*.yaml"))


@lru_cache
def macs(spec: str, side: int, channels: int) -> int:
    with torch.device("meta"), narrowed_by_parameters():
        return count(build(json.loads(spec)), side, channels).macs


def thread_seconds(settings: dict[str, Any]) -> float:
    """Of one run, by its settings: what masks and later pruning would save is not counted, as no time is saved."""
    name = settings["data"]["class_path"].rpartition(".")[2]
    given = {"num_classes": CLASSES[name], **IMAGES.get(name, {})}
    spec = settings["model"]["net"]
    spec = {**spec, "init_args": {**spec["init_args"], **given}}
    trainer = {"max_epochs": 100, "callbacks": [], **settings.get("trainer", {})}  # at the default it is not a setting
    at_start = any("ratios" in each["init_args"] for each in trainer["callbacks"])
    each = PRUNED_004 if at_start else macs(json.dumps(spec), SIDES.get(name, 32), given.get("in_channels", 3))
    return trainer["max_epochs"] * TRAIN[name] / min(RATE * OF_MACS / each, MOST)


def told(seconds: float) -> str:
    unit = next((name for name, length in reversed(UNITS.items()) if seconds >= length), "hours")
    number = seconds / UNITS[unit]
    return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"


def header(text: str) -> str:
    """The comment that a file opens with, its cost in one line."""
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#")).replace("\n# ", " ")


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_study_opens_with_its_command_its_cost_and_a_small_form(file):
    text = file.read_text()
    command = f"# smallnets study run configs/studies/{file.parent.name}/{file.name}"
    assert text.splitlines()[:2] == [command, f"{command} --quick"]
    assert all(len(line) <= 120 for line in text.splitlines())
    study, quick = Study.read(file), Study.read(file, quick=True)
    assert study.asks.endswith("?")
    small = len(quick.cells) * len(quick.seeds)
    cost = re.search(r"Cost: (\d+) runs? .* --quick: (\d+) runs? ", header(text))
    assert cost and (int(cost[1]), int(cost[2])) == (len(study.cells) * len(study.seeds), small) and small <= 5
    for cell in quick.cells:
        assert cell.options["trainer.max_epochs"] <= 12 and cell.options["data.train_size"] <= 1000


# Counting thirty networks of up to 152 layers takes some ten seconds.
ESTIMATED = [
    pytest.param(
        f"{file.parent.name}/{file.stem}",
        marks=[pytest.mark.slow] if "_stated" in file.stem or "_read" in file.stem else [],
    )
    for file in FILES
    if file.stem != "digits"
]


@pytest.mark.parametrize("name", ESTIMATED)
def test_an_estimate_is_what_its_derivation_gives(name):
    made = planned(name)
    seconds = len(made.seeds) * sum(thread_seconds(cell.settings) for cell in made.cells)
    derived = DERIVED + CAPPED * ("lenet" in name)
    wanted = f"Estimate, not measured: some {told(seconds)} of one CPU thread ({derived})."
    assert wanted in header((FOLDER / f"{name}.yaml").read_text())


def test_what_is_not_estimated_was_measured():
    """The small study of the digits, in seconds."""
    there = [header(file.read_text()) for file in FILES if "Estimate, not measured" not in header(file.read_text())]
    assert len(there) == 1 and re.search(r"measured: \d+ s", there[0]) and "003/digits" in there[0]


@pytest.mark.parametrize("file", SEARCHES, ids=lambda p: p.stem)
def test_a_search_opens_with_its_command_and_its_cost(file):
    text = file.read_text()
    command = f"# smallnets search configs/search/{file.name}"
    assert text.splitlines()[:2] == [command, f"{command} --quick"]
    made, quick = Search.read(file), Search.read(file, quick=True)
    options = made.draw(lambda d: next(iter(d.choices)) if d.choices else d.low)
    each = thread_seconds(resolver().settings(made.arguments(options)))
    seconds = made.trials * each
    if made.confirm:
        seconds += made.confirm["seeds"] * each * made.confirm["set"]["trainer.max_epochs"] / 25
    assert f"Cost: {made.trials} trials of " in header(text) and f"--quick: {quick.trials} trials of " in header(text)
    assert f"some {told(seconds)} of one CPU thread ({DERIVED})" in header(text)
