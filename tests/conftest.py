"""What several test files share: a run that takes a second, and a network and callbacks of a user's own."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

torch.set_num_threads(1)

OWN = '''
import os, signal
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn


class Net(nn.Module):
    """BatchNorm and dropout: everything that a resume could get wrong."""

    def __init__(self, num_classes, in_channels=1, width=8, drop=0.3):
        super().__init__()
        self.num_classes, self.in_channels, self.width, self.drop = num_classes, in_channels, width, drop
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(drop), nn.Linear(4 * width, num_classes),
        )

    def forward(self, images):
        return self.body(images)


class Opaque(Net):
    """Its constructor's argument cannot be read back."""

    def __init__(self, num_classes, secret=8):
        super().__init__(num_classes, width=secret)


class TwoLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, images):
        return self.head(images.flatten(1))


class KillAt(Callback):
    """The process is gone, without a word, after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class RankHashes(Callback):
    """Every rank writes what it saw and what it holds."""

    def __init__(self, folder: str):
        self.folder = folder
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        loader = trainer.train_dataloader
        order = loader.order(trainer.current_epoch)
        self.seen.append(order[loader.share(batch_idx)].tolist())

    def on_fit_end(self, trainer, module):
        state = {k: v.clone() for k, v in module.net.state_dict().items()}
        data = trainer.datamodule
        split = {"train": sorted(data.labels("train").tolist()), "mean": data.mean}
        torch.save({"seen": self.seen, "state": state, "split": split}, f"{self.folder}/rank{trainer.global_rank}.pt")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `own_nets` of a user, importable here and in child processes; returns its folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, and no trace of another run in the environment."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("SMALLNETS_RUN_FOLDER", "PL_GLOBAL_SEED", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    for name in ("SMALLNETS_RUN_FOLDER", "PL_GLOBAL_SEED"):
        os.environ.pop(name, None)


@pytest.fixture
def fake_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 in torchvision's form, 40 images a file; the published md5 sums are put aside.

    Returns the folder that `--data.root` names.
    """
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)]
    for name in [*names, "test_batch"]:
        data = rng.integers(0, 256, (40, 3 * 32 * 32), dtype=np.uint8)
        labels = [i % 10 for i in range(40)]
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind {i}" for i in range(10)]}))
    reader = torchvision.datasets.CIFAR10
    monkeypatch.setattr(reader, "train_list", [[n, None] for n in names])
    monkeypatch.setattr(reader, "test_list", [["test_batch", None]])
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": None})
    return tmp_path


TINY = (
    "--data=Digits", "--data.image_size=8", "--data.in_channels=1", "--data.train_size=200", "--data.batch_size=40",
    "--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--look.graph=false",
    "--model.optimizer=SGD", "--model.optimizer.lr=0.02", "--model.optimizer.momentum=0.9",
)  # fmt: skip


# The quaternion form of the user's own network, on images of three channels.
QUATERNION = (
    "--data.in_channels=3", "--model.net=smallnets.surgery.Quaternion", '--model.net.of={"class_path": "own_nets.Net"}',
)  # fmt: skip


@pytest.fixture
def tiny() -> Callable[..., list[str]]:
    """`tiny("fit", "--more=options")`: a command line that trains LeNet-12 on 200 digits for two epochs of 5 steps.

    With `net="quaternion"` it is the quaternion form of `own_nets.Net`.
    """

    def command(verb: str, *more: str, net: str = "lenet_12") -> list[str]:
        return [verb, *TINY, *(QUATERNION if net == "quaternion" else [f"--model.net={net}"]), *more]

    return command
