"""`QuantAwareTraining`: what training and all readers of a checkpoint see, resuming, two processes, and the file."""

import copy
import json
import random
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from test_interruption import checkpoint, equal, process
from test_pruning_schedule_callback import PARTS, classifier, digits, fit
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import smallnets
from smallnets.callbacks import EMA, ChannelPruning, LotteryTicket, PruningSchedule, QuantAwareTraining
from smallnets.cli import main
from smallnets.compress import compare_logits, open_exported
from smallnets.data import normalise
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.models import ResNet
from smallnets.results import read_row
from smallnets.results.load import load_masks
from smallnets.surgery import FakeQuantized

pytestmark = [
    pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*"),
]
QAT = ["--trainer.callbacks+=QuantAwareTraining"]


def options(**given: object) -> list[str]:
    return [*QAT, *[f"--trainer.callbacks.{k}={v}" for k, v in given.items()]]


def resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet(num_classes=10, blocks=[1], channels=[8], in_channels=1)


class Watch(L.Callback):
    """The batches, and what is there after each; what each validation batch gave."""

    def __init__(self) -> None:
        self.batches, self.states, self.ranges, self.seen = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append([each.clone() for each in batch])

    def on_train_batch_end(self, trainer, module, *args):
        self.states.append({k: v.clone() for k, v in module.net.state_dict().items()})
        self.ranges.append(None if module.fake_quantized is None else module.fake_quantized.bounds.clone())

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append((module.fake_quantized is not None, module(batch[0]).clone(), module.net(batch[0]).clone()))


# -- training ----------------------------------------------------------------------------------------------------------


def test_it_is_a_plain_loop_with_the_rounded_network(here: Path) -> None:
    """Bitwise: three steps of the network itself, seven of the rounded one, with masks; and the first ranges."""
    watch, module = Watch(), classifier(resnet())
    fit(module, PruningSchedule(density=0.4, at="0it"), QuantAwareTraining(start="3it", decay=0.5), watch)
    masks = module.masks

    net = resnet()
    masks.apply_(net)
    optimizer, fake = SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3), None
    for step, (images, labels) in enumerate(watch.batches, 1):
        optimizer.zero_grad()
        cross_entropy((fake or net)(images), labels).backward()
        optimizer.step()
        masks.apply_(net)
        if fake is not None:
            fake.update_ranges()
        if step == 3:
            fake = FakeQuantized(net.train(), decay=0.5)
            fake.bounds.copy_(watch.ranges[2])
        assert equal(net.state_dict(), watch.states[step - 1]), step
        if step > 3:
            assert torch.equal(fake.bounds, watch.ranges[step - 1]), step
    assert len(watch.states) == 10 and watch.ranges[1] is None
    assert not torch.equal(watch.ranges[2], watch.ranges[3])
    data = digits()
    data.setup("fit")
    pixels = [normalise(each, data.mean, data.std) for each, _, _ in data.train_dataloader()]
    assert watch.ranges[2][0, 0] <= -min(float(each.min()) for each in pixels)  # four batches of the images
    assert not equal(net.state_dict(), watch.states[2])


def test_validation_sees_the_rounded_network_from_the_start_on(here: Path) -> None:
    watch = Watch()
    fit(classifier(resnet()), QuantAwareTraining(start="1ep"), watch)
    # Rounding begins after the first epoch's last step, before that epoch is validated.
    assert watch.seen and all(rounded and not torch.equal(a, b) for rounded, a, b in watch.seen)
    late = Watch()
    fit(classifier(resnet()), QuantAwareTraining(start="6it"), late)
    half = len(watch.seen) // 2
    assert [rounded for rounded, _, _ in late.seen] == [False] * half + [True] * half
    assert all(torch.equal(a, b) for rounded, a, b in late.seen if not rounded)


def test_fit_twice(here: Path) -> None:
    """The second fit with the same objects begins anew: it ends where one with new objects ends."""
    module, callback = classifier(resnet()), QuantAwareTraining(start="2it")
    fit(module, callback)
    fit(again := copy.deepcopy(module), QuantAwareTraining(start="2it"))
    fit(module, callback)
    assert equal(module.net.state_dict(), again.net.state_dict())
    assert equal(module.fake_quantized.record(), again.fake_quantized.record())


