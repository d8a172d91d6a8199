"""`smallnets bench`: that it runs, what it prints, and that the two sides of a comparison do the same work.

How long anything takes is not tested.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from smallnets.bench import PARTS, startup
from smallnets.bench.adabound import measure as measure_adabound
from smallnets.bench.fit import WIDE
from smallnets.bench.images import Batches, RandomImages
from smallnets.bench.loops import Work, fresh
from smallnets.bench.modules import Plain, Usual
from smallnets.bench.overhead import network
from smallnets.bench.pipeline import CHAINS, PILImages
from smallnets.bench.rows import Bar, Row, with_rate
from smallnets.bench.timing import Settings, alternate, compare, timed
from smallnets.cli import main
from smallnets.data.augment import normalise, parse
from smallnets.errors import RunError, UserError
from smallnets.measure.dispatch import count_dispatched
from smallnets.models import make
from smallnets.training import Classifier
from smallnets.verbs.bench import run

CPU = torch.device("cpu")
FIELDS = {
    "part", "name", "a", "b", "median_a_seconds", "median_b_seconds", "ratio", "ratio_low", "ratio_high", "rounds",
    "note",
}  # fmt: skip
# Of each part: its rows, and their bars as the project states them.
BARS = {
    "pipeline": {
        "crop+flip+normalise": (">=", 30),
        "autoaugment+perspective+crop+flip+normalise": (">=", 12),
    },
    "recipes": dict.fromkeys(["cutout", "erase", "randaugment", "trivialaugment", "mixup", "cutmix"]),
    "fit": {
        "crop+flip, limit": ("<=", 1.06),
        "crop+flip, layout": None,
        "crop+flip, usual": None,
        "autoaugment+perspective+crop+flip, limit": ("<=", 1.08),
        "autoaugment+perspective+crop+flip, usual": None,
    },
    "overhead": {
        "Classifier": ("<=", 1.5),
        "Classifier, fast mode": ("<=", 0.3),
        "Classifier with Health": None,
        "a run's folder, logs and pictures": None,
        "and a progress bar": None,
        "nothing but a loss, Lightning's own cost": None,
        "a metric updated and two values logged a step": None,
    },
    "optimizer": {"SGD": None, "SGD, fused": None, "Adam": None, "Adam, fused": None},
    "adabound": {"against its package": ("<=", 0.6), "against Adam": None, "operations": ("<=", 15)},
    "masks": {"masks": None, "torch.nn.utils.prune": None, "operations": ("==", 1)},
    "quaternion": {
        "64 channels at 32 x 32, batch 128": ("<=", 1.03),
        "64 channels at 32 x 32, batch 32": ("<=", 1.10),
        "256 channels at 8 x 8, batch 128": ("<=", 1.03),
        "256 channels at 8 x 8, batch 32": ("<=", 1.10),
        "512 channels at 4 x 4, batch 128": None,
        "512 channels at 4 x 4, batch 32": None,
        "inference": None,
        "inference, folded": ("<=", 1.02),
    },
    "lottery": {"lenet_300_100": ("<=", 1.03)},
    "startup": {"--help": ("<=", 1.5), "first step": None},
}


# -- the verb ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [pytest.param(p, marks=[pytest.mark.slow] * (p == "startup")) for p in PARTS])
def test_every_part_runs_and_gives_the_stated_fields(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert main(["bench", "--quick", "--json", "--device", "cpu", "--only", part, "--repeats", "1"]) == 0
    assert torch.get_num_threads() == threads
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"machine", "settings", "rows"}
    assert found["settings"] == {"device": "cpu", "threads": 1, "repeats": 1, "quick": True}
    assert {row["part"] for row in found["rows"]} == {part}
    assert [row["name"] for row in found["rows"]] == list(BARS[part])
    for row in found["rows"]:
        bar = row.pop("bar", None)
        assert set(row) == FIELDS
        assert (bar and (bar["relation"], bar["limit"])) == BARS[part][row["name"]]
        if row["median_a_seconds"] is None:
            assert row["name"] == "operations"
            continue
        assert row["rounds"] == 1
        assert row["ratio"] == pytest.approx(row["median_a_seconds"] / row["median_b_seconds"])
        assert row["median_b_seconds"] > 0


def test_startup_without_the_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package has no configs; what a first step costs takes long enough to be among the slow tests."""
    monkeypatch.setattr(startup, "QUICKSTART", Path("nowhere.yaml"))
    (row,) = startup.measure(Settings(CPU, quick=True))
    assert (row.name, row.rounds) == ("--help", 2)
    assert row.bar == Bar("seconds", row.median_a_seconds or 0.0, "<=", 1.5)


def test_a_command_that_fails_is_named() -> None:
    failing = startup._process([sys.executable, "-c", "raise SystemExit('no such thing')"], Settings(CPU, quick=True))
    with pytest.raises(RunError, match="ended with 1: no such thing"):
        failing()


