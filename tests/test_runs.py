"""A run from end to end: folder, row, checkpoint, test figure, resume."""

import csv
import hashlib
import json
import struct
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import smallnets
from smallnets.callbacks import record
from smallnets.cli import main
from smallnets.data import Digits
from smallnets.data.digits import SklearnDigits
from smallnets.results import read_row
from smallnets.results.load import CHECKPOINT_KEY
from smallnets.results.provenance import git_state

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def test_a_run_leaves_its_folder(here, tiny, capsys):
    assert main(tiny("fit", "--name=one", "--seed_everything=3")) == 0
    run = here / "lightning_logs/one/run-1"
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "row.json"} <= names
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    row = json.loads((run / "row.json").read_text())
    assert row["net"] == "lenet_12"
    # 64 -> 12 -> 10 -> 10 on 8x8 digits: weights and biases, worked out by hand.
    assert row["parameters"] == row["nonzero_parameters"] == 64 * 12 + 12 + 12 * 10 + 10
    assert row["macs"] == 64 * 12 + 12 * 10
    assert row["bytes"] == 4 * row["parameters"]
    assert (row["seed"], row["status"], row["epochs"], row["steps"]) == (3, "finished", 2, 10)
    assert row["test_accuracy"] is None and row["test_reads"] == 0
    assert 0 <= row["val_accuracy"] <= 1 and row["seconds"] > 0 and row["images_per_second"] > 0
    out = capsys.readouterr().out
    assert "epoch 1/2" in out and "epoch 2/2" in out

    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows if r["train/loss"]] == ["4", "9"]
    best = max(float(r["val/accuracy"]) for r in rows if r["val/accuracy"])
    assert row["val_accuracy"] == pytest.approx(best, abs=1e-6)


def test_the_revision_is_gits():
    here = Path(__file__).parent
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    assert git_state()["revision"] == (asked.stdout.strip() if asked.returncode == 0 else None)


