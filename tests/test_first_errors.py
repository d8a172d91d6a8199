"""What a first user runs into, tried in processes of its own: one or two lines that say what to do."""

import errno
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from test_interruption import HARD, checkpoint, equal, process

from smallnets import requirements
from smallnets.cli import main
from smallnets.errors import UserError
from smallnets.results import read_row
from smallnets.results.run import check_name
from smallnets.verbs.messages import RESUME, as_user_errors, full_disk_in_threads, parser_message, trainer_message

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def lines(text):
    return [line for line in text.strip().splitlines() if "warning:" not in line]


# -- no network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "file"), [("CIFAR10", "cifar-10-python.tar.gz"), ("MNIST", r"MNIST/raw/\*-ubyte.gz")])
def test_without_a_network_it_says_which_file_to_put_where(here, tiny, capsys, monkeypatch, name, file):
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # the port that discards: nobody listens
    monkeypatch.setenv("no_proxy", "")
    command = ["fit", f"--data={name}", "--data.root=images", "--model.net=resnet20", "--trainer.accelerator=cpu"]
    assert main(command) == 1
    said = lines(capsys.readouterr().err)
    assert len(said) == 1
    assert re.search(f"{name}: {file}.* could not be downloaded .*refused", said[0]), said
    assert f"into images by hand (or set --data.root), then run `smallnets data fetch {name} --root images`" in said[0]
    assert not list((here / "lightning_logs").rglob("run-*")), "a fit that never began leaves no run"


def test_missing_files_are_told_by_the_folder_that_root_must_hold(here, capsys):
    command = ["fit", "--data=MNIST", "--data.root=void", "--data.download=false", "--model.net=lenet_12"]
    assert main([*command, "--trainer.accelerator=cpu"]) == 1
    assert "Set --data.root to the folder that holds MNIST/, or" in capsys.readouterr().err


# -- devices, ports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps", "tpu"])
def test_a_device_that_is_not_there(here, tiny, capsys, monkeypatch, accelerator):
    import torch

    if torch.cuda.is_available() and accelerator in ("gpu", "cuda"):
        pytest.skip("there is a GPU")
    assert main(tiny("fit", "--trainer.accelerator", accelerator)) == 2
    said = lines(capsys.readouterr().err)
    assert said == [f"smallnets: error: {trainer_message('accelerator is not available', accelerator)}"]
    assert f"--trainer.accelerator={accelerator}: torch finds no such device here; allowed: auto, cpu" in said[0]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--trainer.strategy=deepspeed", "pip install -U deepspeed"),
        ("--trainer.strategy=dpp", "strategy='dpp'.*ddp"),
        ("--trainer.strategy=fsdp", "requires a GPU"),
        ("--trainer.devices=[0,1]", "should be an int > 0"),
        ("--trainer.precision=fp16", "one of .*'16-mixed', 'bf16-true', 'bf16-mixed'.*, got fp16"),
        ("--trainer.logger=WandbLogger", "pip install .*wandb"),
        ("--lr=0.1", "no option --lr; there is --model.optimizer.lr$"),
        ("--max_epochs=3", "no option --max_epochs; there is --trainer.max_epochs$"),
        ("--batch_size=3", "no option --batch_size; there is --data.batch_size$"),
    ],
)
def test_an_option_that_cannot_be_had(here, tiny, capsys, option, says):
    assert main(tiny("fit", option)) == 2
    said = lines(capsys.readouterr().err)
    assert len(said) == 1 and re.search(says, said[0]), said


def test_a_port_in_use(here, tiny, capsys, monkeypatch):
    """Lightning chooses a free port; one that MASTER_PORT names must be free, or the other process would wait."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        assert main(tiny("fit", "--trainer.devices=2", "--trainer.strategy=ddp")) == 1
    said = lines(capsys.readouterr().err)
    assert len(said) == 1 and f"port {os.environ['MASTER_PORT']} is in use: unset MASTER_PORT" in said[0]
    assert not list((here / "lightning_logs").rglob("run-*"))
    requirements.require_free_port()  # free again
    monkeypatch.setenv("MASTER_ADDR", "another.machine")
    monkeypatch.setenv("MASTER_PORT", "1")
    requirements.require_free_port()


# -- packages, systems ---------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Packages are asked about anew."""
    requirements.require_packages.cache_clear()
    yield
    requirements.require_packages.cache_clear()


def test_an_old_torch_is_told_before_it_is_imported(here, asked, capsys, monkeypatch):
    found = requirements.version
    monkeypatch.setattr(requirements, "version", lambda name: "2.4.1+cpu" if name == "torch" else found(name))
    monkeypatch.setitem(sys.modules, "smallnets.verbs.models", None)  # the import would fail
    assert main(["models"]) == 2
    said = lines(capsys.readouterr().err)
    limit = next(line for line in requirements.requires("smallnets") if line.startswith("torch>"))
    assert said == [f"smallnets: error: smallnets needs {limit}, which is 2.4.1+cpu here: pip install '{limit}'"]