def test_the_machine_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--quick", "--json", "--device=cpu", "--only=adabound"]) == 0
    machine = json.loads(capsys.readouterr().out)["machine"]
    assert {"cpu", "cores", "threads", "load", "device", "gpu", "cuda", "system", "versions"} == set(machine)
    assert machine["threads"] == 1 and machine["cores"] >= 1 and machine["cpu"]
    assert machine["gpu"] is None  # none is used
    assert machine["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "lightning", "torchvision", "torchmetrics", "pillow", "adabound"} <= set(machine["versions"])


def test_the_printed_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--quick", "--device=cpu", "--only", "adabound,adabound", "--repeats=3"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"bench: adabound: {PARTS['adabound']}"]
    lines = out.splitlines()
    assert "1 thread, load" in lines[0] and f"torch {torch.__version__.split('+')[0]}" in lines[0]
    assert "    operations 11, to be <= 15: met" in lines
    assert lines[-1].endswith("of 2 bars met in this run; --quick: the figures mean little")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "piepline"], "there is no part 'piepline'; did you mean pipeline"),
        (["--only", ""], f"allowed: {', '.join(PARTS)}"),
        (["--repeats", "0"], "--repeats is 1 or more, not 0"),
        (["--threads", "-1"], "--threads is 1 or more, not -1"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["pipeline"], "unrecognized arguments: pipeline"),
    ],
)
def test_mistakes_exit_with_2(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(argv)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device=cuda: torch finds no GPU here; allowed: auto, cpu"):
        run(["--device=cuda"])


def test_help_is_light() -> None:
    code = "import sys, smallnets.verbs.bench as b; b.run(['-h']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "autoaugment" not in done.stdout and "startup" in done.stdout


@pytest.mark.gpu
def test_every_part_runs_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--quick", "--json", "--device=cuda"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["gpu"] == torch.cuda.get_device_name(0)
    assert {row["part"] for row in found["rows"]} == set(PARTS)


# -- rows and turns ----------------------------------------------------------------------------------------------------


def test_sides_are_measured_by_turns() -> None:
    order: list[str] = []

    def side(name: str, seconds: list[float]):
        def measure() -> float:
            order.append(name)
            return seconds.pop(0)

        return measure

    found = alternate({"A": side("A", [3.0, 8.0, 10.0]), "B": side("B", [1.0, 2.0, 5.0])}, 3)
    assert "".join(order) == "ABBAAB"
    assert found == {"A": [3.0, 8.0, 10.0], "B": [1.0, 2.0, 5.0]}
    # The rounds' ratios are 3, 4 and 2; the medians' is 8 / 2 = 4.
    row = compare("what", found, "A", "B", "a note")
    assert row == Row("what", "A", "B", 8.0, 2.0, 3.0, 2.5, 3.5, 3, "a note")
    assert "bar" not in row.plain()
    assert row.with_bar(">=", 3).plain()["bar"] == {
        "figure": "ratio", "value": 3.0, "relation": ">=", "limit": 3, "met": True,
    }  # fmt: skip
    assert row.with_bar("<=", 1.5, "added", row.ratio - 1).bar == Bar("added", 2.0, "<=", 1.5)


@pytest.mark.parametrize(
    ("relation", "met"), [("<=", [True, True, False]), (">=", [False, True, True]), ("==", [False, True, False])]
)
def test_a_bar_is_met_at_its_limit(relation, met: list[bool]) -> None:
    assert [Bar("ratio", value, relation, 1.0).met for value in (0.0, 1.0, 1.1)] == met


def test_images_a_second_stand_in_the_note() -> None:
    row = compare("what", {"A": [0.5], "B": [0.25]}, "A", "B", "a batch of 100")
    assert with_rate(row, 100).note == "a batch of 100; images/s: A 200, B 400"
    assert with_rate(row, 100, 1000).note.endswith("; expected on an H200-class GPU: 1,000")


def test_the_wide_network_has_nearly_five_million_parameters() -> None:
    assert sum(p.numel() for p in make("resnet18", channels=WIDE).parameters()) == 4_815_940


def test_timed_gives_the_seconds_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("smallnets.bench.timing.time.perf_counter", lambda: now[0])

    def three_seconds() -> None:
        now[0] += 3

    assert timed(three_seconds, CPU)() == 3.0
    assert timed(three_seconds, CPU, times=4)() == 3.0
    assert now == [115.0]


def test_rounds() -> None:
    assert [s.rounds(9) for s in (Settings(CPU), Settings(CPU, quick=True), Settings(CPU, repeats=5, quick=True))] == [
        9, 2, 5,
    ]  # fmt: skip


# -- both sides do the same work ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chain", CHAINS)
def test_the_loop_by_hand_trains_as_trainer_fit_does(chain: str) -> None:
    """Bitwise: the limit that `fit` is held against leaves nothing out that changes the network."""
    work = Work(CPU, warm=1, steps=3, batch_size=8, augment=CHAINS[chain][0])

    def net() -> nn.Module:
        return fresh(lambda: make("resnet20", blocks=[1, 1, 1], channels=[4, 4, 4]))

    by_hand, by_trainer, untrained = net(), net(), net()
    assert work.by_hand(by_hand) > 0
    assert work.by_trainer(by_trainer) > 0
    start, ours, theirs = untrained.state_dict(), by_trainer.state_dict(), by_hand.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in start)
    weights = [name for name, p in untrained.named_parameters() if p.dim() == 4]
    assert weights and not any(torch.equal(ours[name], start[name]) for name in weights)


