"""The progress bar of a run: when it moves, and which bar a run has."""

import io
from typing import ClassVar

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from rich import reconfigure

import smallnets
from smallnets.callbacks import bar
from smallnets.callbacks.bar import SeldomBar
from smallnets.cli import main
from smallnets.data import Digits
from smallnets.models import LeNet
from smallnets.training import Classifier

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


@pytest.fixture
def terminal(monkeypatch):
    """Standard output is a terminal; what a bar draws is thrown away."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    yield
    reconfigure()


class Seen(Callback):
    """The bars of the trainers that were."""

    bars: ClassVar[list] = []

    def on_train_start(self, trainer, module):
        Seen.bars.append(trainer.progress_bar_callback)


@pytest.fixture(autouse=True)
def no_bars():
    Seen.bars = []


def test_it_moves_after_its_seconds_and_at_the_last_batch(monkeypatch):
    """Ten batches of a second each, a bar of three seconds: after batches 1, 4, 7 and 10, and once a pass of others."""
    now, moved = [100.0], []
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])

    class Counted(SeldomBar):
        def get_metrics(self, trainer, module):  # reads every figure that is logged
            moved.append(trainer.fit_loop.epoch_loop.batch_idx + 1)
            return super().get_metrics(trainer, module)

    class Second(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            now[0] += 1

    shown = io.StringIO()
    console = {"file": shown, "force_terminal": True, "width": 200}
    net = LeNet(hidden_widths=[12], image_size=8, in_channels=1)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0,
        callbacks=[Second(), Counted(seconds=3.0, console_kwargs=console)],
    )  # fmt: skip
    data = Digits(image_size=8, in_channels=1, train_size=200, batch_size=20)
    trainer.fit(Classifier(net), datamodule=data)
    reconfigure()
    assert moved[:4] == [1, 4, 7, 10] and set(moved[4:]) == {10}  # and at the ends of validation and of the epoch
    assert len(moved) <= 6
    assert "10/10" in shown.getvalue() and "val/accuracy" in shown.getvalue()


OPTION = "--trainer.callbacks+=test_bar.Seen"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], SeldomBar),
        (["--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"], TQDMProgressBar),
        (["--trainer.enable_progress_bar=false"], type(None)),
    ],
)
def test_a_run_on_a_terminal_has_it_unless_there_is_another(here, tiny, terminal, more, expected):
    assert main(tiny("fit", OPTION, *more, "--trainer.max_epochs=1")) == 0
    assert [type(each) for each in Seen.bars] == [expected]


def test_elsewhere_there_is_none_but_a_users_own(here, tiny, capsys):
    assert main(tiny("fit", OPTION, "--trainer.max_epochs=1")) == 0
    own = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"
    assert main(tiny("fit", OPTION, own, "--trainer.max_epochs=1")) == 0
    assert [type(each) for each in Seen.bars] == [type(None), TQDMProgressBar]


def test_a_trainer_from_python_has_it_on_a_terminal(here, terminal):
    kinds = [
        type(smallnets.trainer("a", 1, accelerator="cpu", **options).progress_bar_callback)
        for options in ({}, {"enable_progress_bar": False}, {"callbacks": [TQDMProgressBar()]})
    ]
    assert kinds == [SeldomBar, type(None), TQDMProgressBar]
