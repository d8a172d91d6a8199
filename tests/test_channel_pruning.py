"""The ChannelPruning callback in runs: counts, checkpoints, interruption, second fits, ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

import smallnets
from smallnets import models
from smallnets.callbacks import ChannelPruning
from smallnets.cli import main
from smallnets.data import Digits
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.results import read_row
from smallnets.training.classifier import Classifier

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")

# A ResNet of 5,122 parameters on 8x8 digits. Pruned, its stages are 8 and 10 channels wide and 6 and 12 within: with
# BatchNorm 88 (stem) + 444 + 448 + 888 + 1,100 + 100 (shortcut) + 110 (head) = 3,178 are left.
NET = ("--model.net.blocks=[1,1]", "--model.net.channels=[8,16]")
RATIOS = '{"stages.*.conv1": 0.3, "stages.1.0.conv2": 0.4}'
PRUNE = ("--trainer.callbacks+=ChannelPruning", f"--trainer.callbacks.ratios={RATIOS}")
HARD = (
    "--data.augment=[crop]", "--trainer.max_epochs=3", "--model.interval=step", "--model.warmup=2",
    "--model.scheduler=CosineAnnealingLR", "--model.scheduler.T_max=13",
)  # fmt: skip


def process(command: list[str]) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "smallnets", *command], env=env, capture_output=True, text=True)


def checkpoint(name: str, which: str = "last") -> dict[str, Any]:
    return torch.load(Path(f"lightning_logs/{name}/run-1/checkpoints/{which}.ckpt"), weights_only=True)


def equal(a: Any, b: Any) -> bool:
    """Nested equality, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


def state_of(saved: dict[str, Any]) -> dict[str, Any]:
    """The state that ChannelPruning left in a checkpoint."""
    return next(state for key, state in saved["callbacks"].items() if key.startswith("ChannelPruning"))


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_trains_tests_and_records_the_pruned_network(here, tiny, capsys):
    budget = ("--trainer.callbacks+=ParameterBudget", "--trainer.callbacks.parameters=3178")
    assert main(tiny("fit", *NET, *budget, *PRUNE, "--name=one", net="ResNet")) == 0
    assert "ChannelPruning: 5,122 -> 3,178 parameters" in capsys.readouterr().out
    row = read_row(here / "lightning_logs/one/run-1")
    net = smallnets.load(here / "lightning_logs/one/run-1/checkpoints/last.ckpt")
    counts = count(net, image_size=8, in_channels=1)
    assert row["parameters"] == counts.parameters == 3_178
    assert (row["macs"], row["bytes"]) == (counts.macs, counts.bytes)
    assert (net.conv1.out_channels, net.stages[1][0].conv1.out_channels, net.head.in_features) == (8, 12, 10)

    record = state_of(checkpoint("one"))["record"]
    assert record["before"]["parameters"] == 5_122 and record["after"]["parameters"] == 3_178
    assert record["after"]["macs"] == counts.macs < record["before"]["macs"]
    assert record["ratios"] == {"stages.*.conv1": 0.3, "stages.1.0.conv2": 0.4} and record["criterion"] == "l1"
    trained = checkpoint("one")["optimizer_states"][0]["state"]
    assert [s["momentum_buffer"].shape for s in trained.values()] == [p.shape for p in net.parameters()]

    assert main(tiny("test", *NET, *PRUNE, "--name=one", net="ResNet")) == 0
    row = read_row(here / "lightning_logs/one/run-1")
    assert row["test_reads"] == 1 and row["parameters"] == 3_178
    # Outside a fit nothing is pruned, and the file alone says what the network is.
    assert main(tiny("validate", *NET, "--name=one", net="ResNet")) == 0