def test_a_missing_package_is_told(asked, monkeypatch):
    def gone(name):
        raise requirements.PackageNotFoundError(name)

    monkeypatch.setattr(requirements, "version", gone)
    with pytest.raises(UserError, match=r"smallnets needs \S+, which is not installed: pip install"):
        requirements.require_packages()


def test_what_is_installed_here_is_enough(asked):
    requirements.require_packages()


def test_a_system_without_fcntl_trains_and_a_study_says_why_not(here, tiny):
    """Windows has no fcntl."""
    blocked = "import sys; sys.modules['fcntl'] = None; import smallnets; from smallnets.cli import console; console()"
    done = process(tiny("fit", "--name=one", "--trainer.max_epochs=1"), program=blocked)
    assert done.returncode == 0, done.stderr
    assert read_row(here / "lightning_logs/one/run-1")["status"] == "finished"
    (here / "study.yaml").write_text("name: s\n")
    for verb in ("study", "search"):
        done = process([verb, "run", "study.yaml"], program=blocked)
        assert done.returncode == 2 and len(lines(done.stderr)) == 1, done.stderr
        assert f"{verb} locks files by fcntl, which Linux and macOS have: use WSL on Windows" in done.stderr


@pytest.mark.parametrize("name", ["a:b", "a\\b", "a/b", "con", "NUL.txt", "com1", "dot.", "blank ", ".hid", 'q"', "a?"])
def test_names_are_folders_on_any_system(name):
    with pytest.raises(UserError, match="--name is the name of one folder"):
        check_name("--name", name)


def test_names_that_only_look_reserved():
    for name in ("console", "run-1", "null", "com10x", "a.b", "with blank"):
        check_name("--name", name)


# -- paths ---------------------------------------------------------------------------------------------------------


def test_home_and_blanks_in_paths(here, tiny, monkeypatch, capsys):
    home = here / "my home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (home / "my run.yaml").write_text("name: one\n")
    assert main(tiny("fit", "--config=~/my run.yaml", "--trainer.default_root_dir=~/my runs")) == 0
    folder = home / "my runs/lightning_logs/one/run-1"
    assert read_row(folder)["status"] == "finished" and not (here / "lightning_logs").exists()
    path = "~/my runs/lightning_logs/one/run-1/checkpoints/best.ckpt"
    assert main(["test", f"--ckpt_path={path}"]) == 0
    assert read_row(folder)["test_reads"] == 1
    assert main(tiny("fit", f"--model.init_from={path}", "--name=two", "--trainer.max_epochs=1")) == 0
    capsys.readouterr()
    assert main(["fit", "--data=CIFAR10", "--data.root=~/no", "--data.download=false", "--model.net=resnet20"]) == 1
    assert f"{home}/no/cifar-10-batches-py" in capsys.readouterr().err


def test_a_path_of_another_system_is_taken_as_it_is(here, capsys):
    assert main(["test", r"--ckpt_path=C:\runs\my best.ckpt"]) == 2
    assert r"no checkpoint at C:\runs\my best.ckpt: no such file" in capsys.readouterr().err


# -- interruptions -------------------------------------------------------------------------------------------------

