"""The fast mode: the same results as the default mode, bit for bit on a CPU."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from test_interruption import HARD, checkpoint, equal, process
from torch import nn

from smallnets.cli import main
from smallnets.data import Digits, chunks
from smallnets.data.chunks import ChunkedLoader
from smallnets.data.loader import BatchLoader
from smallnets.errors import UserError
from smallnets.training import Classifier
from smallnets.training.fast import FastSteps

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")

# What a run leaves; `loops` differ by design: Lightning counts chunks.
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets")


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Two steps a chunk: an epoch of five steps has two whole chunks and one of a single step."""
    monkeypatch.setattr(chunks, "STEPS", 2)


def last(here, name):
    return checkpoint(here / f"lightning_logs/{name}/run-1/checkpoints/last.ckpt")


def assert_same_run(here, a="plain", b="fast"):
    left, right = last(here, a), last(here, b)
    for part in PARTS:
        assert equal(left[part], right[part]), part
    metrics = [(here / f"lightning_logs/{name}/run-1/metrics.csv").read_text() for name in (a, b)]
    assert metrics[0] == metrics[1]


OPTIONS = {
    "sgd, by the step, mixing, augmentation": HARD,
    "adam, by the epoch": ("--model.optimizer=Adam", "--model.optimizer.lr=0.01", "--model.scheduler=StepLR",
                           "--model.scheduler.step_size=1"),
    "adabound": ("--model.optimizer=AdaBound", "--model.optimizer.lr=0.01"),
    "plateau": ("--model.scheduler=ReduceLROnPlateau", "--model.scheduler.monitor=val/loss",
                "--model.scheduler.patience=0", "--trainer.max_epochs=4"),
    "average": ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.9", "--trainer.callbacks.every_n_steps=3"),
    "limited": ("--trainer.limit_train_batches=3",),
    "bf16": ("--trainer.precision=bf16-mixed",),
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_run_ends_as_in_the_default_mode(here, tiny, own, options):
    run = tiny("fit", *options, net="own_nets.Net")
    assert main([*run, "--name=plain"]) == 0
    assert main([*run, "--name=fast", "--model.fast=true"]) == 0
    assert_same_run(here)


def test_killed_within_an_epoch_and_resumed_it_ends_where_the_default_mode_ends(here, tiny, own, monkeypatch):
    run = tiny("fit", *HARD, net="own_nets.Net")
    fast = [*run, "--model.fast=true", "--checkpoint_every=2"]
    assert main([*run, "--name=plain"]) == 0
    assert main([*fast, "--name=fast"]) == 0
    # Chunks end after steps 2, 4, 5, 7, 9, 10: the checkpoints due at 6 and 8 are written at 7 and 9.
    kill = ["--trainer.callbacks+=own_nets.KillAt", "--trainer.callbacks.step=9"]
    patched = "import smallnets.data.chunks as c; c.STEPS = 2; from smallnets.cli import console; console()"
    assert process([*fast, "--name=cut", *kill], program=patched).returncode == -9
    assert last(here, "cut")["global_step"] == 7
    assert main([*fast, "--name=cut", "--ckpt_path=last"]) == 0
    assert_same_run(here)
    assert_same_run(here, "plain", "cut")


HOOKS = """
import torch
from lightning.pytorch.callbacks import Callback

class Meddle(Callback):
    "Every hook around a backward pass changes the weights that the run ends with."

    def on_before_zero_grad(self, trainer, module, optimizer):
        for each in module.net.parameters():
            each.data.mul_(0.999)
            if each.grad is not None:
                each.data.sub_(each.grad, alpha=1e-4)

    def on_before_backward(self, trainer, module, loss):
        loss.register_hook(lambda gradient: gradient * 1.5)

    def on_after_backward(self, trainer, module):
        for each in module.net.parameters():
            each.grad.sign_()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for each in module.net.parameters():
            each.grad.add_(0.125)
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_hook_around_the_backward_pass_is_called(here, tiny, own, processes):
    (own / "own_hooks.py").write_text(HOOKS)
    more = [] if processes == 1 else ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=20"]
    run = tiny("fit", *more, "--trainer.callbacks+=own_hooks.Meddle", net="own_nets.Net")
    for name, options in {"plain": [], "fast": ["--model.fast=true"]}.items():
        if processes == 1:
            assert main([*run, f"--name={name}", *options]) == 0
        else:
            done = process([*run, f"--name={name}", *options])
            assert done.returncode == 0, done.stderr
    assert_same_run(here)


@pytest.mark.parametrize("hook", ["on_before_zero_grad", "on_before_backward"])
def test_hooks_within_a_captured_step_are_refused(monkeypatch, hook):
    """Also those that are no method of the callback's class."""
    module = Classifier(nn.Flatten(), fast=True)
    trainer = L.Trainer(callbacks=[LambdaCallback(**{hook: print})], accelerator="cpu", logger=False)
    module.trainer, trainer.datamodule = trainer, Digits()
    module._fast.check()
    monkeypatch.setattr(FastSteps, "_captures", lambda self: True)
    with pytest.raises(UserError, match=rf"on a GPU runs .*: LambdaCallback\.{hook}, which .* would not be called"):
        module._fast.check()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--trainer.gradient_clip_val=1.0", "gradient_clip_val"),
        ("--trainer.accumulate_grad_batches=2", "accumulate_grad_batches"),
        ("--trainer.val_check_interval=0.5", "--trainer.val_check_interval must stay 1.0, got 0.5"),
        ("--trainer.limit_train_batches=0.5", "as a number of batches"),
        ("--trainer.max_steps=7", "whole epochs of 5 steps: --trainer.max_steps=7 ends within one"),
        ("--trainer.precision=16-true", "bf16-mixed instead of 16-true"),
    ],
)
def test_what_needs_single_batches_is_refused(here, tiny, capsys, option, says):
    assert main(tiny("fit", "--model.fast=true", option)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) <= 2


