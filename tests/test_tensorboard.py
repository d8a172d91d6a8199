"""What one finds in TensorBoard, read back from the event files."""

import io
import re
import warnings

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from test_interruption import checkpoint, equal, process
from torch import nn

import smallnets
from smallnets.callbacks import TensorBoardLook, TensorBoardTest
from smallnets.callbacks.layer_bars import GONE, KEPT, ROW, layer_bars
from smallnets.callbacks.look import Rates, _write_graph
from smallnets.callbacks.look_test import Seen, captions
from smallnets.cli import main
from smallnets.data import Digits
from smallnets.errors import UserError
from smallnets.pruning import Masks
from smallnets.results import read_row
from smallnets.results.pictures import captioned, confusion_picture
from smallnets.results.predictions import Predictions
from smallnets.training import Classifier
from smallnets.training.norms import gradient_norms, norms, weight_norms

pytestmark = [
    pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def picture(events, tag):
    encoded = events.Images(tag)[-1].encoded_image_string
    return torch.from_numpy(np.array(Image.open(io.BytesIO(encoded)))).permute(2, 0, 1)


def scalars(events, tag):
    return [(each.step, round(each.value, 6)) for each in events.Scalars(tag)]


def test_curves_rate_images_graph_speed_and_hyperparameters(here, tiny):
    command = [a for a in tiny("fit", "--name=one", "--data.augment=[flip]") if not a.startswith("--look.graph")]
    halved = ["--model.scheduler=StepLR", "--model.scheduler.step_size=1", "--model.scheduler.gamma=0.5"]
    assert main([*command, *halved]) == 0
    folder = here / "lightning_logs/one/run-1"
    events, row = read(folder), read_row(folder)
    tags = events.Tags()
    curves = {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr-SGD", "lr-SGD-momentum"}
    assert curves <= set(tags["scalars"])
    assert tags["images"] == ["train/images"]
    assert tags["graph"]
    assert scalars(events, "lr-SGD") == [(0, 0.02), (5, 0.01)]
    assert scalars(events, "lr-SGD-momentum") == [(0, 0.9), (5, 0.9)]
    assert [e.step for e in events.Scalars("val/accuracy")] == [4, 9]
    assert [e.step for e in events.Scalars("speed/images_per_second")] == [4, 9]
    assert min(e.value for e in events.Scalars("speed/images_per_second")) > 0
    for name in ("val_accuracy", "val_accuracy_last", "val_loss_last", "train_loss_last", "parameters", "macs"):
        assert scalars(events, f"final/{name}") == [(9, pytest.approx(row[name], abs=1e-6))]
    found = events.PluginTagToContent("hparams")
    start = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["model.net.hidden_widths"].string_value == "[12]"
    assert start.hparams["model.optimizer.lr"].number_value == 0.02
    plan = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/experiment"]).experiment
    columns = {metric.name.tag for metric in plan.metric_infos}
    assert {"final/val_accuracy", "final/nonzero_parameters", "test/accuracy"} <= columns


def test_custom_scalars_draw_the_parts_into_one_chart(here, tiny):
    assert main(tiny("fit", "--name=one", "--look.norms_every=5")) == 0
    events = read(here / "lightning_logs/one/run-1")
    (config,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    charts = {(group.title, each.title): each.multiline.tag for group in layout.category for each in group.chart}
    known = [*events.Tags()["scalars"], "test/loss", "test/accuracy"]
    # As the plugin does it: a regular expression from the start of the tag.
    drawn = {chart: {tag for tag in known for each in tags if re.match(each, tag)} for chart, tags in charts.items()}
    assert drawn["curves", "loss"] == {"train/loss", "val/loss", "test/loss"}
    assert drawn["curves", "accuracy"] == {"train/accuracy", "val/accuracy", "test/accuracy"}
    assert drawn["optimizer", "learning rate"] == {"lr-SGD"}
    assert drawn["optimizer", "momentum"] == {"lr-SGD-momentum"}
    assert drawn["norms", "gradients"] == {f"gradient_norm/{name}" for name in ("head.0", "head.2", "total")}
    assert {title for title, _ in drawn} == {"curves", "optimizer", "norms", "speed"}, "no masks, no chart of them"


def test_a_resumed_run_has_each_step_once(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    assert main(tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=4")) == 0
    events = read(here / "lightning_logs/one/run-1")
    for tag in ("train/loss", "speed/images_per_second"):
        assert [e.step for e in events.Scalars(tag)] == [4, 9, 14, 19]


def assert_pictures(events, tag, expected):
    """The pictures of a tag are these, by step."""
    found = {e.step: np.asarray(Image.open(io.BytesIO(e.encoded_image_string))) for e in events.Images(tag)}
    assert found.keys() == expected.keys()
    for step, picture in expected.items():
        np.testing.assert_array_equal(found[step], picture)


def test_densities_and_a_bar_of_each_layer_in_every_round_of_a_lottery(here, tiny):
    """Written once a round, by `TensorBoardLook`: an epoch of five steps and two rounds of one epoch each."""
    lottery = {"epochs_per_round": 1, "rounds": 2, "fraction": 0.5}
    options = ["--trainer.callbacks+=LotteryTicket", *(f"--trainer.callbacks.{k}={v}" for k, v in lottery.items())]
    assert main(tiny("fit", "--name=one", *options, "--trainer.max_epochs=3")) == 0
    folder = here / "lightning_logs/one/run-1"
    events = read(folder)
    rounds = {}
    for number, step in ((1, 9), (2, 14)):
        stored = checkpoint(folder / f"checkpoints/round-{number}.ckpt")["smallnets"]["masks"]
        rounds[step] = Masks.from_state_dict(stored)
    assert [masks.kept for masks in rounds.values()] == [444, 222]
    assert scalars(events, "density/total") == [(step, round(m.density, 6)) for step, m in rounds.items()]
    pictures = {}
    for step, masks in rounds.items():
        named = {layer.name.removesuffix(".weight"): layer for layer in masks.layers}
        assert set(named) == {"head.0", "head.2"}
        for name, layer in named.items():
            assert (step, round(layer.density, 6)) in scalars(events, f"density/{name}")
        pictures[step] = layer_bars({name: (layer.kept, layer.total) for name, layer in named.items()})
    assert_pictures(events, "layers/masks", pictures)
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("sparsity/")]
    config = events.Tensors("custom_scalars__config__")[-1]
    layout = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0])
    assert "pruning" in {group.title for group in layout.category}


def test_bars_are_as_long_as_what_is_left_and_carry_the_names():
    picture = layer_bars({"stem": (1, 4), "head": (0, 7), "body.conv": (10, 10)})
    assert picture.shape[0] == 3 * ROW and picture.dtype == np.uint8
    for row, blue in enumerate((60, 0, 240)):
        line = picture[row * ROW + ROW // 2]
        assert (line == KEPT).all(1).sum() == blue and (line == GONE).all(1).sum() == 240 - blue
    other = layer_bars({"stem": (1, 4), "Head": (0, 7), "body.conv": (10, 10)})
    differing = np.unique(np.nonzero((picture != other).any(2))[0] // ROW) if picture.shape == other.shape else [1]
    assert list(differing) == [1]


def test_norms_are_those_of_the_weights_and_gradients(here, tiny):
    assert norms({"a": torch.tensor([3.0]), "b": torch.tensor([[0.0, 4.0]])}) == {"a": 3.0, "b": 4.0, "total": 5.0}
    assert norms({}) == {}
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, 2.0)
    assert gradient_norms(net) == {}
    net(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert gradient_norms(net) == {"weight": 5.0, "total": 5.0}
    assert weight_norms(net)["weight"] == pytest.approx(8**0.5), "without the bias"

    assert main(tiny("fit", "--name=one", "--look.norms_every=4")) == 0
    events = read(here / "lightning_logs/one/run-1")
    for group in ("weight_norm", "gradient_norm"):
        each = [scalars(events, f"{group}/{name}") for name in ("head.0", "head.2", "total")]
        assert [step for step, _ in each[2]] == [0, 4, 8]
        for (_, hidden), (_, head), (_, total) in zip(*each, strict=True):
            assert total == pytest.approx((hidden**2 + head**2) ** 0.5, rel=1e-5) and total > 0


@pytest.mark.parametrize("fast", ["false", "true"])
def test_a_run_ends_bitwise_as_without_it(here, tiny, own, fast):
    run = [a for a in tiny("fit", "--data.augment=[crop]", net="own_nets.Net") if not a.startswith("--look.graph")]
    run.append(f"--model.fast={fast}")
    assert main([*run, "--name=without", "--trainer.logger=false"]) == 0
    assert main([*run, "--name=with", "--look.norms_every=1"]) == 0
    found = read(here / "lightning_logs/with/run-1").Tags()
    assert found["graph"] and "train/images" in found["images"] and "gradient_norm/total" in found["scalars"]
    a, b = (checkpoint(here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt") for n in ("without", "with"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets"):
        assert equal(a[part], b[part]), part
    rows = [read_row(here / f"lightning_logs/{n}/run-1") for n in ("without", "with")]
    assert rows[0]["val_loss_last"] == rows[1]["val_loss_last"]


def test_the_graph_leaves_each_module_in_its_mode():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    net[1].eval()

    class Writer:
        def add_graph(self, net, example, use_strict_trace):
            assert not any(module.training for module in net.modules())
            raise RuntimeError("cannot be traced")

    _write_graph(Writer(), net, torch.zeros(1, 1, 8, 8))
    assert [module.training for module in net.modules()] == [True, True, False, True]


def confusion_by_hand(path):
    """Counts of the test images, in a loop of its own."""
    net, data = smallnets.load(path), Digits(image_size=8, in_channels=1)
    data.setup("test")
    counts = torch.zeros(10, 10, dtype=torch.int64)
    for batch in data.test_dataloader():
        images, labels = data.on_after_batch_transfer(batch, 0)
        for true, said in zip(labels.tolist(), net(images).argmax(1).tolist(), strict=True):
            counts[true, said] += 1
    return counts


def test_confusion_and_mistakes_come_from_the_one_pass_of_the_test(here, tiny, monkeypatch):
    assert main(tiny("fit", "--name=one")) == 0
    folder = here / "lightning_logs/one/run-1"
    seen = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
    assert main(tiny("test", "--name=one")) == 0
    assert sum(seen) == 299, "each test image once"
    events, row = read(folder), read_row(folder)
    stood = checkpoint(folder / "checkpoints/best.ckpt")["global_step"]
    assert scalars(events, "test/accuracy") == [(stood - 1, pytest.approx(row["test_accuracy"], abs=1e-6))]
    assert scalars(events, "test/loss") == [(stood - 1, pytest.approx(row["test_loss"], abs=1e-6))]
    counts = confusion_by_hand(folder / "checkpoints/best.ckpt")
    assert counts.trace() / 299 == pytest.approx(row["test_accuracy"], abs=1e-6)
    names = [str(number) for number in range(10)]
    assert torch.equal(picture(events, "test/confusion"), confusion_picture(counts, names))
    assert picture(events, "test/mistakes").shape[2] == 5 * 140
    # Asked again, nothing is read and nothing is written.
    assert main(tiny("test", "--name=one")) == 0
    assert len(seen) == 1 and len(read(folder).Images("test/confusion")) == 1


@pytest.mark.thorough
def test_two_processes_draw_what_one_draws(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    path = f"--ckpt_path={here}/lightning_logs/one/run-1/checkpoints/best.ckpt"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.eval_batch_size=64"]
    done = process(tiny("test", path, *two))
    assert done.returncode == 0, done.stderr
    shared = read(here / "lightning_logs/one/run-1")
    assert main(tiny("test", path, "--reread_test=true")) == 0
    alone = read(here / "lightning_logs/one/run-1")
    assert (len(shared.Images("test/confusion")), len(alone.Images("test/confusion"))) == (1, 2)
    for tag in ("test/confusion", "test/mistakes"):
        assert torch.equal(picture(shared, tag), picture(alone, tag)), tag


def test_the_worst_of_all_batches_are_kept():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(100, 4, generator=generator), torch.randint(4, (100,), generator=generator)
    images = torch.arange(100.0).view(100, 1, 1, 1)
    seen = Seen(7)
    for start in range(0, 100, 9):
        part = slice(start, start + 9)
        seen.add(images[part], logits[part], labels[part])
    every = Predictions(logits, labels)
    assert seen.images.flatten().tolist() == every.mistakes(7).tolist()
    assert torch.equal(seen.worst.labels, labels[every.mistakes(7)])
    assert torch.equal(seen.confusion, every.confusion())


def test_captions_name_what_is_there_and_what_was_said():
    sure = Predictions(torch.tensor([[0.0, torch.log(torch.tensor(3.0))]]), torch.tensor([0]))
    assert captions(sure, ["cat", "dog"]) == [("is cat", "said dog", "probability 0.750")]


def test_a_caption_shows_its_number_whatever_its_class_is_called(monkeypatch):
    """CIFAR-10's longest name is drawn whole; one that is wider than its picture is cut, its probability never."""
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, *rest, **more: drawn.append(text))
    sure = Predictions(torch.tensor([[0.0, torch.log(torch.tensor(3.0))]]), torch.tensor([0]))
    for longest in ("automobile", "black-footed albatross of the northern Pacific"):
        captioned(torch.zeros(1, 3, 32, 32), captions(sure, ["airplane", longest]))
    assert drawn[:3] == ["is airplane", "said automobile", "probability 0.750"]
    assert drawn[4].endswith("…") and drawn[5] == "probability 0.750"


def test_pictures_have_the_colours_and_sizes_of_their_numbers():
    counts = torch.tensor([[3, 0], [1, 0]])
    drawn = confusion_picture(counts, ["cat", "dog"]).permute(1, 2, 0)
    assert drawn.dtype == torch.uint8
    last = drawn[-9 - 40 :, -9 - 40 :][3, 3].tolist()
    first = drawn[-9 - 80 :, -9 - 80 :][3, 3].tolist()
    wrong = drawn[-9 - 40 :, -9 - 80 :][3, 3].tolist()
    assert (first, wrong, last) == ([31, 87, 164], [200, 60, 40], [255, 255, 255])
    many = confusion_picture(torch.eye(100, dtype=torch.int64))
    assert many.shape[1] >= 700
    assert confusion_picture(torch.zeros(3, 3, dtype=torch.int64)).float().min() < 255, "no image of any class"
    for wrong_form, names in ((torch.zeros(2, 3), []), (torch.zeros(2, 2), ["cat"])):
        with pytest.raises(UserError, match="C x C for C names"):
            confusion_picture(wrong_form, names)
    grey = torch.full((2, 1, 8, 8), 0.5)
    grid = captioned(grey, [("a", "b"), ("c", "d")], columns=2)
    assert grid.shape == (3, 112 + 2 * 15 + 12, 2 * 140)
    assert grid[:, 4 : 4 + 112, 6 : 6 + 112].unique().tolist() == [128]
    assert captioned(torch.zeros(0, 3, 8, 8), []).shape[0] == 3
    with pytest.raises(UserError, match="2 images have 1 captions"):
        captioned(grey, [("a", "b")])


def test_without_tensorboard_nothing_is_written_and_nothing_said(here, recwarn):
    for logger in (False, CSVLogger(here / "csv")):
        look, test = TensorBoardLook(norms_every=1), TensorBoardTest()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers|.*LeafSpec|.*is smaller")
            trainer = L.Trainer(
                max_epochs=1, accelerator="cpu", logger=logger, callbacks=[look, test], default_root_dir=here,
                enable_progress_bar=False, enable_model_summary=False, limit_train_batches=2, limit_val_batches=1,
                enable_checkpointing=False,
            )  # fmt: skip
            module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
            data = Digits(image_size=8, in_channels=1)
            trainer.fit(module, data)
            trainer.test(module, data, verbose=False)
    assert not list(here.rglob("events*"))


def test_mistakes_in_its_numbers():
    for make, message in (
        (lambda: TensorBoardLook(images=-1), "--look.images must be 0"),
        (lambda: TensorBoardLook(norms_every=0), "--look.norms_every must be at least 1"),
        (lambda: TensorBoardTest(0), "mistakes must be 1 or more, got 0"),
    ):
        with pytest.raises(UserError, match=message):
            make()


@pytest.mark.parametrize(("optimizer", "momentum"), [("Adam", True), ("Adadelta", False)])
def test_momentum_is_logged_where_there_is_one(here, tiny, optimizer, momentum):
    given = [a for a in tiny("fit", "--name=one") if not a.startswith("--model.optimizer")]
    assert main([*given, f"--model.optimizer={optimizer}"]) == 0
    scalars = read(here / "lightning_logs/one/run-1").Tags()["scalars"]
    assert (f"lr-{optimizer}-momentum" in scalars) == momentum
    assert f"lr-{optimizer}" in scalars and issubclass(Rates, L.pytorch.callbacks.LearningRateMonitor)
