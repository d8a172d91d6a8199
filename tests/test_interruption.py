"""The laws of interruption and of ranks, by killing processes and by running two of them."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smallnets.callbacks.checkpoint import RenamedCheckpointIO
from smallnets.cli import main
from smallnets.results import read_row, write_row

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")

# Everything that could draw otherwise after a resume: dropout and BatchNorm in the network, augmentation in batches and
# image by image, mixing, a schedule by the step with warm-up.
HARD = (
    "--data.augment=[crop,flip,trivialaugment]", "--model.mixup=0.2", "--model.cutmix=0.5", "--trainer.max_epochs=3",
    "--model.interval=step", "--model.warmup=4", "--model.scheduler=CosineAnnealingLR", "--model.scheduler.T_max=11",
)  # fmt: skip


def process(command: list[str], program: str | None = None) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, one thread, as a user starts it; or through another `program`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = ["-m", "smallnets"] if program is None else ["-c", program]
    return subprocess.run([sys.executable, *start, *command], env=env, capture_output=True, text=True)


def checkpoint(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def equal(a, b) -> bool:
    """Nested equality, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


SGD = ("--model.optimizer=SGD", "--model.optimizer.lr=0.02")


@pytest.mark.parametrize(
    ("net", "optimizer"),
    [("own_nets.Net", SGD), ("own_nets.Net", ["--model.optimizer=AdaBound"]), ("quaternion", SGD)],
)
def test_killed_at_a_random_step_and_resumed_it_ends_where_the_uninterrupted_run_ends(here, tiny, own, net, optimizer):
    """SIGKILL anywhere in 15 steps, last.ckpt every 2 and every epoch; all that a checkpoint holds is compared."""
    run = tiny("fit", *HARD, "--checkpoint_every=2", *optimizer, net=net)
    assert main([*run, "--name=whole"]) == 0

    # Not before the first checkpoint, which is written after step 2, behind the callback that kills.
    step = random.SystemRandom().randint(3, 14)
    kill = ["--trainer.callbacks+=own_nets.KillAt", f"--trainer.callbacks.step={step}"]
    died = process([*run, "--name=cut", *kill])
    assert died.returncode == -9, f"to be killed after step {step}: {died.stderr}"
    folder = here / "lightning_logs/cut/run-1"
    assert read_row(folder) is None, f"killed after step {step}: it must not look ended"
    stood = checkpoint(folder / "checkpoints/last.ckpt")["global_step"]
    assert stood <= step, f"killed after step {step}"

    assert main([*run, "--name=cut", "--ckpt_path=last"]) == 0, f"killed after step {step}, resumed from step {stood}"
    a = checkpoint(here / "lightning_logs/whole/run-1/checkpoints/last.ckpt")
    b = checkpoint(folder / "checkpoints/last.ckpt")
    where = f"killed after step {step}, resumed from step {stood}"
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets"):
        assert equal(a[part], b[part]), f"{part} differs: {where}"
    whole, cut = read_row(here / "lightning_logs/whole/run-1"), read_row(folder)
    for figure in ("val_accuracy", "val_accuracy_last", "val_loss_last", "train_loss_last", "train_accuracy_last"):
        assert whole[figure] == cut[figure], f"{figure} differs: {where}"
    rows = [(here / f"lightning_logs/{n}/run-1/metrics.csv").read_text() for n in ("whole", "cut")]
    assert rows[0] == rows[1], where