def test_a_row_says_where_its_figures_came_from(here, tiny, monkeypatch):
    """Configuration, code, versions, device, data, split, each seed, the rule of selection, both kinds of seconds."""
    trained = here / "lightning_logs/one/run-1/checkpoints/last.ckpt"
    monkeypatch.setattr(record, "git_state", lambda: {"revision": "end" if trained.exists() else "start"})
    more = ["--seed_everything=3", "--data.split_seed=7", "--data.order_seed=5", "--data.eval_batch_size=40"]
    assert main(tiny("fit", "--name=one", *more, "--trainer.limit_val_batches=2")) == 0
    row = read_row(here / "lightning_logs/one/run-1")
    assert row["schema"] == 2 and row["config"]["data"]["init_args"]["order_seed"] == 5
    assert row["git"] == {"revision": "start"}, "the run has loaded the code that was there then"
    assert row["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (row["device"], row["threads"], row["test_reads"]) == ("cpu", torch.get_num_threads(), 0)
    assert row["seeds"] == {"split": 7, "init": 3, "order": 5, "augment": 3, "mask": 3}
    assert (row["train_size"], row["val_size"]) == (200, 80), "two batches of 40 were validated on, not 150 images"
    assert row["selection"] == "the highest val_accuracy, the latest of equals"
    # One thread cannot work for longer than the wall's clock runs (15 ms is a coarse clock's step).
    assert 0 < row["device_seconds"] <= row["seconds"] + 0.015

    data = Digits(split_seed=7, train_size=200, image_size=8, in_channels=1)
    data.setup("fit")
    train, val = (sorted(indices) for indices in (data._parts.train_indices, data._parts.val_indices))
    packed = b"".join(struct.pack(f"<q{len(part)}q", len(part), *part) for part in (train, val))
    assert row["split_digest"] == hashlib.sha256(packed).hexdigest() and row["data_digest"] == data.digest

    assert main(tiny("fit", "--name=two", *more, "--data.split_seed=8", "--trainer.enable_checkpointing=false")) == 0
    other = read_row(here / "lightning_logs/two/run-1")
    assert other["split_digest"] != row["split_digest"] and other["val_size"] == 150
    assert other["selection"] == "the last epoch"


def test_the_saved_config_runs_again_and_gives_the_same_weights(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    config = here / "lightning_logs/one/run-1/config.yaml"
    assert main(["fit", "--config", str(config)]) == 0
    a, b = (smallnets.load(here / f"lightning_logs/one/run-{n}/checkpoints/last.ckpt") for n in (1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    rows = [read_row(here / f"lightning_logs/one/run-{n}") for n in (1, 2)]
    assert rows[0]["config_digest"] == rows[1]["config_digest"]
    assert main(["fit", "--config", str(config), "--seed_everything=1"]) == 0
    assert read_row(here / "lightning_logs/one/run-3")["config_digest"] != rows[0]["config_digest"]


def test_test_reads_the_test_set_once_and_of_the_best_checkpoint(here, tiny, capsys, monkeypatch):
    assert main(tiny("fit", "--name=one", "--trainer.max_epochs=4")) == 0
    folder = here / "lightning_logs/one/run-1"
    reads = []
    read = SklearnDigits.read
    monkeypatch.setattr(SklearnDigits, "read", lambda self, part: reads.append(part) or read(self, part))
    assert main(tiny("test", "--name=one")) == 0
    assert reads.count("test") == 1
    row = read_row(folder)
    assert row["test_reads"] == 1 and row["test_size"] == 299

    # The figure, worked out without the trainer.
    net = smallnets.load(folder / "checkpoints/best.ckpt")
    data = Digits(image_size=8, in_channels=1, train_size=200)
    data.setup("test")
    hits = 0
    for batch in data.test_dataloader():
        images, labels = data.on_after_batch_transfer(batch, 0)
        hits += int((net(images).argmax(1) == labels).sum())
    assert row["test_accuracy"] == round(float(torch.tensor(hits / 299)), 6)

    # Asked again: the row's figure, and no image read.
    reads.clear()
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(folder / "checkpoints/best.ckpt")]) == 0
    assert "test" not in reads
    assert f"test accuracy {row['test_accuracy']}" in capsys.readouterr().out
    assert read_row(folder)["test_reads"] == 1


def test_a_checkpoint_without_a_row_gets_one_when_it_is_tested(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    finished = read_row(here / "lightning_logs/one/run-1")
    (here / "lightning_logs/one/run-1/row.json").unlink()
    assert main(tiny("test", "--name=one")) == 0
    row = read_row(here / "lightning_logs/one/run-1")
    assert set(finished) - set(row) <= {k for k in finished if k.endswith("_last")} | {"health"}
    assert (row["status"], row["test_reads"], row["val_accuracy"]) == ("unfinished", 1, None)
    assert row["parameters"] == finished["parameters"] and row["test_accuracy"] is not None


def test_a_second_checkpoint_of_a_run_is_not_tested_unasked(here, tiny, capsys):
    assert main(tiny("fit", "--name=one", "--trainer.max_epochs=3", "--model.optimizer.lr=0.5")) == 0
    folder = here / "lightning_logs/one/run-1"
    assert main(tiny("test", "--name=one", "--ckpt_path=best")) == 0
    first = read_row(folder)["test_accuracy"]
    # Another file of the same run: the best network with one weight changed.
    other = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    next(iter(other["state_dict"].values())).add_(1)
    torch.save(other, folder / "checkpoints/other.ckpt")
    assert main(["test", "--ckpt_path", str(folder / "checkpoints/other.ckpt")]) == 1
    assert "another checkpoint" in capsys.readouterr().err
    assert read_row(folder)["test_accuracy"] == first
    assert main(["test", "--ckpt_path", str(folder / "checkpoints/other.ckpt"), "--reread_test=true"]) == 0
    assert read_row(folder)["test_reads"] == 2


def test_fit_and_validate_never_read_the_test_part(here, tiny, monkeypatch):
    reads = []
    read = SklearnDigits.read
    monkeypatch.setattr(SklearnDigits, "read", lambda self, part: reads.append(part) or read(self, part))
    assert main(tiny("fit", "--name=one")) == 0
    assert main(tiny("validate", "--name=one")) == 0
    assert main(tiny("predict", "--name=one")) == 0
    assert set(reads) == {"train"}
    with (here / "lightning_logs/one/run-1/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 150 and set(rows[0]) == {"image", "label", "prediction", "probability"}


def test_the_checkpoint_law(here, tiny, own):
    """weights_only, rebuilt from the file alone, logits bitwise equal; a user's own class too."""
    assert main(tiny("fit", "--name=one", net="own_nets.Net")) == 0
    path = here / "lightning_logs/one/run-1/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint[CHECKPOINT_KEY]["net"] == {
        "class_path": "own_nets.Net",
        "init_args": {"num_classes": 10, "in_channels": 1, "width": 8, "drop": 0.3},
    }
    import own_nets

    reference = own_nets.Net(10)
    reference.load_state_dict({k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items()})
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smallnets.load(path)(images), reference.eval()(images))


def test_a_class_whose_arguments_cannot_be_read_back_says_so(here, tiny, own):
    import own_nets

    assert main(tiny("fit", "--name=one", net="own_nets.Opaque")) == 0
    path = here / "lightning_logs/one/run-1/checkpoints/last.ckpt"
    with pytest.raises(smallnets.UserError, match="does not say how its network was built"):
        smallnets.load(path)
    loaded = smallnets.load(path, net=own_nets.Opaque(10))
    assert loaded.body[0].out_channels == 8


def test_fine_tuning_starts_from_a_checkpoint(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    best = here / "lightning_logs/one/run-1/checkpoints/best.ckpt"
    command = tiny(
        "fit", "--name=two", f"--model.init_from={best}", "--model.optimizer.lr=1e-30", "--trainer.max_epochs=1"
    )
    assert main(command) == 0
    a, b = smallnets.load(best), smallnets.load(here / "lightning_logs/two/run-1/checkpoints/last.ckpt")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_distillation_and_mixing_run_from_the_command_line(here, tiny):
    assert main(tiny("fit", "--name=teacher")) == 0
    teacher = here / "lightning_logs/teacher/run-1/checkpoints/best.ckpt"
    command = tiny("fit", "--name=student", f"--model.teacher={teacher}", "--model.mixup=0.2", "--model.cutmix=1.0")
    assert main(command) == 0
    student = torch.load(here / "lightning_logs/student/run-1/checkpoints/last.ckpt", weights_only=True)
    assert not [k for k in student["state_dict"] if "teacher" in k]


def test_a_failed_run_leaves_a_row_that_says_so(here, tiny, capsys):
    command = tiny("fit", "--name=one", "--model.optimizer.lr=1e30", "--health.check_every=1")
    assert main(command) == 1
    row = read_row(here / "lightning_logs/one/run-1")
    assert row["status"] == "failed" and row["error"]
    assert row["val_accuracy"] is None


def test_a_budget_stops_the_run_before_its_first_step(here, tiny, capsys):
    command = tiny("fit", "--name=one", "--trainer.callbacks+=ParameterBudget", "--trainer.callbacks.parameters=900")
    assert main(command) == 1
    assert "910 > limit 900" in capsys.readouterr().err
    row = read_row(here / "lightning_logs/one/run-1")
    assert row["status"] == "failed" and row["steps"] == 0


def test_two_runs_never_share_a_folder(here, tiny):
    from smallnets.results import RunFolder

    folders = {RunFolder.claim(Path("logs"), "a", None).run for _ in range(3)}
    assert folders == {"run-1", "run-2", "run-3"}
    assert main(tiny("fit", "--name=one", "--run=mine")) == 0
    assert main(tiny("fit", "--name=one", "--run=mine")) == 2


def test_print_config_is_complete_yaml(here, tiny, capsys):
    with pytest.raises(SystemExit) as stop:
        main(tiny("fit", "--print_config"))
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["net"]["class_path"] == "smallnets.models.LeNet"
    assert config["trainer"]["max_epochs"] == 2


def test_the_best_checkpoint_is_the_latest_of_equals_and_of_a_validated_epoch(here, tiny):
    """At a rate of 0 every epoch validates alike; of four epochs the second and the fourth are validated."""
    run = tiny(
        "fit", "--name=one", "--model.optimizer.lr=0", "--trainer.max_epochs=5", "--trainer.check_val_every_n_epoch=2"
    )
    assert main(run) == 0
    best = torch.load(here / "lightning_logs/one/run-1/checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == 3


@pytest.mark.parametrize("off", ["--trainer.logger=false", "--trainer.enable_checkpointing=false"])
def test_a_run_without_loggers_or_checkpoints_still_leaves_its_row(off, here, tiny):
    assert main(tiny("fit", "--name=one", off)) == 0
    folder = here / "lightning_logs/one/run-1"
    assert read_row(folder)["status"] == "finished"
    assert (folder / "metrics.csv").exists() == ("logger" not in off)
    assert (folder / "checkpoints/best.ckpt").exists() == ("logger" in off)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
def test_a_trainer_of_ones_own_without_a_data_module(tmp_path):
    """As in a notebook: plain loaders, the record and health as callbacks, a checkpoint that loads."""
    import lightning as L

    from smallnets.callbacks import Health
    from smallnets.callbacks.record import RunRecord
    from smallnets.models import lenet_12
    from smallnets.training import Classifier

    torch.manual_seed(0)
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
    batches = DataLoader(TensorDataset(images, labels), batch_size=16)
    net = lenet_12(in_channels=1, image_size=8)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Health(), RunRecord(tmp_path / "run")],
    )  # fmt: skip
    trainer.fit(Classifier(net), batches, batches)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    same = smallnets.load(tmp_path / "mine.ckpt")
    assert torch.equal(same(images), net.eval()(images))
    row = read_row(tmp_path / "run")
    assert (row["net"], row["parameters"], row["data"], row["status"]) == ("lenet_12", 910, None, "finished")


def test_a_resumed_run_refuses_other_settings(here, tiny, capsys):
    assert main(tiny("fit", "--name=one")) == 0
    more = tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=3", "--model.optimizer.lr=0.3")
    assert main(more) == 2
    assert "model.optimizer.lr was 0.02, now 0.3" in capsys.readouterr().err
    assert read_row(here / "lightning_logs/one/run-1")["epochs"] == 2


def test_a_runs_own_config_means_that_run(here, tiny, capsys):
    """Not the newest of its name."""
    for seed in (0, 1):
        assert main(tiny("fit", "--name=one", f"--seed_everything={seed}")) == 0
    assert main(["test", "--config", "lightning_logs/one/run-1/config.yaml"]) == 0
    assert [read_row(here / f"lightning_logs/one/run-{n}")["test_reads"] for n in (1, 2)] == [1, 0]


def test_another_split_is_not_tested(here, tiny, capsys):
    assert main(tiny("fit", "--name=one")) == 0
    assert main(tiny("test", "--name=one", "--data.split_seed=7")) == 2
    assert "--data.split_seed=0" in capsys.readouterr().err
    assert read_row(here / "lightning_logs/one/run-1")["test_reads"] == 0


def test_part_of_the_test_set_is_no_test_figure(here, tiny, capsys):
    assert main(tiny("fit", "--name=one")) == 0
    assert main(tiny("test", "--name=one", "--trainer.limit_test_batches=1")) == 2
    assert read_row(here / "lightning_logs/one/run-1")["test_reads"] == 0


def test_a_figure_of_a_network_that_is_no_longer_the_runs_is_not_kept(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    assert main(tiny("test", "--name=one")) == 0
    assert main(tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=6")) == 0
    row = read_row(here / "lightning_logs/one/run-1")
    assert (row["test_accuracy"], row["test_reads"]) == (None, 1)
    assert main(tiny("test", "--name=one")) == 1
    assert main(tiny("test", "--name=one", "--reread_test=true")) == 0
    assert read_row(here / "lightning_logs/one/run-1")["test_reads"] == 2


def test_an_optimizer_that_refuses_its_settings_says_so(here, tiny, capsys):
    assert main(tiny("fit", "--name=one", "--model.optimizer.lr=-1")) == 2
    assert "--model.optimizer: Invalid learning rate" in capsys.readouterr().err


def test_a_resume_without_the_callback_that_pruned_is_refused(here, tiny, capsys):
    prune = ["--trainer.callbacks+=PruningSchedule", "--trainer.callbacks.density=0.5", "--trainer.callbacks.at=0it"]
    assert main(tiny("fit", "--name=one", *prune)) == 0
    assert main(tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=3")) == 2
    assert "trainer.callbacks was PruningSchedule, now None" in capsys.readouterr().err
    more = [*prune, "--trainer.callbacks+=ParameterBudget", "--trainer.callbacks.parameters=5M"]
    assert main(tiny("fit", "--name=one", "--ckpt_path=last", "--trainer.max_epochs=3", *more)) == 0
