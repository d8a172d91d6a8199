"""A network with more logits than classes, as document 001 printed one, in every place that names classes."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_tensorboard import picture, read
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

import smallnets
from smallnets.callbacks.look_test import Seen, captions
from smallnets.cli import main
from smallnets.data import Digits
from smallnets.results import read_row
from smallnets.results.pictures import confusion_picture
from smallnets.results.predictions import Predictions, named, predict
from smallnets.training import Classifier
from smallnets.training.figures import TopFive

pytestmark = [
    pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]
# 40 logits for ten digits; trained for so few steps that some images are still taken for one of the other 30.
NET = (
    "--model.net.growth_rate=4", "--model.net.blocks=[1]", "--model.net.stem_channels=4", "--model.net.logits=40",
    "--trainer.max_epochs=1", "--model.optimizer.lr=0.01", "--model.mixup=0.2", "--model.cutmix=1",
)  # fmt: skip


def test_a_network_with_surplus_logits_trains_tests_predicts_and_is_exported(here, tiny, capsys):
    assert main(tiny("fit", "--name=wide", *NET, net="DenseNet")) == 0
    folder = here / "lightning_logs/wide/run-1"
    best = folder / "checkpoints/best.ckpt"
    assert main(tiny("test", "--name=wide", *NET, net="DenseNet")) == 0
    net, data = smallnets.load(best), Digits(image_size=8, in_channels=1)
    data.setup("test")
    found = predict(net, (data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()))
    assert found.logits.shape == (299, 40) and (found.predicted >= 10).any(), "or this would test nothing"
    assert read_row(folder)["test_accuracy"] == pytest.approx(found.accuracy, abs=1e-6)
    counts = torch.zeros(11, 11, dtype=torch.int64)
    for true, said in zip(found.labels.tolist(), found.predicted.tolist(), strict=True):
        counts[true, min(said, 10)] += 1
    names = [str(number) for number in range(10)]
    assert torch.equal(picture(read(folder), "test/confusion"), confusion_picture(counts, [*names, "none"]))

    assert main(tiny("predict", "--name=wide", *NET, net="DenseNet")) == 0
    (path,) = folder.glob("**/predictions*.csv")
    with path.open() as file:
        said = [row["prediction"] for row in csv.DictReader(file)]
    data.setup("validate")
    on_val = predict(net, data.batches("val")).predicted.tolist()
    assert said == [names[each] if each < 10 else "none" for each in on_val]

    stored = torch.load(best, weights_only=True)
    stored["state_dict"]["net.head.bias"][39] = 100.0  # whatever the image, it is the last of the logits
    torch.save(stored, best)
    assert main(["export", str(best), "--format=pt2", "--output=wide.pt2", "--calls=0"]) == 0
    card = Path("wide.pt2.md").read_text()
    assert "- classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; 30 further logits stand for none\n" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("image.png")
    capsys.readouterr()
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out == "none\n"


def test_predictions_beyond_the_classes_are_one_named_none():
    """Two classes, four logits: both images of class 1 are taken for logits beyond them."""
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 0, 9.0, 0], [0, 0, 0, 8.0]])
    found = Predictions(logits, torch.tensor([0, 1, 1]))
    assert found.confusion(2).tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]
    assert found.confusion(4).shape == found.confusion().shape == (4, 4)
    assert named(["a", "b"], 2) == ["a", "b"] and named(["a", "b"], 4) == ["a", "b", "none", "none"]
    seen = Seen(5, 2)
    seen.add(torch.zeros(3, 1, 8, 8), logits, found.labels)
    assert torch.equal(seen.confusion, found.confusion(2))
    assert [lines[:2] for lines in captions(seen.worst, ["a", "b"])] == [("is b", "said none")] * 2


@pytest.mark.parametrize("teacher", [False, True])
def test_mixed_targets_are_as_wide_as_the_logits(teacher):
    torch.manual_seed(0)
    module = Classifier(nn.Flatten(), mixup=1.0)
    module.num_classes, module._seed = 3, 0
    module._teacher = (nn.Flatten(),) if teacher else ()
    images, labels = torch.rand(6, 1, 1, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    module._trainer = type("T", (), {"current_epoch": 0, "global_rank": 0})()
    mixed, targets = module.mixed(images, labels, 0)
    assert targets.shape == (6, 3)
    by_hand = -(targets * mixed.flatten(1).log_softmax(1)[:, :3]).sum(1).mean()
    share = 1 - module.distill_weight if teacher else 1.0
    torch.testing.assert_close(module._loss(mixed, mixed.flatten(1), targets), share * by_hand)


def test_top_five_is_that_of_torchmetrics_and_takes_surplus_logits():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 30, generator=generator), torch.randint(20, (200,), generator=generator)
    ours, theirs = TopFive(20, average="micro", validate_args=False), MulticlassAccuracy(20, average="micro", top_k=5)
    assert ours(logits[:, :20], labels) == theirs(logits[:, :20], labels) > 0
    near = sum(label in row.topk(5).indices.tolist() for row, label in zip(logits, labels.tolist(), strict=True))
    assert float(ours(logits, labels)) == pytest.approx(near / 200) and 0 < near < 200