def test_a_run_ended_by_max_steps_within_an_epoch_goes_on_with_the_next_batch(here, tiny, own):
    run = tiny("fit", *HARD, net="own_nets.Net")
    assert main([*run, "--name=whole"]) == 0
    assert main([*run, "--name=cut", "--trainer.max_steps=7"]) == 0
    assert main([*run, "--name=cut", "--ckpt_path=last"]) == 0
    whole, again = (checkpoint(here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt") for n in ("whole", "cut"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert equal(whole[part], again[part]), part


def test_resuming_a_run_that_has_ended_changes_nothing(here, tiny, capsys):
    assert main(tiny("fit", "--name=one")) == 0
    folder = here / "lightning_logs/one/run-1"
    row, weights = read_row(folder), checkpoint(folder / "checkpoints/last.ckpt")
    assert main(tiny("fit", "--name=one", "--ckpt_path=last")) == 0
    assert "has its 2 epochs" in capsys.readouterr().out
    assert read_row(folder) == row
    assert main(tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=3")) == 0
    more = checkpoint(folder / "checkpoints/last.ckpt")
    assert (weights["epoch"], more["epoch"]) == (1, 2)
    assert read_row(folder)["epochs"] == 3


def test_a_run_that_had_ended_and_is_killed_while_trained_on_does_not_look_ended(here, tiny, own):
    assert main(tiny("fit", "--name=one", net="own_nets.Net")) == 0
    assert main(["test", "--ckpt_path", "lightning_logs/one/run-1/checkpoints/best.ckpt"]) == 0
    kill = ["--trainer.callbacks+=own_nets.KillAt", "--trainer.callbacks.step=12"]
    more = tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=3", net="own_nets.Net")
    assert process([*more, *kill]).returncode == -9
    row = read_row(here / "lightning_logs/one/run-1")
    assert (row["status"], row["test_reads"]) == ("running", 1)
    assert main(more) == 0
    row = read_row(here / "lightning_logs/one/run-1")
    assert (row["status"], row["test_reads"], row["epochs"]) == ("finished", 1, 3)


def test_killed_between_its_last_checkpoint_and_its_row_the_row_is_made_on_resume(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    folder = here / "lightning_logs/one/run-1"
    row = read_row(folder)
    (folder / "row.json").unlink()
    assert main(tiny("fit", "--name=one", "--ckpt_path=last")) == 0
    again = read_row(folder)
    for name in ("val_accuracy", "val_accuracy_last", "train_loss_last", "epochs", "steps", "status", "config_digest"):
        assert again[name] == row[name], name


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io = RenamedCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def breaks(value, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_row_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_row(tmp_path, {"status": "finished"})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_row(tmp_path, {"status": "failed"})
    assert read_row(tmp_path)["status"] == "finished"


@pytest.mark.thorough
def test_two_processes_share_an_epoch_and_hold_the_same(here, tiny, own, tmp_path):
    """DDP on two gloo processes: each image once an epoch, the same split, the same weights, and resume is exact."""
    out = tmp_path / "ranks"
    out.mkdir()
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    hashes = ("--trainer.callbacks+=own_nets.RankHashes", f"--trainer.callbacks.folder={out}")
    run = tiny("fit", *HARD, *two, *hashes, "--data.batch_size=21", net="own_nets.Net")
    done = process([*run, "--name=whole"])
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(out / f"rank{r}.pt") for r in (0, 1))
    assert equal(a["split"], b["split"])
    assert equal(a["state"], b["state"])
    batches = len(a["seen"]) // 3
    for epoch in range(3):
        part = slice(epoch * batches, (epoch + 1) * batches)
        seen = [i for rank in (a, b) for batch in rank["seen"][part] for i in batch]
        assert len(seen) == 200 == len(set(seen))

    cut = process([*run, "--name=cut", "--trainer.max_steps=7"])
    assert cut.returncode == 0, cut.stderr
    assert checkpoint(here / "lightning_logs/cut/run-1/checkpoints/last.ckpt")["global_step"] == 7
    resumed = process([*run, "--name=cut", "--ckpt_path=last"])
    assert resumed.returncode == 0, resumed.stderr
    whole, again = (checkpoint(here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt") for n in ("whole", "cut"))
    assert whole["global_step"] == again["global_step"] == 15
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(whole[part], again[part]), part


MASKS = ("PruningSchedule", "density=0.1", "curve=cubic", "start=1it", "end=8it", "every=3it")  # at steps 4, 7 and 8
CHANNELS = ("ChannelPruning", "ratio=0.5", "rounds=2", "every=1ep")  # at steps 5 and 10


KEEPS = """
import shutil
from lightning.pytorch.callbacks import Callback

class Keeps(Callback):
    "A copy of the checkpoint of step 6, as a run that was killed after step 7 leaves it."

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 7 and trainer.is_global_zero:
            shutil.copy("lightning_logs/whole/run-1/checkpoints/last.ckpt", "six.ckpt")
"""


@pytest.mark.thorough
@pytest.mark.parametrize("pruning", [MASKS, CHANNELS], ids=["masks", "channels"])
def test_two_processes_resumed_within_a_schedule_end_where_the_uninterrupted_ones_end(here, tiny, own, pruning):
    """Resumed from step 6: one change is behind them, and one or two are ahead."""
    (own / "keeps.py").write_text(KEEPS)
    name, *options = pruning
    run = tiny(
        "fit", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=20", "--trainer.max_epochs=3",
        "--checkpoint_every=6", f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{each}" for each in options),
        net="own_nets.Net",
    )  # fmt: skip
    for more in (["--name=whole", "--trainer.callbacks+=keeps.Keeps"], ["--name=cut", "--ckpt_path=six.ckpt"]):
        done = process([*run, *more])
        assert done.returncode == 0, done.stderr
    assert checkpoint(here / "six.ckpt")["global_step"] == 6
    cut, whole = (checkpoint(here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt") for n in ("cut", "whole"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets"):
        assert equal(cut[part], whole[part]), part
    rows = [read_row(here / f"lightning_logs/{each}/run-1") for each in ("cut", "whole")]
    assert rows[0]["pruning"] == rows[1]["pruning"]
    assert [each["step"] for each in rows[0]["pruning"][0]["rounds"]] == ([4, 7, 8] if pruning is MASKS else [5, 10])
