"""The documents' tables as studies: each row is there, with its network's exact count and the figure that is stated."""

import re
from pathlib import Path

import pytest
import torch

from smallnets import models
from smallnets.data import MODULES
from smallnets.measure import count
from smallnets.models.spec import build
from smallnets.pruning import prune_channels
from smallnets.pruning.criteria import magnitude
from smallnets.pruning.select import select
from smallnets.studies.plan import make_plan
from smallnets.studies.study import Study
from smallnets.verbs.resolve import FitResolver

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "configs/studies"
FILES = sorted(p for document in ("000", "001", "002", "004") for p in (FOLDER / document).glob("*.yaml"))
CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "Digits": 10}

# Cell -> parameters before any pruning, and the stated figure (the first of the study's metrics that has one) in %.
Row = tuple[int, float | None]


def crossed(sizes: dict[str, int], *figures: float, end: str = "") -> dict[str, Row]:
    """The rows of document 000: three optimizers in its order, each with the figures of the networks."""
    cells = [f"{optimizer},{net}{end}" for optimizer in ("SGDM", "Adam", "AdaBound") for net in sizes]
    return dict(zip(cells, zip([*sizes.values()] * 3, figures, strict=True), strict=True))


RESNETS, RESNETS_100 = {"resnet18": 11_173_962, "resnet18_s": 701_466}, {"resnet18": 11_220_132, "resnet18_s": 713_076}
VITS = {"vit_h4": 9_786_378, "vit_h4_s_published": 840_010, "vit_h4_s": 504_266}
VITS_100 = {"vit_h4": 9_832_548, "vit_h4_s_published": 851_620, "vit_h4_s": 521_636}
VGGS = {
    "vgg16,CIFAR10": 15_245_130, "vgg16,CIFAR100": 15_291_300, "vgg16_s,CIFAR10": 955_098, "vgg16_s,CIFAR100": 966_708,
}  # fmt: skip
R34 = 21_289_802
EXPECTED: dict[str, dict[str, Row]] = {
    "000/cifar10_resnet": crossed(RESNETS, 89.4, 86.85, 89.97, 89.27, 94.13, 91.72),
    "000/cifar100_resnet": crossed(RESNETS_100, 1, 1, 39.04, 43.31, 58, 54.05),
    "000/cifar10_vit": crossed(VITS, 10, 10, 10, 51.49, 50.99, 50.99, 48.38, 49.44, 49.44),
    "000/cifar100_vit": crossed(VITS_100, 1, 3.86, 3.86, 22.97, 23.56, 23.56, 25.05, 21.56, 21.56),
    "000/vgg": {f"{o},{net}": (size, None) for o in ("SGDM", "Adam", "AdaBound") for net, size in VGGS.items()},
    "001/table": {
        "1-densenet121": (6_964_106, 75.8), "2-resnet34": (R34, 73.6), "3-resnet34-once": (R34, 80),
        "3-resnet34-rounds": (R34, 80), "4-resnet34-once": (R34, 78), "4-resnet34-rounds": (R34, 78),
        "5-resnet34-once": (R34, 80), "5-resnet34-rounds": (R34, 80), "6-resnet34": (R34, 87),
        "7-resnet34-share": (R34, 85), "7-resnet34-count": (R34, 85), "8-resnet20": (272_474, 91.27),
        "9-resnet20-share": (272_474, 91.59), "9-resnet20-count": (272_474, 91.59),
        "11-preact_resnet18": (11_171_146, 89.3),
    },
    "002/table5": {
        "1": (4_978_810, 97.12), "1-printed": (4_978_810, 97.12), "2": (4_969_776, 96.4), "3": (4_969_776, 96.18),
        "4-printed": (4_988_256, 95.94), "4-read": (4_988_256, 95.34), "5": (5_326_506, 91), "6": (4_623_178, 89),
        "7-printed": (6_412_362, 90), "7-counted": (11_773_258, 90), "8": (701_466, 79), "9": (4_969_776, 96.82),
    },
    "002/table1_augmentation": {
        "flip-crop": (4_978_810, 93.76), "auto": (4_988_256, 95.34), "auto-alone": (4_978_810, 95.34),
        "auto-perspective": (4_978_810, 97.12),
    },
    "002/table2_blocks": {
        "3333": (4_978_810, 97.12), "3323": (4_969_776, 96.84), "3463": (5_326_506, 91),
        "3323-alone": (4_494_026, 96.84), "3463-alone": (6_613_562, 91), "2222-alone": (3_297_402, 90),
    },
    "002/table3_channels": {
        "128-100-160-200": (4_908_434, 97.12), "128-100-164-200": (4_978_810, 97.12),
        "136-100-188-204-stated": (4_997_074, 91), "136-100-188-204-read": (4_997_074, 96.57),
        "32-64-128-256": (5_326_506, 91), "16-32-64-128": (701_466, 79),
    },
    "002/table4_optimizers": {
        "SGD-cosine": (4_978_810, 97.12), "Adadelta-cosine": (4_978_810, 96.04), "AdamW-cosine": (4_978_810, 96.57),
        "SGD-step": (4_978_810, 92),
    },
    "004/table1_schedules": {
        "cosine": (11_173_962, 91.34), "linear": (11_173_962, 88.5), "step": (11_173_962, 85.65),
        "cyclic": (11_173_962, 90.44), "linear-read": (11_173_962, 88.5), "cyclic-read": (11_173_962, 90.44),
    },
    "004/networks": {
        "pruned": (11_173_962, 93.82), "pruned-decay": (11_173_962, 93.56), "removed": (2_777_674, 91.5),
        "removed-400": (2_777_674, 94.12), "manual": (11_173_962, 86), "manual-pruned": (11_173_962, 86),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def fit() -> FitResolver:
    return FitResolver()


def test_the_tables_of_the_documents_are_all_here():
    assert {str(p.relative_to(FOLDER))[:-5] for p in FILES} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_study_has_the_networks_and_the_figures_of_its_table(name, fit, tmp_path):
    made = make_plan(Study.read(FOLDER / f"{name}.yaml"), tmp_path, fit)
    expected = EXPECTED[name]
    assert [cell.cell for cell in made.cells] == list(expected) and made.seeds == [0, 1, 2]
    for cell in made.cells:
        settings = cell.settings
        spec, data = settings["model"]["net"], settings["data"]["class_path"].rpartition(".")[2]
        assert data in MODULES
        with torch.device("meta"):
            net = build({**spec, "init_args": {**spec["init_args"], "num_classes": CLASSES[data]}})
        parameters, figure = expected[cell.cell]
        assert count(net).parameters == parameters, cell.cell
        stated = made.stated.get(cell.cell, {})
        shares = [stated[m] for m in made.metrics if m in stated]
        assert (shares[0] if shares else None) == (None if figure is None else pytest.approx(figure / 100, abs=1e-9))


@pytest.mark.parametrize("file", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_study_opens_with_its_command_its_cost_and_a_small_form(file):
    head = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    command = f"# smallnets study run configs/studies/{file.parent.name}/{file.name}"
    assert head.splitlines()[:2] == [command, f"{command} --quick"]
    study, quick = Study.read(file), Study.read(file, quick=True)
    runs = len(study.cells) * len(study.seeds)
    small = len(quick.cells) * len(quick.seeds)
    cost = re.search(r"Cost: (\d+) runs .* --quick: (\d+) runs", head.replace("\n# ", " "))
    assert cost and (int(cost[1]), int(cost[2])) == (runs, small) and small <= 5
    for cell in quick.cells:
        assert cell.options["trainer.max_epochs"] <= 12 and cell.options["data.train_size"] <= 1000


def test_document_001s_counts_as_its_study_makes_them():
    """Row 11: kept weights and the 3,392 of BatchNorm. Rows 7 and 9: what the comment says."""
    kept = select(magnitude(models.preact_resnet18()), density=0.8, scope="layer")
    assert sum(int(mask.sum()) for mask in kept.values()) + 3_392 == 8_934_873 + 1
    assert count(prune_channels(models.resnet20(), 0.3, scope="layer", criterion="l2")).parameters == 137_720
    text = (FOLDER / "001/table.yaml").read_text()
    assert "137,720" in text and "13,669,974" in text
