"""What a notebook uses: runs that Python starts, data to look at, pictures to show, rows that are kept in a file."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image

import smallnets as sn
from smallnets.data import Digits, normalise
from smallnets.errors import RunError, UserError
from smallnets.results import read_row, rows

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning", "ignore:.*LeafSpec")


@pytest.fixture
def digits() -> Digits:
    return Digits(image_size=8, in_channels=1, batch_size=40, train_size=200, augment=["flip"])


def module(seed: int = 0) -> Any:
    L.seed_everything(seed, verbose=False)
    net = sn.models.lenet_12(image_size=8)
    return sn.Classifier(net, optimizer=lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9))


def test_rooms_and_names_are_there_without_another_import() -> None:
    assert sn.models.lenet_12 and sn.data.Digits is Digits and sn.UserError is UserError
    assert {"trainer", "Classifier", "predict", "show", "data", "report"} <= set(dir(sn))
    with pytest.raises(AttributeError, match="no attribute 'modles'"):
        _ = sn.modles


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_from_python_leaves_what_a_command_leaves(here: Path, digits: Digits, capsys) -> None:
    it, trainer = module(), sn.trainer("mine", 2, accelerator="cpu")
    trainer.fit(it, digits)
    run = Path(trainer.log_dir)
    assert run == Path("lightning_logs/mine/run-1")
    row = read_row(run)
    assert (row["status"], row["epochs"], row["seed"], row["name"]) == ("finished", 2, 0, "mine")
    assert row["val_accuracy"] is not None and row["test_reads"] == 0
    last = sn.load(run / "checkpoints" / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), it.net.parameters(), strict=True))
    best = sn.predict(sn.load(run / "checkpoints" / "best.ckpt"), digits.batches("val"))
    assert round(best.accuracy, 6) == row["val_accuracy"]
    assert (run / "metrics.csv").is_file() and list(run.glob("events.*"))
    out = capsys.readouterr()
    assert [line.split()[:2] for line in out.out.splitlines()] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert [line for line in out.err.splitlines() if "Health" not in line and "rank_zero_warn" not in line] == []
    assert logging.getLogger("lightning.pytorch").level == logging.WARNING
    assert sn.trainer("mine", 1, accelerator="cpu", lines=False).log_dir == "lightning_logs/mine/run-2"


def test_the_weights_are_those_of_a_plain_trainer(here: Path, digits: Digits) -> None:
    ours, plain = module(), module()
    sn.trainer("mine", 2, accelerator="cpu", lines=False).fit(ours, digits)
    L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    ).fit(plain, Digits(image_size=8, in_channels=1, batch_size=40, train_size=200, augment=["flip"]))  # fmt: skip
    state = plain.net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.net.state_dict().items())


def test_the_test_set_is_read_for_one_checkpoint_and_counted(here: Path, digits: Digits) -> None:
    it, trainer = module(), sn.trainer("mine", 1, accelerator="cpu", lines=False)
    trainer.fit(it, digits)
    with pytest.raises(UserError, match='ckpt_path="best"'):
        trainer.test(it, digits, verbose=False)
    assert read_row(trainer.log_dir)["test_reads"] == 0
    found = trainer.test(it, digits, ckpt_path="best", verbose=False)
    row = read_row(trainer.log_dir)
    assert row["test_reads"] == 1 and row["test_size"] == 299
    assert row["test_accuracy"] == round(found[0]["test/accuracy"], 6)
    trainer.test(it, digits, ckpt_path="best", verbose=False)
    assert read_row(trainer.log_dir)["test_reads"] == 2
    other = sn.save(module(1).net, "other.ckpt")
    checkpoint = torch.load(Path(trainer.log_dir) / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["epoch"] += 1  # another file of the same network
    torch.save(checkpoint, other)
    with pytest.raises(RunError, match="already read for another checkpoint"):
        trainer.test(it, digits, ckpt_path=str(other), verbose=False)
    assert read_row(trainer.log_dir)["test_reads"] == 2


def test_what_a_trainer_refuses(here: Path) -> None:
    with pytest.raises(UserError, match="name is the name of one folder"):
        sn.trainer("a/b", 1)
    with pytest.raises(UserError, match="its own loggers"):
        sn.trainer("a", 1, logger=False)
    (here / "lightning_logs/a/one").mkdir(parents=True)
    (here / "lightning_logs/a/one/file").touch()
    with pytest.raises(UserError, match="a run of that name was begun"):
        sn.trainer("a", 1, run="one")


def test_the_rounds_of_a_lottery_each_have_their_grace(here: Path, digits: Digits) -> None:
    begun: list[int] = []

    class Watch(sn.callbacks.Health):
        def begin_again(self, epoch: int) -> None:
            begun.append(epoch)

    lottery = sn.callbacks.LotteryTicket(rounds=2, epochs_per_round=1, fraction=0.5)
    sn.trainer("lottery", 3, callbacks=[lottery], health=Watch(), accelerator="cpu", lines=False).fit(module(), digits)
    assert begun == [1, 2]


def test_a_loaded_network_is_trained_in_training_mode_and_frozen_parts_stay_frozen(tmp_path: Path) -> None:
    net = sn.models.resnet20(channels=[4, 8, 8], blocks=[1, 1, 1])
    loaded = sn.load(sn.save(net, tmp_path / "net.ckpt"))
    assert not loaded.training
    assert all(part.training for part in sn.Classifier(loaded).net.modules())
    net.train()
    frozen = next(part for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)).eval()
    assert not frozen.training and sn.Classifier(net).net.training and not frozen.training


# -- data ------------------------------------------------------------------------------------------------------------


def test_batches_are_a_split_in_its_order_normalised_and_never_augmented(digits: Digits) -> None:
    for split in ("train", "val"):
        found = list(digits.batches(split))
        assert torch.equal(torch.cat([labels for _, labels in found]), digits.labels(split))
        indices = digits._parts.train_indices if split == "train" else digits._parts.val_indices
        expected = normalise(digits._parts.train.images[indices], digits.mean, digits.std)
        assert torch.equal(torch.cat([images for images, _ in found]), expected)
    with pytest.raises(UserError, match="read by `test` alone"):
        next(digits.batches("test"))


def test_pixels_are_the_images_before_they_were_normalised(digits: Digits) -> None:
    images, _ = next(digits.batches("val"))
    before = digits._parts.train.images[digits._parts.val_indices].float() / 255
    torch.testing.assert_close(digits.pixels(images), before, atol=1e-6, rtol=0)


def test_augmented_images_are_those_of_the_epochs_first_batch(digits: Digits) -> None:
    images, labels = digits.augmented(40, epoch=3)
    loader = digits.train_dataloader()
    loader.set_epoch(3)
    expected, known = digits.on_after_batch_transfer(next(iter(loader)), 0)
    assert torch.equal(images, digits.pixels(expected)) and torch.equal(labels, known)
    assert not torch.equal(images, digits.augmented(40, epoch=4)[0])
    with pytest.raises(UserError, match="1 to 200, not 201"):
        digits.augmented(201)


# -- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_is_shown_as_the_png_of_its_pixels() -> None:
    picture = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    shown = sn.show(picture)
    image = Image.open(io.BytesIO(shown._repr_png_()))
    assert image.format == "PNG" and image.size == (4, 2)
    assert [image.getpixel((x, y)) for y in range(2) for x in range(4)] == list(
        zip(*picture.flatten(1).tolist(), strict=True)
    )
    assert repr(shown) == f"<a picture of {len(shown.png):,} bytes>"


def test_a_chart_is_shown_with_its_colours() -> None:
    alt = pytest.importorskip("altair")
    pd = pytest.importorskip("pandas")
    chart = alt.Chart(pd.DataFrame({"a": [0, 1]})).mark_point().encode(x="a:Q").properties(width=100, height=50)
    small, large = (Image.open(io.BytesIO(sn.show(chart, scale)._repr_png_())) for scale in (1, 2))
    assert large.width in (2 * small.width - 1, 2 * small.width) and small.width >= 100
    assert small.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UserError, match="got int"):
        sn.show(3)
    with pytest.raises(UserError, match=r"got \(2, 3, 4, 4\)"):
        sn.show(torch.zeros(2, 3, 4, 4))


# -- rows in a file --------------------------------------------------------------------------------------------------


def test_rows_of_a_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "study" / "rows.jsonl"
    path.parent.mkdir()
    ticket = {"cell": "ticket", "seed": 3, "status": "finished", "val_accuracy": 0.5, "rounds": [{"round": 0}]}
    control = {"cell": "random_mask", "seed": 3, "status": "finished", "rounds": [{"round": 1, "from_round": "a/b"}]}
    path.write_text("\n".join([json.dumps(ticket), "{}", json.dumps(control), '{"cell"']) + "\n")
    problems: list[str] = []
    first, second = rows(path, on_problem=problems.append)
    assert (first["cell"], first["seed"], first["val_accuracy"], first["name"]) == ("ticket", 3, 0.5, "study")
    assert first["parameters"] is None and first["folder"] == f"{path}:1"
    assert first["pruning"] == [{"callback": "LotteryTicket", "rounds": [{"round": 0}]}]
    assert second["pruning"][0]["callback"] == "LotteryControl" and second["pruning"][0]["control"] == "random_mask"
    assert [problem.split(",")[1].strip() for problem in problems] == ["line 2", "line 4"]


def test_kept_rows_give_the_kept_verdict() -> None:
    pytest.importorskip("scipy")
    import csv

    from smallnets.report.collect import collect
    from smallnets.report.lottery import lotteries
    from smallnets.report.verdict import verdict

    folder = Path(__file__).parents[1] / "results" / "lottery_digits"
    found, left_out = lotteries(collect([folder / "rows.jsonl"]))
    assert len(found) == 1 and left_out == []
    with (folder / "verdict.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    lines = verdict(found[0].points).records()
    names = ("series", "judgement")
    assert [[line[name] for name in names] for line in lines] == [[line[name] for name in names] for line in kept]
    assert [round(line["mean"], 9) for line in lines] == [round(float(line["mean"]), 9) for line in kept]
