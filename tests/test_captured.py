"""The fast mode on a GPU: one CUDA graph for forward and backward, and the weights that the default mode gives."""

import pytest
import torch
from test_interruption import checkpoint

from smallnets.cli import main
from smallnets.training.fast import FastSteps

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")]
ON_GPU = ("--trainer.accelerator=gpu", "--trainer.devices=1", "--data.batch_size=48", "--model.scheduler=StepLR",
          "--model.scheduler.step_size=1", "--model.scheduler.gamma=0.5")  # fmt: skip


def weights(here, name):
    state = checkpoint(here / f"lightning_logs/{name}/run-1/checkpoints/last.ckpt")["state_dict"]
    return {key: value for key, value in state.items() if value.is_floating_point()}


@pytest.fixture
def captures(monkeypatch):
    """The captured steps that a run makes."""
    made = []
    start = FastSteps._forward_backward

    def watched(self, *arguments):
        start(self, *arguments)
        if self._captured is not None and self._captured not in made:
            made.append(self._captured)

    monkeypatch.setattr(FastSteps, "_forward_backward", watched)
    return made


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_captured_run_ends_where_the_default_mode_ends(here, tiny, own, captures, precision):
    """200 images in batches of 48: four batches of one shape an epoch and one of eight, which is not captured."""
    run = [*tiny("fit", *ON_GPU, f"--trainer.precision={precision}", net="own_nets.Net"), "--model.net.drop=0.0"]
    assert main([*run, "--name=plain"]) == 0
    assert main([*run, "--name=fast", "--model.fast=true"]) == 0
    assert len(captures) == 1, "one capture serves both epochs"
    plain, fast = weights(here, "plain"), weights(here, "fast")
    tolerance = 1e-4 if precision == "32-true" else 2e-2
    for key in plain:
        torch.testing.assert_close(fast[key], plain[key], rtol=tolerance, atol=tolerance)


def test_dropout_draws_anew_in_every_replay_and_the_same_in_a_second_run(here, tiny, own):
    run = tiny("fit", *ON_GPU, "--model.fast=true", net="own_nets.Net")
    for name in ("one", "two"):
        assert main([*run, f"--name={name}"]) == 0
    one, two = weights(here, "one"), weights(here, "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-4)
    assert main([*run, "--name=none", "--model.net.drop=0.0"]) == 0
    none = weights(here, "none")
    assert any(not torch.allclose(one[key], none[key], rtol=1e-2, atol=1e-3) for key in one)


def test_warming_up_trains_on_nothing(here, tiny, own):
    """Statistics and sums after one step are those of that step alone."""
    run = tiny("fit", *ON_GPU, "--trainer.limit_train_batches=1", "--trainer.max_epochs=1", net="own_nets.Net")
    run.append("--model.net.drop=0.0")
    assert main([*run, "--name=plain"]) == 0
    assert main([*run, "--name=fast", "--model.fast=true"]) == 0
    plain, fast = (checkpoint(here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt") for n in ("plain", "fast"))
    assert [v for k, v in plain["state_dict"].items() if "num_batches" in k] == [
        v for k, v in fast["state_dict"].items() if "num_batches" in k
    ]
    rows = [(here / f"lightning_logs/{n}/run-1/metrics.csv").read_text().splitlines()[-1] for n in ("plain", "fast")]
    assert rows[0].split(",")[:2] == rows[1].split(",")[:2]
