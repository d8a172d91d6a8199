"""A user's mistake gets one or two lines in the user's own spelling, the right exit code, and leaves nothing behind."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smallnets.cli import main

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")

# options -> exit code, what the message must say (regular expression)
MISTAKES = {
    "verb": (["fti"], 2, "no verb 'fti'; did you mean 'fit'"),
    "network": (["--model.net=resnet21"], 2, "no network is called 'resnet21'; nearest: .*'resnet20'"),
    "module": (["--model.net=mynets.Net"], 2, "--model.net=mynets.Net: No module named 'mynets'"),
    "class": (["--model.net=smallnets.models.Resnet"], 2, "no attribute 'Resnet'; nearest: .*smallnets.models.ResNet"),
    "network option": (["--model.net.widths=3"], 2, "--model.net.widths: smallnets.models.LeNet takes no 'widths'"),
    "near option": (["--model.net.hiden_widths=[3]"], 2, "takes no 'hiden_widths'; nearest: hidden_widths"),
    "option": (["--modle.net=resnet20"], 2, "no option --modle.net; nearest: --model.net"),
    "trainer option": (["--trainer.max_epohcs=3"], 2, "no option --trainer.max_epohcs; nearest: --trainer.max_epochs"),
    "type": (["--trainer.max_epochs=abc"], 2, "--trainer.max_epochs: int or null expected, got abc"),
    "optimizer": (["--model.optimizer=SDG"], 2, "no optimizer is called 'SDG'; nearest: SGD"),
    "optimizer option": (["--model.optimizer.lrr=3"], 2, "torch.optim.SGD takes no 'lrr'; nearest: lr"),
    "schedule": (["--model.scheduler=StepLRR"], 2, "no schedule is called 'StepLRR'; nearest: StepLR"),
    "data": (["--data=CIFAR11"], 2, "no data set is called 'CIFAR11'; nearest: CIFAR10"),
    "augmentation": (["--data.augment=[flop]"], 2, "there is no 'flop'; did you mean flip"),
    "augmentation option": (["--data.augment=[{crop: {pad: 3}}]"], 2, "crop has no parameter 'pad'; allowed: padding"),
    "batch": (["--data.batch_size=5000"], 2, "--data.batch_size=5000 is more than the 200 images"),
    "image size": (["--model.net=vgg16"], 2, "VGG halves the image 5 times .* got image_size 8"),
    "range": (["--model.label_smoothing=2"], 2, r"--model.label_smoothing must lie in 0..1, got 2"),
    "accelerator": (["--trainer.accelerator=xpu9"], 2, "xpu9"),
    "devices": (["--trainer.devices=0"], 2, r"devices"),
    "config": (["--config=nofile.yaml"], 2, "--config nofile.yaml: No such file"),
    "not YAML": (["--config=bad.yaml"], 2, "--config bad.yaml is not YAML: .* at line 2"),
    "not a mapping": (["--config=list.yaml"], 2, "--config list.yaml must hold options"),
    "log folder": (["--trainer.default_root_dir=file"], 2, "cannot write runs into file/lightning_logs"),
    "name": (["--name=a/b"], 2, "--name is the name of one folder, got 'a/b'"),
    "no checkpoint": (["--ckpt_path=nope.ckpt"], 2, "no checkpoint at nope.ckpt"),
    "nothing to resume": (["--ckpt_path=last"], 2, "no checkpoints/last.ckpt of a run in"),
    "truncated": (["--ckpt_path=cut.ckpt"], 1, "cut.ckpt is not a whole checkpoint"),
    "damaged": (["--ckpt_path=damaged.ckpt"], 1, "damaged.ckpt is damaged"),
    "pickle": (["--ckpt_path=pickle.ckpt"], 2, "pickle.ckpt holds pickled objects"),
    "foreign": (["--ckpt_path=foreign.ckpt"], 2, "foreign.ckpt is not a checkpoint of smallnets"),
    "teacher": (["--model.teacher=nofile"], 2, "no checkpoint at nofile"),
    "missing data": (["--data=CIFAR10", "--data.root=void", "--data.download=false"], 1, "void/.* is missing. Set"),
}


class Anything:
    """Pickled by reference, so that a checkpoint holding one is not plain data."""


@pytest.fixture
def files(here: Path) -> Path:
    (here / "bad.yaml").write_text("a: [1, 2\nb: }")
    (here / "list.yaml").write_text("- 1\n")
    (here / "file").write_text("not a folder")
    torch.save({"weights": torch.zeros(1000)}, here / "foreign.ckpt")
    torch.save({"thing": Anything()}, here / "pickle.ckpt")
    whole = (here / "foreign.ckpt").read_bytes()
    (here / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    start = whole.index(b"data.pkl") + 60
    (here / "damaged.ckpt").write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
    return here


@pytest.mark.parametrize("case", MISTAKES)
def test_the_message_and_the_exit_code(case, files, tiny, capsys):
    options, code, message = MISTAKES[case]
    before = sorted(files.rglob("*"))
    command = options if case == "verb" else tiny("fit", *options)
    assert main(command) == code
    err = capsys.readouterr().err
    lines = [line for line in err.strip().splitlines() if "warning:" not in line]
    assert 1 <= len(lines) <= 2, err
    assert re.search(message, " ".join(lines)), err
    assert "Traceback" not in err
    left = [p for p in sorted(files.rglob("*")) if p not in before and p.suffix in (".ckpt", ".part")]
    assert not left, "a mistake must not leave a checkpoint"
    ended = [p for p in files.rglob("row.json") if '"status": "finished"' in p.read_text()]
    assert not ended


def test_a_checkpoint_of_another_network(here, tiny, capsys):
    assert main(tiny("fit", "--name=one")) == 0
    path = here / "lightning_logs/one/run-1/checkpoints/best.ckpt"
    capsys.readouterr()
    assert main(tiny("fit", f"--ckpt_path={path}", "--model.net.hidden_widths=[7]")) == 2
    assert "holds another smallnets.models.LeNet: hidden_widths [12] (asked for: [7])" in capsys.readouterr().err
    assert main(tiny("test", f"--ckpt_path={path}", net="resnet20")) == 2
    assert "holds a smallnets.models.LeNet; the command asks for a smallnets.models.ResNet" in capsys.readouterr().err


def test_a_head_that_is_too_small_is_refused_before_training(here, tiny, own, capsys):
    assert main(tiny("fit", "--name=one", net="own_nets.TwoLogits")) == 1
    assert "10 classes" in capsys.readouterr().err


def test_a_misspelt_option_in_a_config_is_named(here, tiny, capsys):
    Path("own.yaml").write_text("trainer:\n  max_epohcs: 3\n")
    assert main(tiny("fit", "--config=own.yaml")) == 2
    err = capsys.readouterr().err
    assert "max_epohcs" in err and len(err.strip().splitlines()) <= 2


def test_help_answers_without_torch():
    """The page of verbs must not wait for torch; what is imported is exact, seconds are not."""
    code = "import sys; from smallnets.cli import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")
    assert "smallnets VERB" in done.stdout


def test_a_wrong_choice_in_a_callback_names_the_choices(here, tiny, capsys):
    wrong = ["--trainer.callbacks+=PruningSchedule", "--trainer.callbacks.density=0.1", "--trainer.callbacks.scope=all"]
    assert main(tiny("fit", *wrong)) == 2
    error = capsys.readouterr().err
    assert "--trainer.callbacks.scope: one of 'global', 'layer', got all\n" in error