def test_all_modules_train_the_tiny_network_alike() -> None:
    work = Work(CPU, warm=1, steps=2, batch_size=16, image_size=8)
    nets = [network() for _ in range(4)]
    assert sum(p.numel() for p in nets[0].parameters()) == 192 * 32 + 32 + 32 * 10 + 10 == 6506
    work.by_hand(nets[0])
    work.by_trainer(nets[1])
    work.by_module(Plain(nets[2]))
    work.by_module(Usual(nets[3]))
    for net in nets[1:]:
        assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), net.parameters(), strict=True))


def test_random_images_are_full_batches_and_the_same_in_both_forms() -> None:
    data = RandomImages(3, 16)
    batches = Batches(CPU, 3, 16)
    assert (data.mean, data.std) == (batches.mean, batches.std)
    ours, by_hand = list(data.train_dataloader()), list(batches.loader())
    assert [len(labels) for _, labels, _ in ours] == [16, 16, 16]
    for (images, labels, place), (same, as_well, there) in zip(ours, by_hand, strict=True):
        assert images.dtype == torch.uint8 and images.shape == (16, 3, 32, 32)
        assert torch.equal(images, same) and torch.equal(labels, as_well) and place == there


def test_the_usual_way_gives_the_same_images_without_augmentation() -> None:
    """PIL, ToTensor and Normalize against `normalise`: one rounding of float32 apart for each of three operations."""
    batches = Batches(CPU, 1, 16)
    pictures = PILImages(batches, [])
    expected: Tensor = normalise(batches.images[torch.from_numpy(batches.indices)], *batches.constants)
    assert len(pictures) == 16
    for index in range(16):
        image, label = pictures[index]
        torch.testing.assert_close(image, expected[index], rtol=0, atol=2e-6)
        assert label == int(batches.labels[batches.indices[index]])


def test_the_chains_of_both_sides_have_the_same_members() -> None:
    names = {"RandomCrop": "crop", "RandomHorizontalFlip": "flip"}
    names |= {"AutoAugment": "autoaugment", "RandomPerspective": "perspective"}
    for name, (specs, make_transforms, _) in CHAINS.items():
        assert [names[type(t).__name__] for t in make_transforms()] == specs == name.split("+")


# -- operations --------------------------------------------------------------------------------------------------------


def test_operations_that_a_step_dispatches() -> None:
    """AdaBound: nine on lists and the profiler's two marks; the package: 16 or more for each of 65 tensors."""
    rows = {row.name: row for row in measure_adabound(Settings(CPU, quick=True, repeats=1))}
    bar = rows["operations"].bar
    assert bar is not None and bar.met
    assert bar.value == 9 + 2
    theirs = int(rows["operations"].note.partition("package ")[2].partition(",")[0])
    assert theirs >= 16 * 65
    assert rows["operations"].ratio == 11 / theirs


@pytest.mark.parametrize("name", ["crop", "flip", "normalise"])
def test_a_batch_is_as_many_operations_as_an_image(name: str) -> None:
    def operations(count: int) -> int:
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        if name == "normalise":
            constants = torch.zeros(3), torch.ones(3)
            return count_dispatched(lambda: normalise(images, *constants))
        (augmentation,) = parse([name])
        return count_dispatched(lambda: augmentation.apply(images, torch.Generator()))

    assert operations(1) == operations(64) <= {"crop": 25, "flip": 10, "normalise": 7}[name]


def test_a_training_step_of_classifier_adds_few_operations() -> None:
    """The sums of an epoch: no more than ten operations beyond network and loss."""
    module = Classifier(network())
    images, labels = torch.rand(16, 3, 8, 8), torch.arange(16) % 10
    needed = count_dispatched(lambda: cross_entropy(module.net(images), labels))
    assert count_dispatched(lambda: module.training_step((images, labels), 0)) - needed <= 10


def test_a_training_step_reads_nothing_back() -> None:
    """On a device whose tensors have no values, reading one raises: a step never waits for it."""
    module = Classifier(network()).to("meta")
    module.train_sums.to(torch.device("meta"))
    images = torch.empty(16, 3, 8, 8, device="meta")
    labels = torch.empty(16, dtype=torch.int64, device="meta")
    loss = module.training_step((images, labels), 0)
    assert loss is not None
    loss.backward()
    module.make_optimizer().step()
    assert module.train_sums.loss.device.type == "meta"
    with pytest.raises(RuntimeError):
        loss.item()
