"""The documents' tables as studies: each row is there, with its network's exact count and the figure that is stated."""

import csv
import json
import math
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paper_facts import IDS, ROWS
from test_configs import Noise

from smallnets import data, models
from smallnets.cli import main
from smallnets.data import MODULES
from smallnets.measure import Budget, count
from smallnets.measure.micronet import course_score
from smallnets.models.spec import build
from smallnets.optim.schedules import with_warmup
from smallnets.pruning import prune_channels, prune_to
from smallnets.pruning.criteria import magnitude
from smallnets.pruning.curves import METHODS
from smallnets.pruning.select import select
from smallnets.report.forms import form_of
from smallnets.report.one_shot import STATED
from smallnets.results.save import save
from smallnets.studies.plan import Plan, arguments, make_plan
from smallnets.studies.study import Study
from smallnets.verbs.curves import FRACTIONS
from smallnets.verbs.resolve import FitResolver

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "configs/studies"
FILES = sorted(p for document in ("000", "001", "002", "003", "004") for p in (FOLDER / document).glob("*.yaml"))
CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "Digits": 10, "MNIST": 10, "ImageNet64": 1000}
# Images that are not those for which networks are built by default.
IMAGES = {"MNIST": {"in_channels": 1, "image_size": 28}, "Digits": {"in_channels": 1, "image_size": 8}}

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


def beside(sizes: dict[str, tuple[int, int, int]], figures: dict[str, tuple[float, float]]) -> dict[str, Row]:
    """The rows of document 003: of each network the real one, its quaternion form and a real one of that size."""
    rows: dict[str, Row] = {}
    for net, counts in sizes.items():
        stated = (*figures.get(net, (None, None)), None)
        forms = zip(("real", "quaternion", "narrow"), counts, stated, strict=True)
        rows |= {f"{net}-{form}": (parameters, figure) for form, parameters, figure in forms}
    return rows