SIGNAL = '''
import os, signal, sys
from lightning.pytorch.callbacks import Callback


class CtrlC(Callback):
    """Ctrl-C in the middle of a step, once or twice."""

    def __init__(self, step: int, times: int = 1):
        self.step, self.times = step, times

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


class CtrlCInValidation(Callback):
    def on_validation_batch_end(self, trainer, module, *args):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
'''


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("callback", "stood"),
    [
        (("CtrlC", "--trainer.callbacks.step=6"), 7),
        (("CtrlC", "--trainer.callbacks.step=9"), 10),  # the last step of an epoch: its end is waited for
        (("CtrlCInValidation",), 10),
    ],
)
def test_after_ctrl_c_the_line_that_is_printed_goes_on_to_the_same_end(here, tiny, own, callback, stood):
    (own / "own_signals.py").write_text(SIGNAL)
    run = tiny("fit", *HARD, net="own_nets.Net")
    assert main([*run, "--name=whole"]) == 0
    name, *options = callback
    done = process([*run, "--name=cut", f"--trainer.callbacks+=own_signals.{name}", *options])
    assert done.returncode == 130, done.stderr
    assert "stopping after this step" in done.stderr and "Traceback" not in done.stderr
    folder = here / "lightning_logs/cut/run-1"
    assert read_row(folder)["status"] == "interrupted"
    assert checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == stood
    said = re.search(rf"^interrupted after step {stood}; to go on: (smallnets fit .*)$", done.stdout, re.MULTILINE)
    # The callback that stands for the user's fingers is in the configuration; it would not press again at that step.
    arguments = shlex.split(said[1])[1:]
    if name == "CtrlCInValidation":
        (own / "own_signals.py").write_text(SIGNAL.replace("current_epoch == 1", "current_epoch == 99"))
    again = process(arguments)
    assert again.returncode == 0, again.stderr
    a, b = (checkpoint(here / f"lightning_logs/{n}/run-1/checkpoints/last.ckpt") for n in ("whole", "cut"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets"):
        assert equal(a[part], b[part]), part
    rows = [(here / f"lightning_logs/{n}/run-1/metrics.csv").read_text() for n in ("whole", "cut")]
    assert rows[0] == rows[1]


def test_a_second_ctrl_c_stops_at_once(here, tiny, own):
    (own / "own_signals.py").write_text(SIGNAL)
    twice = ["--trainer.callbacks+=own_signals.CtrlC", "--trainer.callbacks.step=2", "--trainer.callbacks.times=2"]
    done = process(tiny("fit", "--name=cut", *twice, net="own_nets.Net"))
    assert done.returncode == 130, done.stderr
    assert "there is no checkpoint yet: start the command again" in done.stdout
    assert not list((here / "lightning_logs/cut/run-1").rglob("*.ckpt"))


def test_ctrl_c_from_outside_while_it_trains(here, tiny, own):
    """As from a keyboard, at a moment that nobody chose."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-u", "-m", "smallnets", *tiny("fit", "--name=cut", net="own_nets.Net")]
    child = subprocess.Popen(
        [*command, "--trainer.max_epochs=100000"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while "epoch 2/" not in (child.stdout.readline() or "epoch 2/"):
            time.sleep(0)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130, err
    step = int(re.search(r"interrupted after step (\d+); to go on: smallnets fit", out)[1])
    assert checkpoint(here / "lightning_logs/cut/run-1/checkpoints/last.ckpt")["global_step"] == step


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logger", ["tensorboard", "none"])
def test_a_full_disk_in_a_fit(here, tiny, logger):
    """No file may grow beyond 8 KiB: TensorBoard's events, written by a thread, and a checkpoint need more."""
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192));"
        " from smallnets.cli import console; console()"
    )
    options = ["--trainer.logger=false"] if logger == "none" else []
    done = process(tiny("fit", "--name=one", *options), program=limited)
    assert done.returncode == 1
    said = lines(done.stderr)
    assert len(said) == 1 and re.search("File too large.*make room, then go on", said[0]), done.stderr
    folder = here / "lightning_logs/one/run-1"
    assert not list(folder.rglob("*.part")), "half a checkpoint would fill the disk further"
    assert not list(folder.rglob("*.ckpt"))


def test_an_error_of_a_thread_is_told_once_and_never_lost():
    def in_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def fill():
        raise OSError(errno.ENOSPC, "No space left on device")

    said = r"No space left on device; .*make room"
    with pytest.raises(UserError, match=said), as_user_errors(on_full=RESUME), full_disk_in_threads():
        in_thread(fill)
    # What the block itself raises comes first.
    with pytest.raises(ZeroDivisionError), full_disk_in_threads():
        in_thread(fill)
        _ = 1 / 0
    # Any other error of a thread is shown as ever.
    shown = []
    before, threading.excepthook = threading.excepthook, shown.append
    try:
        with full_disk_in_threads():
            in_thread(lambda: [][0])
        assert threading.excepthook == shown.append
    finally:
        threading.excepthook = before
    assert [each.exc_type for each in shown] == [IndexError]


# -- the command line ----------------------------------------------------------------------------------------------


def test_no_arguments_and_help_of_a_verb(capsys):
    assert main([]) == 0
    assert "usage: smallnets VERB" in capsys.readouterr().out
    assert main(["help", "models"]) == 0
    assert "usage: smallnets models" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", ["models", "summary", "data", "score", "export", "study", "search", "curves", "connect", "report", "bench"]
)
def test_the_help_of_each_verb_fits_a_terminal(verb, capsys):
    assert main([verb, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: smallnets {verb}")
    assert len(page.splitlines()) <= 60


def test_ctrl_c_before_training_is_one_line(monkeypatch, capsys):
    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("smallnets.cli.import_module", press)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "smallnets: interrupted\n"


def test_torch_and_torchvision_of_two_builds(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("smallnets.cli.import_module", broken)
    assert main(["models"]) == 1
    assert "torch and torchvision do not fit together" in capsys.readouterr().err


def test_messages_of_options():
    known = ["trainer.max_epochs", "data.batch_size"]
    assert parser_message("unrecognized arguments: --batch_size=3", known) == (
        "no option --batch_size; there is --data.batch_size"
    )