def test_the_fast_mode_computes_the_same(here: Path) -> None:
    ends = []
    for fast in (False, True):
        module = classifier(resnet(), fast=fast)
        trainer = fit(module, PruningSchedule(density=0.4, at="3it"), QuantAwareTraining(start="2it"))
        ends.append((module.net.state_dict(), module.fake_quantized.record(), trainer.callback_metrics))
    assert equal(ends[0][:2], ends[1][:2])
    assert ends[0][2]["val/loss"] == ends[1][2]["val/loss"]


def test_with_an_average_validation_sees_the_average_rounded(here: Path, tmp_path: Path) -> None:
    watch = Watch()
    saving = ModelCheckpoint(dirpath=tmp_path / "one", save_last=True)
    fit(classifier(resnet()), EMA(decay=0.5), QuantAwareTraining(), watch, saving)
    average = None
    for state in watch.states:
        floats = {k: v for k, v in state.items() if v.is_floating_point()}
        average = floats if average is None else {k: torch.lerp(average[k], v, 0.5) for k, v in floats.items()}
    loaded = smallnets.load(tmp_path / "one/last.ckpt")
    for name, value in loaded.net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name])
    images, _ = validation()
    last = [logits for _, logits, _ in watch.seen[-1:]]
    assert torch.equal(last[0], loaded(images[-len(last[0]) :]))


