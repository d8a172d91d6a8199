"""Every command and example of README.md and of the pages in docs/ is executed, and prints what README shows."""

import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from test_interruption import process

import smallnets
from smallnets.cli import main
from smallnets.results import read_row

pytestmark = pytest.mark.filterwarnings(
    "default::smallnets.callbacks.HealthWarning",
    # Lightning's advice to the short Python example: no workers to add, a log interval longer than the epoch.
    "ignore:The number of training batches",
    "ignore:.*LeafSpec",
)
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
CIFAR = os.environ.get("SMALLNETS_CIFAR10")
# Few batches of few images, also of a lottery, whose rounds are then one.
SHORT = (
    "--data.batch_size=16", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2",
)  # fmt: skip
SHORT_LOTTERY = ("rounds=1", "epochs_per_round=1", "rewind_to=0it")
# Figures that a machine, or another version of a library, gives otherwise.
NUMBER = re.compile(r"[-+]?\d[\d,.]*(?:e[-+]?\d+)?")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str = README) -> list[str]:
    """The commands of all bash blocks in order, without those of earlier blocks; then those of "Coming from"."""
    found: list[str] = []
    calls = [code for code in coming_from() if " --" in code] if page is README else []
    for block in [*blocks("bash", page), *calls]:
        lines = [line.removeprefix("uv run ") for line in block.splitlines()]
        known = set(found)
        found += [line for line in lines if line.startswith(("smallnets ", "tensorboard ")) and line not in known]
    return found


def coming_from() -> list[str]:
    """What stands as code in the last column of "Coming from"."""
    section = README[README.index("## Coming from") :].split("\n## ")[0]
    cells = [line.split(" | ")[2] for line in section.splitlines() if line.startswith("|") and line.count(" | ") == 2]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def shown(page: str = README) -> list[tuple[list[str], list[str]]]:
    """Of each bash block under which README shows output: its commands, and the lines that are shown."""
    # No fence within a block, or a block without output would be taken together with the next one's.
    pairs = re.findall(r"```bash\n((?:(?!```).)*)```\n+```text\n(.*?)```", page, re.DOTALL)
    return [(commands(f"```bash\n{block}```"), text.splitlines()) for block, text in pairs]


def masked(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())


def not_printed(block: list[str], lines: list[str], printed: dict[str, str]) -> list[str]:
    """The shown lines that none of the block's own commands printed, numbers aside; `printed` is by command."""
    there = {masked(each) for line in dict.fromkeys(block) for each in printed[line].splitlines()}
    return [each for each in lines if each != "..." and masked(each) not in there]


@pytest.fixture
def clone(here: Path) -> Path:
    """A working folder with the repository's configs."""
    (here / "configs").symlink_to(ROOT / "configs")
    return here


@pytest.fixture
def cifar(request: pytest.FixtureRequest) -> str:
    """The folder that `--data.root` names: of the real CIFAR-10 if it is known, else of a stand-in."""
    return CIFAR or str(request.getfixturevalue("fake_cifar"))


def run(line: str, capsys: pytest.CaptureFixture[str], cifar: str) -> str:
    """What the command prints; only what trains on CIFAR-10 is shortened, to two batches of an epoch."""
    program, *arguments = shlex.split(line)
    if program == "tensorboard":
        return tensorboard(arguments)
    if arguments[0] in ("fit", "test") and re.search(r"cifar10(?!0)|lottery/resnet20", line, re.IGNORECASE):
        arguments.append(f"--data.root={cifar}")
        if arguments[0] == "fit":
            lottery = [f"--trainer.callbacks.{each}" for each in SHORT_LOTTERY] if "lottery" in line else []
            arguments += [*SHORT, *lottery, f"--trainer.max_epochs={2 if lottery else 1}"]
    if arguments[0] == "export":
        pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    if arguments[0] in ("fit", "test", "predict") and "--trainer.accelerator" not in line:
        arguments.append("--trainer.accelerator=cpu")
    if "--trainer.devices" in line:
        # Lightning starts the other process by the command line of this one.
        done = process(arguments)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return done.stdout + done.stderr
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr()
    assert code == 0, f"{line}\n{said.err}"
    return said.out + said.err