@pytest.mark.thorough
def test_two_processes_end_as_in_the_default_mode(here, tiny, own):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=20"]
    run = tiny("fit", *HARD, *two, net="own_nets.Net")
    for name, options in {"plain": [], "fast": ["--model.fast=true"]}.items():
        done = process([*run, f"--name={name}", *options])
        assert done.returncode == 0, done.stderr
    assert_same_run(here)


def loader(count=11, batch=2):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return BatchLoader(images, torch.arange(count), batch_size=batch, seed=3)


def test_chunks_give_the_batches_of_the_loader_with_their_numbers():
    plain = loader()
    plain.set_epoch(4)
    expected = [batch[1].tolist() for batch in plain]
    chunked = ChunkedLoader(loader(), 2)
    chunked.sampler.set_epoch(4)
    sizes, seen = [], []
    for chunk in chunked:
        found = [(number, batch[1].tolist()) for number, batch in chunk]
        sizes.append(len(found))
        seen += found
        assert chunk.images == sum(len(labels) for _, labels in found)
        assert chunk.last == (len(seen) == len(plain))
    assert [number for number, _ in seen] == list(range(len(plain)))
    assert [labels for _, labels in seen] == expected
    assert len(chunked) == len(sizes)


def test_the_place_between_chunks_is_that_of_the_next_batch():
    chunked = ChunkedLoader(loader(), 2)
    chunks_of_it = iter(chunked)
    first = [batch[1].tolist() for _, batch in next(chunks_of_it)]
    state = chunked.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 2)
    rest = [batch[1].tolist() for chunk in chunks_of_it for _, batch in chunk]
    resumed = ChunkedLoader(loader(), 2)
    resumed.load_state_dict(state)
    again = [(number, batch[1].tolist()) for chunk in resumed for number, batch in chunk]
    assert again == list(enumerate(rest, 2))
    assert [*first, *rest] == [batch[1].tolist() for batch in loader()]


def test_a_first_batch_that_was_looked_at_is_still_used():
    chunk = next(iter(ChunkedLoader(loader(), 3)))
    looked = chunk.peek()
    used = [batch for _, batch in chunk]
    assert torch.equal(used[0][1], looked[1])
    assert len(used) == 3