def validation() -> tuple[torch.Tensor, torch.Tensor]:
    data = digits()
    data.prepare_data()
    data.setup("fit")
    data.trainer = None
    batches = [(normalise(pixels, data.mean, data.std), known) for pixels, known, _ in data.val_dataloader()]
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--model.fast=true"]], ids=["default", "fast"])
def test_killed_and_resumed_it_ends_where_the_uninterrupted_run_ends(here, tiny, own, more):
    """SIGKILL in 15 steps, before and after rounding begins, with masks that go on falling and an average."""
    given = [
        *options(start="6it"), "--trainer.callbacks+=PruningSchedule",
        "--trainer.callbacks.density=0.3", "--trainer.callbacks.curve=cubic", "--trainer.callbacks.end=12it",
        "--trainer.callbacks.every=2it", "--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.9",
    ]  # fmt: skip
    run = tiny("fit", *given, "--checkpoint_every=1", "--trainer.max_epochs=3", *more, net="own_nets.Net")
    assert main([*run, "--name=whole"]) == 0
    for step in (10,) if more else (4, random.SystemRandom().randint(7, 13)):
        kill = ["--trainer.callbacks+=own_nets.KillAt", f"--trainer.callbacks.step={step}", f"--name=cut{step}"]
        died = process([*run, *kill])
        assert died.returncode == -9, died.stderr
        assert main([*run, f"--name=cut{step}", "--ckpt_path=last"]) == 0
        a, b = (checkpoint(here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt") for n in ("whole", f"cut{step}"))
        for part in (*PARTS, "current_model_state"):
            assert equal(a[part], b[part]), (part, step)
        assert a["smallnets"]["quantization"]["ranges"].isfinite().all()
        rows = [read_row(here / f"lightning_logs/{n}/run-1") for n in ("whole", f"cut{step}")]
        for figure in ("val_accuracy", "val_loss_last", "train_loss_last"):
            assert rows[0][figure] == rows[1][figure], (figure, step)


SPARSE = [
    *options(start="1it"), "--trainer.callbacks+=PruningSchedule", "--trainer.callbacks.density=0.5",
    "--trainer.callbacks.criterion=random", "--trainer.callbacks.at=0it",
]  # fmt: skip


@pytest.fixture
def sparse_run(here, tiny) -> Path:
    """The best checkpoint of a sparse and rounded run."""
    resnet8 = ["--model.net.blocks=[1,1]", "--model.net.channels=[8,16]"]
    more = ["--data.train_size=1000", "--model.optimizer.lr=0.1", "--trainer.max_epochs=3"]
    run = tiny("fit", *SPARSE, *resnet8, *more, net="ResNet")
    assert main([*run, "--name=one"]) == 0
    return here / "lightning_logs/one/run-1/checkpoints/best.ckpt"


def test_every_reader_of_a_checkpoint_sees_the_network_of_the_row(here, tiny, sparse_run, capsys):
    """`load`, `validate`, `test` and Lightning's own validate agree; the stored network is the dense one, masked."""
    best = sparse_run
    row, (images, labels) = read_row(here / "lightning_logs/one/run-1"), validation()
    fake, net = smallnets.load(best), smallnets.load(best, rounded=False)
    assert isinstance(fake, FakeQuantized) and type(net) is ResNet
    assert {f"net.{name}" for name in net.state_dict()} == set(checkpoint(best)["state_dict"])
    load_masks(best).check(net)
    fake.requires_grad_(False)
    net.requires_grad_(False)
    logits = fake(images)
    assert float((logits.argmax(1) == labels).float().mean()) == pytest.approx(row["val_accuracy"], abs=1e-6)
    loss = float(cross_entropy(logits, labels))
    assert abs(loss - float(cross_entropy(net(images), labels))) > 1e-4  # it matters which of the two is seen

    capsys.readouterr()
    assert main(["validate", f"--ckpt_path={best}"]) == 0
    shown = capsys.readouterr().out
    assert f"accuracy {row['val_accuracy']:.6g}" in shown and f"loss {loss:.4g}"[:-1] in shown
    module = classifier(ResNet(num_classes=10, blocks=[1, 1], channels=[8, 16], in_channels=1))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (figures,) = trainer.validate(module, datamodule=digits(), ckpt_path=best, verbose=False)
    assert figures["val/loss"] == pytest.approx(loss, rel=1e-5)
    assert main(["test", f"--ckpt_path={best}"]) == 0
    data = digits()
    data.setup("test")
    right = [
        (fake(normalise(pixels, data.mean, data.std)).argmax(1) == known).float()
        for pixels, known, _ in data.test_dataloader()
    ]
    assert read_row(here / "lightning_logs/one/run-1")["test_accuracy"] == pytest.approx(float(torch.cat(right).mean()))

    # Kept by hand, or put into a Classifier, it is the rounded one still.
    again = smallnets.load(smallnets.save(fake, here / "again.ckpt", masks=load_masks(best)))
    assert torch.equal(again(images), logits) and equal(again.net.state_dict(), net.state_dict())
    wrapped = classifier(copy.deepcopy(fake)).eval()
    assert torch.equal(wrapped(images), logits) and type(wrapped.net) is ResNet
    assert count(fake, 8, 1).macs == count(net, 8, 1).macs

    # Trained on from the float weights, and as a teacher it is the rounded one.
    assert torch.equal(classifier(copy.deepcopy(net), init_from=str(best)).net.eval()(images), net(images))
    assert torch.equal(classifier(copy.deepcopy(net), teacher=str(best))._teacher[0](images), logits)
    saving = ["bench", f"--ckpt={best}", "--save"]
    for verb in (["curves", str(best)], ["connect", str(best), str(best)], saving):
        assert main(verb) == 2
        assert "trained with int8 numbers (QuantAwareTraining)" in capsys.readouterr().err


def test_scores_and_file_are_those_of_the_rounded_network(here, sparse_run, capsys):
    """`score` counts 8 bits; the file agrees with what was trained, and its zeros are at least the masks'."""
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    best = sparse_run
    fake, masks, (images, _) = smallnets.load(best), load_masks(best), validation()
    capsys.readouterr()
    assert main(["score", str(best), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["weight_bits"], scored["activation_bits"]) == (8, 8)
    zeros = sum(int((each == 0).sum()) for each in fake.snapped().parameters())
    assert scored["nonzero_parameters"] == scored["parameters"] - zeros
    assert scored["nonzero_parameters"] < count(fake.net, 8, 1).nonzero_parameters  # some were rounded to 0

    assert main(["export", str(best), "--output=a.onnx"]) == 2
    assert "is written as onnx, int8; asked for was onnx, fp32" in capsys.readouterr().err
    assert main(["export", str(best), "--output=net.onnx", "--dtype=int8", "--verify=full", "--calls=0"]) == 0
    shown = dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if "accuracy of" in line)
    row = read_row(here / "lightning_logs/one/run-1")
    assert float(shown["validation accuracy of the network"]) == pytest.approx(row["val_accuracy"], abs=1e-4)
    assert float(shown["validation accuracy of the file"]) == pytest.approx(row["val_accuracy"], abs=0.02)
    assert "network as trained, with int8 numbers" in (here / "net.onnx.md").read_text()
    agreement = compare_logits(fake, open_exported(here / "net.onnx", 1), images)
    assert agreement.relative < 0.02 and agreement.same_class > 0.98
    assert compare_logits(fake.net, open_exported(here / "net.onnx", 1), images).relative > agreement.relative

    stored = [onnx.numpy_helper.to_array(each) for each in onnx.load(here / "net.onnx").graph.initializer]
    whole = [each for each in stored if each.dtype == np.int8 and each.ndim >= 2]
    assert sum(each.size for each in whole) == masks.total
    for name, mask in masks.items():
        weight = fake.net.get_submodule(name.removesuffix(".weight")).weight.detach()
        scale = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
        numbers = (weight / torch.where(scale > 0, scale, 1)).round().abs().numpy()
        assert any(np.array_equal(abs(each), numbers) for each in whole), name
        assert not numbers[~mask.numpy()].any()


def test_best_is_chosen_among_the_rounded(here: Path, tmp_path: Path) -> None:
    saving = ModelCheckpoint(dirpath=tmp_path / "kept", monitor="val/loss", mode="max", filename="best")
    fit(classifier(resnet()), QuantAwareTraining(start="6it"), saving, max_epochs=2)
    # The untrained network's loss was the larger; it no longer counts.
    assert isinstance(smallnets.load(saving.best_model_path), FakeQuantized)


# -- two processes -----------------------------------------------------------------------------------------------------

RANKS = """
import torch
from lightning.pytorch.callbacks import Callback


class Ranks(Callback):
    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 1:
            self.before = module.fake_quantized.bounds.clone()
            self.seen = module.fake_quantized.ranges.seen.clone()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            self.after = module.fake_quantized.bounds.clone()

    def on_fit_end(self, trainer, module):
        saved = {"record": module.fake_quantized.record(), "net": module.net.state_dict()}
        saved |= {"before": self.before, "seen": self.seen, "after": self.after}
        torch.save(saved, f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.thorough
def test_two_processes_hold_the_same_ranges(here, tiny, own):
    """Ranges move towards the widest of both processes' batches."""
    (own / "ranks.py").write_text(RANKS)
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=20"]
    run = tiny("fit", *two, *options(start="1it", decay=0.5), "--trainer.callbacks+=ranks.Ranks", net="own_nets.Net")
    done = process([*run, "--name=whole"])
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(here / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert equal(a["record"], b["record"]) and equal(a["net"], b["net"])
    assert torch.equal(a["before"], b["before"]) and torch.equal(a["after"], b["after"])
    assert not torch.equal(a["seen"], b["seen"])
    widest = torch.maximum(a["seen"], b["seen"])
    assert torch.equal(a["after"], torch.lerp(widest, a["before"], 0.5))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "given", "message"),
    [
        (QuantAwareTraining("10it"), {}, r"start=10it is after the run's 10 steps"),
        (QuantAwareTraining(), {"precision": "bf16-mixed"}, r"--trainer.precision=bf16-mixed has rounded them already"),
    ],
)
def test_a_fit_is_refused(here: Path, callback: QuantAwareTraining, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(classifier(), callback, **given)


def test_other_refusals(here: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a time is a whole number with its unit"):
        QuantAwareTraining(start="5")
    with pytest.raises(UserError, match="decay must be at least 0 and below 1, got 1"):
        QuantAwareTraining(decay=1)
    with pytest.raises(UserError, match="calibration must be 1 or more, got 0"):
        QuantAwareTraining(calibration=0)
    with pytest.raises(UserError, match=r"--model.compile must be false"):
        fit(classifier(compile=True), QuantAwareTraining())
    lottery = LotteryTicket(rounds=1, epochs_per_round=1, fraction=0.2)
    with pytest.raises(UserError, match="QuantAwareTraining and LotteryTicket exclude each other in one run"):
        fit(classifier(), QuantAwareTraining(), lottery, max_epochs=2)
    with pytest.raises(UserError, match="QuantAwareTraining and ChannelPruning exclude each other in one run"):
        fit(classifier(), QuantAwareTraining(), ChannelPruning(ratio=0.2))
    sharded = type("Trainer", (), {"strategy": FSDPStrategy()})()
    with pytest.raises(UserError, match="QuantAwareTraining needs whole weights on every rank, FSDPStrategy"):
        QuantAwareTraining().setup(sharded, classifier(), "fit")
    saving = ModelCheckpoint(dirpath=tmp_path / "one", save_last=True)
    fit(classifier(), QuantAwareTraining(), saving, max_epochs=1)
    with pytest.raises(UserError, match=r"decay was 0.99, now 0.9"):
        fit(classifier(), QuantAwareTraining(decay=0.9), ckpt_path=saving.last_model_path)
    fit(classifier(), dense := ModelCheckpoint(dirpath=tmp_path / "dense", save_last=True), max_epochs=1)
    with pytest.raises(UserError, match=r"the checkpoint has none; for another start a new run: --model.init_from"):
        fit(classifier(), QuantAwareTraining(), ckpt_path=dense.last_model_path)