def test_a_budget_counts_the_pruned_network_once_all_pruning_is_done(here, tiny, capsys):
    more = ("--trainer.callbacks+=ChannelPruning", '--trainer.callbacks.ratios={"stages.0.0.conv2": 0.5}')
    for limit, code in ((2_222, 0), (2_221, 1)):
        budget = ("--trainer.callbacks+=ParameterBudget", f"--trainer.callbacks.parameters={limit}")
        assert main(tiny("fit", *NET, *PRUNE, *budget, *more, f"--name=b{limit}", net="ResNet")) == code
    assert "parameters 2,222 > limit 2,221" in capsys.readouterr().err
    assert len([k for k in checkpoint("b2222")["callbacks"] if k.startswith("ChannelPruning")]) == 2


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_the_seed_alone_decides(here, tiny, criterion):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = (f"--trainer.callbacks.criterion={criterion}", f"--seed_everything={seed}", f"--name={name}")
        assert main(tiny("fit", *NET, *PRUNE, *options, "--trainer.max_epochs=1", net="ResNet")) == 0
    a, b, c = (checkpoint(name)["state_dict"] for name in "abc")
    assert equal(a, b) and not equal(a, c)


def test_fine_tuning_starts_from_a_pruned_network_and_prunes_it_further(here, tiny):
    assert main(tiny("fit", *NET, *PRUNE, "--name=one", net="ResNet")) == 0
    path = here / "lightning_logs/one/run-1/checkpoints/best.ckpt"
    assert main(tiny("fit", *NET, f"--model.init_from={path}", "--name=two", net="ResNet")) == 0
    assert read_row(here / "lightning_logs/two/run-1")["parameters"] == 3_178
    assert main(tiny("fit", *NET, *PRUNE, f"--model.init_from={path}", "--name=three", net="ResNet")) == 0
    assert smallnets.load(here / "lightning_logs/three/run-1/checkpoints/last.ckpt").head.in_features == 6


# -- interruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--trainer.callbacks.criterion=random",),
        ("--model.channels_last=true", "--model.optimizer=RMSprop", "--model.optimizer.lr=0.001"),
        ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.5"),
    ],
    ids=["l1", "random", "channels_last", "EMA"],
)
def test_a_resumed_run_ends_where_the_uninterrupted_one_ends_and_is_not_pruned_twice(here, tiny, more):
    run = tiny("fit", *NET, *HARD, *PRUNE, *more, net="ResNet")
    assert main([*run, "--name=whole"]) == 0
    assert main([*run, "--name=cut", "--trainer.max_steps=7"]) == 0
    assert checkpoint("cut")["global_step"] == 7
    assert main([*run, "--name=cut", "--ckpt_path=last"]) == 0
    a, b = checkpoint("whole"), checkpoint("cut")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets"):
        assert equal(a[part], b[part]), part
    assert equal(state_of(a), state_of(b))
    assert b["state_dict"]["net.head.weight"].shape == (10, 10)
    assert read_row(here / "lightning_logs/cut/run-1")["parameters"] == 3_178


@pytest.mark.filterwarnings("default:Be aware that when using `ckpt_path`")  # it names the callback that is missing
def test_widths_come_from_the_checkpoint_also_without_the_callback(here, tmp_path):
    made, module = trainer(tmp_path, ChannelPruning({"stages.1.0.conv2": 0.4})), Classifier(net())
    made.fit(module, datamodule=digits())
    made.save_checkpoint("one.ckpt")
    again, more = Classifier(net()), trainer(tmp_path)
    more.fit_loop.max_epochs = 2
    more.fit(again, datamodule=digits(), ckpt_path="one.ckpt")
    assert shapes(again.net) == shapes(module.net) and again.net.head.in_features == 10