# Real, quaternion, narrow; the last points of the real and the quaternion curve.
CIFAR100_003 = beside(
    {
        "resnet18": (11_220_708, 2_812_452, 2_787_783),
        "resnet34": (21_328_868, 5_345_060, 5_283_383),
        "resnet50": (23_705_828, 5_966_372, 5_917_135),
        "resnet101": (42_697_956, 10_753_572, 10_752_676),
        "resnet152": (58_341_604, 14_699_044, 14_675_108),
    },
    {"resnet18": (13.58, 10.85), "resnet34": (15.54, 11.54), "resnet50": (1, 1), "resnet101": (1, 1),
     "resnet152": (1, 1)},
)  # fmt: skip
IMAGENET64_003 = beside(
    {
        "resnet18": (11_682_408, 2_928_552, 2_913_775),
        "resnet34": (21_790_568, 5_461_160, 5_435_262),
        "resnet50": (25_549_928, 6_428_072, 6_415_198),
        "resnet101": (44_542_056, 11_215_272, 11_182_408),
        "resnet152": (60_185_704, 15_160_744, 15_158_957),
    },
    {"resnet18": (3.79, 1.82), "resnet34": (0.1, 2.96), "resnet50": (0.1, 0.21), "resnet152": (0.1, 0.1)},
)  # fmt: skip
EXPECTED: dict[str, dict[str, Row]] = {
    "003/cifar100_stated": CIFAR100_003,
    "003/cifar100_read": CIFAR100_003,
    "003/imagenet64_stated": IMAGENET64_003,
    "003/imagenet64_read": IMAGENET64_003,
    "003/earlier_cifar10": {
        "conv2-real": (4_301_642, None),
        "conv2-gray": (4_302_218, None),
        "conv2-quaternion": (1_077_962, None),
        "conv2-narrow": (1_076_938, None),
        "conv4-real": (2_425_930, None),
        "conv4-gray": (2_426_506, None),
        "conv4-quaternion": (609_226, None),
        "conv4-narrow": (608_074, None),
        "conv6-real": (2_262_602, None),
        "conv6-gray": (2_263_178, None),
        "conv6-quaternion": (568_778, None),
        "conv6-narrow": (567_370, None),
    },
    "003/earlier_cifar100": {
        "conv2-real": (4_324_772, None),
        "conv2-gray": (4_325_348, None),
        "conv2-quaternion": (1_101_092, None),
        "conv2-narrow": (1_097_099, None),
        "conv4-real": (2_449_060, None),
        "conv4-gray": (2_449_636, None),
        "conv4-quaternion": (632_356, None),
        "conv4-narrow": (624_139, None),
        "conv6-real": (2_285_732, None),
        "conv6-gray": (2_286_308, None),
        "conv6-quaternion": (591_908, None),
        "conv6-narrow": (586_342, None),
    },
    "003/earlier_lenet": beside({"lenet_300_100": (266_610, 67_710, 67_703), "lenet_12": (9_550, 2_494, 2_395)}, {}),
    "003/digits": {"real": (50_610, None), "quaternion": (13_710, None), "narrow": (13_605, None)},
    "000/cifar10_resnet": crossed(RESNETS, 89.4, 86.85, 89.97, 89.27, 94.13, 91.72),
    "000/cifar100_resnet": crossed(RESNETS_100, 1, 1, 39.04, 43.31, 58, 54.05),
    "000/cifar10_vit": crossed(VITS, 10, 10, 10, 51.49, 50.99, 50.99, 48.38, 49.44, 49.44),
    "000/cifar100_vit": crossed(VITS_100, 1, 3.86, 3.86, 22.97, 23.56, 23.56, 25.05, 21.56, 21.56),
    "000/one_shot": {"200": (11_173_962, 95.0), "50": (11_173_962, 85.78)},
    "000/vgg": {f"{o},{net}": (size, None) for o in ("SGDM", "Adam", "AdaBound") for net, size in VGGS.items()},
    "001/table": {
        "1-densenet121": (6_964_106, 75.8), "1-densenet121-printed": (7_978_856, 75.8),
        "2-resnet34": (R34, 73.6), "3-resnet34-once": (R34, 80),
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
        "138-100-204-190-figure": (4_969_776, 95.94),
        "32-64-128-256": (5_326_506, 91), "16-32-64-128": (701_466, 79),
    },
    "002/table4_optimizers": {
        "SGD-cosine": (4_978_810, 97.12), "Adadelta-cosine": (4_978_810, 96.04), "AdamW-cosine": (4_978_810, 96.57),
        "AdamW-cosine-read": (4_997_074, 96.57),
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


NAMES = list(EXPECTED)
FORMS = ("real", "gray", "quaternion", "narrow")
SEEDS = {"003/earlier_lenet": 5, "003/earlier_cifar10": 5, "003/earlier_cifar100": 5, "003/digits": 2}


@contextmanager
def narrowed_by_parameters() -> Iterator[None]:
    """A narrow network is built without counting the MACs of each width on the way."""
    with pytest.MonkeyPatch.context() as patch:
        counted = lambda net, *_: SimpleNamespace(parameters=size(net))  # noqa: E731
        patch.setattr(import_module("smallnets.pruning.narrow"), "count", counted)
        yield


@lru_cache
def parameters_of(spec: str) -> int:
    """Of a network by its spec as JSON."""
    with torch.device("meta"), narrowed_by_parameters():
        return size(build(json.loads(spec)))


def size(net: torch.nn.Module) -> int:
    return sum(each.numel() for each in net.parameters())


@lru_cache
def resolver() -> FitResolver:
    return FitResolver()


@lru_cache
def planned(name: str) -> Plan:
    """The plan of a study; its folder is never made."""
    return make_plan(Study.read(FOLDER / f"{name}.yaml"), Path("nowhere"), resolver())


def test_the_tables_of_the_documents_are_all_here():
    """Every row of them has its cells, or its command; a study that makes no row is the small one of the digits."""
    assert {str(p.relative_to(FOLDER))[:-5] for p in FILES} == set(EXPECTED)
    assert list(ROWS) == IDS and len(IDS) == 26 + 12 + (9 + 3 + 4 + 4 + 4) + 3 + (3 + 4 + 1)
    for row, places in ROWS.items():
        for file, cells in places:
            if row == "004-O":
                assert (ROOT / f"configs/search/{file}.yaml").is_file()
                continue
            path = FOLDER / f"{file}.yaml"
            names = {cell.name for cell in Study.read(path).cells}
            commands = [line[2:] for line in path.read_text().splitlines() if line.startswith("# smallnets ")]
            for cell in cells:
                found = any(each.startswith(f"{cell} lightning_logs/") for each in commands)
                assert cell in names or found, f"{row}: {file} has no {cell}"
    assert set(EXPECTED) - {file for places in ROWS.values() for file, _ in places} == {"003/digits"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_study_has_the_networks_and_the_figures_of_its_table(name):
    made = planned(name)
    expected = EXPECTED[name]
    assert [cell.cell for cell in made.cells] == list(expected)
    assert made.seeds == list(range(SEEDS.get(name, 3)))
    for cell in made.cells:
        settings = cell.settings
        spec, name_of_data = settings["model"]["net"], settings["data"]["class_path"].rpartition(".")[2]
        assert name_of_data in MODULES
        given = {"num_classes": CLASSES[name_of_data], **IMAGES.get(name_of_data, {})}
        parameters, figure = expected[cell.cell]
        assert parameters_of(json.dumps({**spec, "init_args": {**spec["init_args"], **given}})) == parameters, cell.cell
        stated = made.stated.get(cell.cell, {})
        shares = [stated[m] for m in made.metrics if m in stated]
        assert (shares[0] if shares else None) == (None if figure is None else pytest.approx(figure / 100, abs=1e-9))


LOTTERIES = [file for file in FILES if file.parent.name == "003"]


@pytest.mark.parametrize("file", LOTTERIES, ids=lambda p: p.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_a_lotterys_epochs_are_those_of_its_rounds(file, quick, tmp_path):
    made = make_plan(Study.read(file, True), tmp_path, resolver()) if quick else planned(f"003/{file.stem}")
    for cell in made.cells:
        (lottery,) = [c["init_args"] for c in cell.settings["trainer"]["callbacks"] if "LotteryTicket" in str(c)]
        epochs = lottery["epochs_per_round"] * (1 + lottery["rounds"])
        assert cell.settings["trainer"]["max_epochs"] == epochs, cell.cell


def test_the_rates_of_document_003s_code():
    """A warm-up of ten batches and a cosine of period 220, by the batch; no rate of 0.1 for long."""
    study = Study.read(FOLDER / "003/cifar100_read.yaml")
    options = study.cells[0].options
    assert (options["model.interval"], options["model.warmup"], options["model.scheduler.T_max"]) == ("step", 10, 110)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    schedule = with_warmup(optimizer, lambda by: torch.optim.lr_scheduler.CosineAnnealingLR(by, T_max=110), 10)
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.1 * (k + 1) / 10 if k < 10 else 0.05 * (1 + math.cos(math.pi * (k - 10) / 110)) for k in range(1000)]
    assert rates[10:] == pytest.approx(expected[10:], abs=1e-6)
    assert max(rates[:10]) <= 0.1 and rates[0] < 0.05


# The sets that have to be downloaded are random images; one step of training and one of validation are taken.
STEP = (
    "--data.train_size=null", "--data.batch_size=2", "--data.eval_batch_size=4", "--trainer.fast_dev_run=1",
    "--trainer.accelerator=cpu", "--look.graph=false",
)  # fmt: skip


@pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning", "ignore:You have set log_momentum=True")
@pytest.mark.parametrize(
    "file", [p for p in FILES if p.parent.name != "003"], ids=lambda p: f"{p.parent.name}/{p.stem}"
)  # 003's are lotteries, whose rounds are more than a step
def test_every_cell_of_the_small_form_takes_a_step(file, here, monkeypatch, capsys):
    for cls in (data.CIFAR10, data.CIFAR100):
        monkeypatch.setattr(cls, "make_source", noise)
    small = Study.read(file, quick=True)
    for cell in small.cells:
        assert not cell.needs, "a cell that needs another's run has none here"
        assert main(["fit", *arguments(small, cell), *STEP]) == 0, f"{cell.name}\n{capsys.readouterr().err}"


def noise(self: data.ImageData) -> Noise:
    return Noise(self.num_classes, self.in_channels, self.image_size)


def test_document_001s_counts_as_its_study_makes_them():
    """Row 11: kept weights and the 3,392 of BatchNorm. Rows 7 and 9: what the comment says."""
    kept = select(magnitude(models.preact_resnet18()), density=0.8, scope="layer")
    assert sum(int(mask.sum()) for mask in kept.values()) + 3_392 == 8_934_873 + 1
    assert count(prune_channels(models.resnet20(), 0.3, scope="layer", criterion="l2")).parameters == 137_720
    text = (FOLDER / "001/table.yaml").read_text()
    assert "137,720" in text and "13,669,974" in text


def test_document_000s_curves_are_stated_in_its_study_and_drawn():
    """Row 26: the header's numbers are the figure's, and those of the network of 50 epochs stand beside them."""
    lines = [line[4:] for line in (FOLDER / "000/one_shot.yaml").read_text().splitlines() if line.startswith("#   ")]
    text = re.sub(r"\n {6,}", " ", "\n".join(lines))
    found = {}
    for line in text.splitlines():
        epochs, method, rest = line.split(maxsplit=2)
        pairs = [each.split() for each in rest.split(",")]
        found[epochs, method] = {float(share): float(accuracy) for share, accuracy in pairs}
    assert {method: points for (epochs, method), points in found.items() if epochs == "200"} == STATED
    assert [len(points) for points in STATED.values()] == [14, 14, 16]
    assert {method: points for (epochs, method), points in found.items() if epochs == "50"} == {
        "layer": {0: 85.78, 0.7: 77.85, 0.8: 56.92, 0.9: 15.36},
        "global": {0: 85.78, 0.75: 85.02, 0.8: 84.37, 0.85: 82.78, 0.9: 76.62, 0.95: 30.24},
        "inputs": {0: 85.78, 0.1: 85.02, 0.2: 55.47},
    }
    assert all(method in METHODS for _, method in found) and len(FRACTIONS) == 21


def test_rows_10_and_12_of_document_001_are_commands_and_give_what_the_header_says(here, capsys):
    """Half precision keeps every shape; the score of row 9's network, of the stated inputs, and of the share 0.2."""
    text = (FOLDER / "001/table.yaml").read_text()
    commands = [shlex.split(line[12:]) for line in text.splitlines() if line.startswith("# smallnets ")]
    export, score = (next(words for words in commands if words[0] == verb) for verb in ("export", "score"))
    dense = models.resnet20()
    for name, parameter in dense.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.ones_(parameter)  # as training leaves them: none is 0
    save(dense.eval(), here / "dense.ckpt", about={"image_size": 32, "in_channels": 3})
    assert main(["export", "dense.ckpt", *export[2:], "--calls=0"]) == 0
    assert (here / "fp16.onnx").stat().st_size < 600_000
    pruned = prune_to(dense, Budget(parameters=198_309), scope="layer", criterion="l2")
    save(pruned, here / "pruned.ckpt", about={"image_size": 32, "in_channels": 3})
    capsys.readouterr()
    found = {}
    for name in ("dense", "pruned"):
        assert main([score[0], f"{name}.ckpt", "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    said = [f"{found['pruned']['parameters']:,}", f"{found['pruned']['macs']:,} MACs"]
    said += [f"{found[name]['course']['published']:.4f}" for name in ("pruned", "dense")]
    said += [f"{found['dense']['forms'][form]:,}" for form in ("fp16", "fp32")]
    said += [f"{course_score(share, 0, 32, 32, 198_309, 29_055_103):.4f}" for share in (0.3, 0.2)]
    assert said[-2:] == ["0.0493", "0.0563"]
    assert not [each for each in said if each not in text]
    assert "1x57600 and 65536x10" in text


def test_the_headline_of_the_earlier_paper_stands_at_its_networks():
    """Conv-4 with 3 % of the weights: about 75 % against 62 %, under the names that the report gives the lines."""
    with (FOLDER / "003/stated_earlier.csv").open() as file:
        points = list(csv.DictReader(file))
    assert points == [
        {"series": "conv4 conv4-real", "remaining": "0.03", "accuracy": "0.62"},
        {"series": "conv4 quaternion", "remaining": "0.03", "accuracy": "0.75"},
    ]
    cells = {cell.cell: cell for cell in planned("003/earlier_cifar10").cells}
    forms = {name: form_of({"data": "CIFAR10", "config": cells[f"conv4-{name}"].settings}) for name in FORMS}
    assert {name: (form.name, form.kind) for name, form in forms.items() if form} == {
        # Two lines of one kind go by their cells' names.
        "real": ("conv4", "real"), "gray": ("conv4", "real"), "quaternion": ("conv4", "quaternion"),
        "narrow": ("conv4", "narrow"),
    }  # fmt: skip
    assert len({form.shape for form in forms.values() if form}) == 1
    assert "--stated configs/studies/003/stated_earlier.csv" in (FOLDER / "003/earlier_cifar10.yaml").read_text()
