"""The small forms of the documents' studies and searches, run to their rows, in this process.

By default one or two cells of a study of each document, as `--quick` has them but for fewer images; with `-m slow`
every study and search under configs/, with all its cells. The sets that have to be downloaded are random images.
"""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_paper_studies import FOLDER, ROOT, resolver

from smallnets import data
from smallnets.cli import main
from smallnets.data.arrays import Arrays, Part
from smallnets.data.source import Source
from smallnets.results import rows
from smallnets.studies.plan import make_plan
from smallnets.studies.study import Study

pytestmark = pytest.mark.filterwarnings(
    "default::smallnets.callbacks.HealthWarning",
    "ignore:You have set log_momentum=True",  # Adadelta has none; the monitor of rates says so
)


class Noise(Source):
    """So many random images of each class in the training part, and a sixth as many in the test part."""

    def __init__(self, module: data.ImageData, images: int) -> None:
        self.classes, self.each = module.num_classes, -(-images // module.num_classes)
        self.shape = (module.in_channels, module.image_size, module.image_size)

    def read(self, part: Part) -> Arrays:
        labels = torch.arange(self.classes).repeat(self.each if part == "train" else max(1, self.each // 6))
        generator = torch.Generator().manual_seed(len(labels))
        images = torch.randint(256, (len(labels), *self.shape), dtype=torch.uint8, generator=generator)
        return Arrays(images, labels, [str(i) for i in range(self.classes)])


@pytest.fixture
def noise(here: Path, monkeypatch: pytest.MonkeyPatch):
    """`noise(1200)`: the sets that have to be downloaded have so many random images."""

    def of(images: int) -> None:
        for cls in (data.CIFAR10, data.CIFAR100, data.MNIST, data.ImageNet64):
            monkeypatch.setattr(cls, "make_source", lambda self: Noise(self, images))

    return of


def run_in_process(study: Study, folder: Path) -> None:
    """Every run of a study by its own command lines; each has a row with all of the study's figures."""
    made = make_plan(study, Path(), resolver())
    made.write()
    for line in made.commands():
        words = shlex.split(line)
        assert words[0] == "smallnets"
        assert main(words[1:]) == 0, line
    found = rows(folder / "lightning_logs" / study.name)
    assert {(row["cell"], row["seed"]) for row in found} == {(c.name, s) for c in study.cells for s in study.seeds}
    for row in found:
        assert row["status"] == "finished" and row["test_reads"] == int(study.test)
        assert all(row[metric] is not None for metric in study.metrics), row["cell"]


# Study, cells, and what is less than in the small form.
LESS = [
    ("000/cifar10_resnet", ["SGDM,resnet18_s", "AdaBound,resnet18_s"], {"data.train_size": 32}),
    ("001/table", ["9-resnet20-share"], {"data.train_size": 40}),
    ("002/table5", ["8"], {}),
    ("003/digits", ["real", "quaternion"], {}),
    ("003/imagenet64_stated", ["quaternion"], {"data.train_size": 100}),
    ("004/table1_schedules", ["step", "cyclic"], {"data.train_size": 128}),
]


@pytest.mark.parametrize(("name", "cells", "less"), LESS, ids=[name for name, _, _ in LESS])
def test_a_small_form_runs_to_its_rows(name, cells, less, here, noise):
    noise(200)
    quick = Study.read(FOLDER / f"{name}.yaml", quick=True)
    kept = [replace(c, options={**c.options, **less}) for c in quick.cells if c.name in cells]
    assert [cell.name for cell in kept] == cells
    run_in_process(replace(quick, cells=kept), here)


ALL = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("file", ALL, ids=lambda p: str(p.relative_to(FOLDER))[:-5])
def test_every_small_form_runs_to_its_rows(file, here, noise):
    noise(1_200)
    run_in_process(Study.read(file, quick=True), here)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "configs/search").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_small_search_runs(file, here, noise, capsys):
    noise(1_200)
    assert main(["search", str(file), "--quick"]) == 0
    capsys.readouterr()
    assert main(["search", "show", str(file), "--quick"]) == 0
    assert "val_accuracy" in capsys.readouterr().out