@pytest.mark.filterwarnings("default:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("first", [(), PRUNE])
def test_a_resumed_run_cannot_be_pruned_otherwise(here, tiny, capsys, first):
    assert main(tiny("fit", *NET, *first, "--name=one", net="ResNet")) == 0
    other = ("--trainer.callbacks+=ChannelPruning", '--trainer.callbacks.ratios={"conv1": 0.5}')
    again = tiny("fit", *NET, *other, "--name=one", "--ckpt_path=last", "--trainer.max_epochs=3", net="ResNet")
    assert main(again) == 2
    said = "was not pruned by ChannelPruning with these ratios" if first else "trainer.callbacks was None, now Channel"
    assert said in capsys.readouterr().err


# -- in Python ---------------------------------------------------------------------------------------------------------


def trainer(tmp_path: Path, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip


def digits() -> Digits:
    return Digits(image_size=8, in_channels=1, train_size=80, batch_size=40)


def net() -> models.ResNet:
    return models.ResNet(blocks=[1, 1], channels=[8, 16], in_channels=1)


def test_fit_twice(tmp_path):
    callback = ChannelPruning({"stages.1.0.conv2": 0.4})
    module = Classifier(net())
    made = trainer(tmp_path, callback)
    made.fit(module, datamodule=digits())
    once, record = shapes(module.net), callback.record
    assert module.net.head.in_features == 10
    trained = {id(p) for group in made.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.net.parameters()}

    trainer(tmp_path, callback).fit(module, datamodule=digits())
    assert shapes(module.net) == once and callback.record == record
    # Another network is pruned by the same callback, and the same network by another one.
    other = Classifier(net())
    trainer(tmp_path, callback).fit(other, datamodule=digits())
    assert shapes(other.net) == once
    trainer(tmp_path, ChannelPruning({"stages.1.0.conv2": 0.4})).fit(module, datamodule=digits())
    assert module.net.head.in_features == 6


def test_a_module_takes_the_widths_of_a_state():
    narrow, wide = Classifier(net()), Classifier(net())
    smallnets.pruning.prune_layers(narrow.net, {"stages.*.conv?": 0.3}, image_size=8, in_channels=1)
    wide.load_state_dict(narrow.state_dict())
    assert equal(dict(wide.state_dict()), dict(narrow.state_dict()))
    with pytest.raises(UserError, match=r"the network has no place for 'stages\.0\.1"):
        wide.load_state_dict(Classifier(models.resnet20(in_channels=1)).state_dict())


def test_wrong_use(tmp_path):
    with pytest.raises(UserError, match="needs ratios"):
        ChannelPruning({})
    with pytest.raises(UserError, match=r"ratio of 'conv1' must be .* got 1.5"):
        ChannelPruning({"conv1": 1.5})
    with pytest.raises(UserError, match="criterion must be one of l1, l2, random, fpgm"):
        ChannelPruning({"conv1": 0.5}, criterion="bn")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="matches none of"):
        trainer(tmp_path, ChannelPruning({"conv9": 0.5})).fit(Classifier(net()), datamodule=digits())
    data = digits()
    data.prepare_data()
    data.setup("fit")
    loaders = data.train_dataloader(), data.val_dataloader()
    with pytest.raises(UserError, match="ChannelPruning needs a data module"):
        trainer(tmp_path, ChannelPruning({"conv1": 0.5})).fit(Classifier(net()), *loaders)


@pytest.mark.parametrize(("name", "said"), [("conv9", "'conv9' matches none"), ("head", "head cannot lose channels")])
def test_a_mistake_in_the_ratios_ends_the_command_with_one_message(here, tiny, capsys, name, said):
    prune = ("--trainer.callbacks+=ChannelPruning", f'--trainer.callbacks.ratios={{"{name}": 0.5}}')
    assert main(tiny("fit", *NET, *prune, "--name=one", net="ResNet")) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


# -- ranks -------------------------------------------------------------------------------------------------------------

UNLIKE = '''
import torch
from lightning.pytorch.callbacks import Callback


class Unlike(Callback):
    """On every rank another network to begin with, so that each would choose other channels."""

    def setup(self, trainer, module, stage):
        torch.manual_seed(trainer.global_rank)
        for value in module.net.parameters():
            torch.nn.init.uniform_(value, -1, 1)
'''


def test_two_ranks_hold_the_same_pruned_network(here, tiny, own, tmp_path):
    """In two forked processes, as in a notebook; what they trained comes back to a parent that has pruned nothing."""
    (own / "unlike.py").write_text(UNLIKE)
    run = tiny(
        "fit", *NET, "--trainer.callbacks+=unlike.Unlike", *PRUNE, "--trainer.callbacks+=own_nets.RankHashes",
        f"--trainer.callbacks.folder={tmp_path}", "--trainer.devices=2", "--trainer.strategy=ddp_fork",
        "--data.batch_size=20", "--name=one", net="ResNet",
    )  # fmt: skip
    for more in ([], ["--ckpt_path=last", "--trainer.max_epochs=3"]):
        done = process([*run, *more])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("ChannelPruning: ") == 1, "rank 0 alone speaks"
        a, b = (torch.load(tmp_path / f"rank{rank}.pt")["state"] for rank in (0, 1))
        assert equal(a, b) and a["head.weight"].shape == (10, 10)
        assert read_row(here / "lightning_logs/one/run-1")["parameters"] == 3_178