def tensorboard(arguments: list[str]) -> str:
    """Starts TensorBoard on a free port and asks it which runs there are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", *arguments, f"--port={port}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert child.poll() is None, f"tensorboard {shlex.join(arguments)} ended with {child.returncode}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=30) as answer:
                    found = answer.read().decode()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                found = "[]"
            if "quickstart/run-1" in found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"tensorboard shows no run: {found}")
    finally:
        child.kill()
        child.wait()


def test_what_is_shown_is_compared_with_its_own_commands_alone():
    page = """
```bash
smallnets fit --name=a
```

A block without output.

```bash
smallnets fit --name=b
smallnets test --name=b
```

```text
epoch 2/2  loss 0.5
...
accuracy 0.9
read before
```
"""
    ((block, lines),) = shown(page)
    assert block == ["smallnets fit --name=b", "smallnets test --name=b"]
    own = {"smallnets fit --name=b": "epoch 2/2 loss 0.7\n", "smallnets test --name=b": "accuracy 0.8\n"}
    other = {"smallnets fit --name=a": "read before\n"}
    assert not_printed(block, lines, own | other) == ["read before"]
    own["smallnets test --name=b"] += "read before\n"
    assert not_printed(block, lines, own | other) == []


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_every_command_runs_and_prints_what_is_shown(clone, capsys, cifar):
    """README's in their order, then those that the pages have besides, in one folder; and the pages' examples.

    What README shows was printed, but for its numbers. CIFAR-10 is the real one where SMALLNETS_CIFAR10 names its
    folder, else a stand-in of 240 images in its form.
    """
    assert len(commands()) >= 20 and len(shown()) >= 8
    assert all(block and set(block) <= set(commands()) for block, _ in shown())
    printed, seconds, problems = dict[str, str](), dict[str, float](), list[str]()

    def do(line: str) -> str:
        start = time.monotonic()
        try:
            return run(line, capsys, cifar)
        except AssertionError as error:
            # The others are still worth knowing.
            problems.append(str(error))
            return ""
        finally:
            seconds[line] = round(time.monotonic() - start, 1)

    for line in commands():
        printed[line] = printed.get(line, "") + do(line)
        if line == "smallnets test --config configs/quickstart.yaml":
            row = read_row(clone / "lightning_logs/quickstart/run-1")
            assert row["test_accuracy"] >= 0.97
            assert row["test_reads"] == 1
    for block, lines in shown():
        problems += [f"{block[-1]} and its block do not print: {each}" for each in not_printed(block, lines, printed)]
    for page in PAGES:
        for line in commands(page.read_text()):
            if line not in seconds:
                do(line)
        for block in blocks("python", page.read_text()):
            exec(compile(block, page.name, "exec"), {"__name__": "page"})
    for line, each in seconds.items():
        logging.getLogger(__name__).info("%6.1f s  %s", each, line)  # pytest --log-cli-level=INFO
    assert problems == []


@pytest.mark.thorough
def test_the_python_block_runs(clone):
    (block,) = blocks("python")
    scope: dict = {}
    exec(compile(block, "README.md", "exec"), scope)
    counts = scope["count"](scope["net"])
    assert counts.parameters <= 100_000 and counts.macs <= 20_000_000
    assert type(scope["same"]).__name__ == "ResNet" and scope["count"](scope["same"]) == counts


def test_the_calls_of_coming_from_are_calls(here):
    """Whatever stands in the table's last column and is Python, on a ResNet of 1.2M parameters."""
    from smallnets.pruning import prune_channels, prune_to

    scope = {
        "smallnets": smallnets, "prune_channels": prune_channels, "prune_to": prune_to,
        "Budget": smallnets.measure.Budget, "Classifier": smallnets.Classifier,
    }  # fmt: skip
    calls = [code for code in coming_from() if re.fullmatch(r"[\w.]+\(.*\)", code)]
    assert len(calls) >= 5
    for call in calls:
        net = smallnets.models.ResNet(10, blocks=[1, 1, 1], channels=[64, 128, 256])
        assert eval(call, {**scope, "net": net}) is not None, call
