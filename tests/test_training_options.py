"""Every optimizer and schedule from the command line: it trains, and a run cut within an epoch goes on exactly."""

import pytest
import torch

from smallnets.cli import main

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")

OPTIMIZERS = {
    "SGD": ["lr=0.02", "momentum=0.9", "nesterov=true"],
    "Adam": ["lr=0.001"],
    "AdamW": ["lr=0.001", "weight_decay=0.01"],
    "AdaBound": ["lr=0.001", "final_lr=0.1"],
    "Adadelta": ["lr=0.1"],
    "RMSprop": ["lr=0.001", "momentum=0.2658"],
    "Adagrad": ["lr=0.01"],
    "ASGD": ["lr=0.01"],
    "torch.optim.RAdam": ["lr=0.001"],
}
SCHEDULES = {
    "StepLR": ["step_size=1", "gamma=0.5"],
    "MultiStepLR": ["milestones=[1,2]", "gamma=0.1"],
    "CosineAnnealingLR": ["T_max=3"],
    "LinearLR": ["total_iters=3"],
    "CyclicLR": ["base_lr=0.001", "max_lr=0.02", "step_size_up=2", "mode=triangular2"],
    "OneCycleLR": ["max_lr=0.02", "total_steps=15"],
    "ReduceLROnPlateau": ["monitor=val/loss", "patience=0", "factor=0.5", "threshold=0.5"],
    "torch.optim.lr_scheduler.ExponentialLR": ["gamma=0.9"],
}


def options(kind: str, name: str, values: list[str]) -> list[str]:
    return [f"--model.{kind}={name}", *(f"--model.{kind}.{value}" for value in values)]


def cut_and_resumed_equal(here, run: list[str]) -> dict:
    """Runs it whole, and cut after 7 of 15 steps and resumed; asserts that both end alike, and returns the end."""
    assert main([*run, "--name=whole", "--trainer.max_epochs=3"]) == 0
    assert main([*run, "--name=cut", "--trainer.max_epochs=3", "--trainer.max_steps=7"]) == 0
    assert main([*run, "--name=cut", "--trainer.max_epochs=3", "--ckpt_path=last"]) == 0
    paths = [here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt" for n in ("whole", "cut")]
    a, b = (torch.load(path, weights_only=True) for path in paths)
    assert a["global_step"] == b["global_step"] == 15
    for x, y in zip(a["state_dict"].values(), b["state_dict"].values(), strict=True):
        assert torch.equal(x, y)
    assert [s["_last_lr"] for s in a["lr_schedulers"]] == [s["_last_lr"] for s in b["lr_schedulers"]]
    return a


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name, here, tiny):
    run = [a for a in tiny("fit") if not a.startswith("--model.optimizer")]
    cut_and_resumed_equal(here, [*run, *options("optimizer", name, OPTIMIZERS[name])])


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name, interval, here, tiny):
    if (name, interval) in {("ReduceLROnPlateau", "step"), ("OneCycleLR", "epoch")}:
        pytest.skip("no validation figure comes at every step, and one cycle is counted in steps")
    run = tiny("fit", *options("scheduler", name, SCHEDULES[name]), f"--model.interval={interval}")
    end = cut_and_resumed_equal(here, run)
    steps = 3 if interval == "epoch" else 15
    if name == "StepLR":
        assert end["lr_schedulers"][0]["_last_lr"] == [0.02 * 0.5**steps]


def test_decay_spares_norm_and_bias(here, tiny, own):
    run = tiny("fit", "--model.spare_norm_and_bias=true", "--model.optimizer.weight_decay=0.1", net="own_nets.Net")
    assert main([*run, "--name=one"]) == 0
    checkpoint = torch.load(here / "lightning_logs/one/run-1/checkpoints/last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    # Two weights decay; BatchNorm's weight and bias and the head's bias do not.
    assert sorted((g["weight_decay"], len(g["params"])) for g in groups) == [(0, 3), (0.1, 2)]


def test_top5_is_reported_where_it_says_something(here):
    from torchmetrics import MetricCollection

    from smallnets.training.figures import figures

    assert isinstance(figures(100, "val/"), MetricCollection)
    assert set(figures(100, "val/")) == {"val/loss", "val/accuracy", "val/accuracy_top5"}
    assert set(figures(10, "val/")) == {"val/loss", "val/accuracy"}


def test_ema_and_best_checkpoint_from_a_config(here, tiny):
    run = tiny("fit", "--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.5")
    cut_and_resumed_equal(here, run)
