"""What a reviewer finds in TensorBoard, read back from the event files."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smallnets.cli import main
from smallnets.results import read_row

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def test_curves_rate_images_graph_and_hyperparameters(here, tiny):
    command = [a for a in tiny("fit", "--name=one", "--data.augment=[flip]") if not a.startswith("--look.graph")]
    halved = ["--model.scheduler=StepLR", "--model.scheduler.step_size=1", "--model.scheduler.gamma=0.5"]
    assert main([*command, *halved]) == 0
    folder = here / "lightning_logs/one/run-1"
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    curves = {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr-SGD"}
    assert curves <= set(tags["scalars"])
    assert tags["images"] == ["images/train"]
    assert tags["graph"]
    assert [round(e.value, 6) for e in events.Scalars("lr-SGD")] == [0.02, 0.01]
    assert [e.step for e in events.Scalars("val/accuracy")] == [4, 9]
    last = read_row(folder)["val_accuracy_last"]
    assert events.Scalars("final/accuracy")[-1].value == pytest.approx(last, abs=1e-6)
    hparams = events.PluginTagToContent("hparams")
    assert "_hparams_/session_start_info" in hparams
    assert b"hidden_widths" in hparams["_hparams_/session_start_info"]


def test_a_resumed_run_has_each_step_once(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    assert main(tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=4")) == 0
    events = EventAccumulator(str(here / "lightning_logs/one/run-1"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [4, 9, 14, 19]
