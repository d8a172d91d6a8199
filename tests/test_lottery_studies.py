"""Lottery studies: every cell's `max_epochs` is what its callback demands; headers tell the command and the cost."""

import math
import re
from pathlib import Path
from typing import get_args

import pytest
from test_configs import TRAIN_IMAGES

from smallnets.callbacks.lottery_kinds import AS_LONG, OF_ONE_ROUND, Control, epochs_of
from smallnets.pruning.lottery import LotteryPlan
from smallnets.studies.plan import arguments
from smallnets.studies.study import Study
from smallnets.verbs.resolve import FitResolver

FOLDER = Path(__file__).parent.parent / "configs/studies/lottery"
FILES = sorted(FOLDER.glob("*.yaml"))
PLAN = ("fraction", "scope", "rewind_to", "rewind", "head_rate_half", "criterion", "unit", "floor")


@pytest.fixture(scope="module")
def fit():
    return FitResolver()


def steps_of(settings):
    about, trainer = settings["data"], settings["trainer"]
    images = TRAIN_IMAGES[about["class_path"].rpartition(".")[2]]
    images = about["init_args"].get("train_size") or images
    steps = math.ceil(images / about["init_args"].get("batch_size", 128))
    return min(steps, trainer.get("limit_train_batches") or steps)


def lottery_of(settings):
    """The one callback of the two kinds: its class and arguments."""
    (found,) = [c for c in settings["trainer"]["callbacks"] if "Lottery" in c["class_path"]]
    return found["class_path"].rpartition(".")[2], found["init_args"]


def plan_of(options):
    given = {name: options[name] for name in PLAN if options.get(name) is not None}
    densities = options.get("densities")
    if densities:
        given["densities"] = tuple(densities)
    return LotteryPlan(options["rounds"], options["epochs_per_round"], **given)


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_the_epochs_of_every_cell_are_those_of_its_rounds(file, quick, fit):
    study = Study.read(file, quick)
    every = {cell.name: (cell, fit.settings(arguments(study, cell))) for cell in study.cells}
    lotteries = controls = 0
    for name, (cell, settings) in every.items():
        if "Lottery" not in str(settings["trainer"].get("callbacks")):
            continue  # a plain training
        kind, options = lottery_of(settings)
        steps, epochs = steps_of(settings), settings["trainer"]["max_epochs"]
        rounds = options.get("from_round") or []
        rounds = [rounds] if isinstance(rounds, str) else rounds
        found = [re.fullmatch(r"\{([\w.-]+)\}/checkpoints/round-(\d+)\.ckpt", each) for each in rounds]
        numbers = [int(match[2]) for match in found]
        origins = {cell.needs[match[1]] for match in found}
        origin = plan_of(lottery_of(every[origins.pop()][1])[1]) if origins else None
        if kind == "LotteryTicket":
            lotteries += 1
            plan = plan_of(options)
            expected = plan.epochs_in_all(steps) - (plan.epochs if origin else 0)
            if origin:
                assert (numbers, plan.epochs, plan.rewind_to) == ([0], origin.epochs, origin.rewind_to), name
        else:
            controls += 1
            control = options.get("control", "ticket")
            assert max(numbers) <= origin.rounds and (len(numbers) == 1 or control not in OF_ONE_ROUND), name
            expected = epochs_of(control, origin, numbers[0], steps) * len(numbers)
        assert epochs == expected, name
        spanned = epochs if options.get("control") in AS_LONG else (origin or plan_of(options)).epochs
        milestones = (settings["model"].get("scheduler") or {}).get("init_args", {}).get("milestones", [])
        assert all(each < spanned for each in milestones), f"{name}: a rate that never falls"
    assert (lotteries and (controls or file.stem in ("digits_children", "resnet20_short"))) or quick


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_a_header_tells_the_command_and_what_it_costs(file):
    text = file.read_text()
    assert text.startswith(f"# smallnets study run configs/studies/lottery/{file.name}")
    assert "# Cost: " in text and re.search(r"Measured: |Not measured|once a core|processes", text)
    runs = re.search(r"Cost: (\d+) runs", text)
    study = Study.read(file)
    assert runs is None or int(runs[1]) == len(study.cells) * len(study.seeds)


def test_the_study_of_controls_has_all_of_them():
    study = Study.read(FOLDER / "digits_controls.yaml")
    controls = {cell.options.get("trainer.callbacks.control") for cell in study.cells} - {None}
    assert controls == set(get_args(Control)) - {"ticket"} and len(study.seeds) >= 5
    rewinds = {cell.options.get("trainer.callbacks.rewind") for cell in study.cells}
    assert {"rate", "none"} <= rewinds
