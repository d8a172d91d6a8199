"""Every command in README.md is executed, its table is counted again, its Python block runs."""

import os
import re
import shlex
from pathlib import Path

import pytest

from smallnets.cli import main
from smallnets.data import Digits
from smallnets.results import read_row

pytestmark = pytest.mark.filterwarnings(
    "default::smallnets.callbacks.HealthWarning",
    # Lightning's advice to the short Python example: no workers to add, a log interval longer than the epoch.
    "ignore:The number of training batches",
    "ignore:.*LeafSpec",
)
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CIFAR = os.environ.get("SMALLNETS_CIFAR10")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """The `smallnets` commands of all bash blocks, in order, each once."""
    lines = [line.removeprefix("uv run ") for block in blocks("bash") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("smallnets ")))


@pytest.fixture
def clone(here: Path) -> Path:
    """A working folder with the repository's configs."""
    (here / "configs").symlink_to(ROOT / "configs")
    return here


@pytest.mark.timeout(1200)
def test_every_command_runs(clone, capsys, monkeypatch):
    """In their order, in one folder; only CIFAR-10 is shortened to two batches, and skipped where its files are not."""
    assert len(commands()) >= 12
    for line in commands():
        arguments = shlex.split(line)[1:]
        if arguments[0] in ("fit", "test") and re.search(r"cifar10(?!0)", line, re.IGNORECASE):
            if CIFAR is None:
                continue
            arguments.append(f"--data.root={CIFAR}")
            if arguments[0] == "fit":
                short = ("limit_train_batches=2", "limit_val_batches=2", "max_epochs=1")
                arguments += [f"--trainer.{option}" for option in short]
        if arguments[0] == "export":
            pytest.importorskip("onnxruntime", reason="the export extra is not installed")
        if arguments[0] in ("fit", "test", "predict"):
            arguments.append("--trainer.accelerator=cpu")
        assert main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"
        if line == "smallnets test --config configs/quickstart.yaml":
            row = read_row(clone / "lightning_logs/quickstart/run-1")
            assert row["test_accuracy"] >= 0.97
            assert row["test_reads"] == 1 and row["seconds"] < 120


def test_the_networks_are_those_of_the_table():
    from smallnets.verbs.models import rows

    written = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| .* \|$", README, re.MULTILINE)
    names = [name for name, *_ in written]
    counted = {r["name"]: (f"{r['parameters']:,}", f"{r['macs']:,}") for r in rows(names, [10])}
    from smallnets.models import NETWORKS

    assert sorted(names) == sorted(NETWORKS)
    assert {name: (p, m) for name, p, m in written} == counted


def test_the_sizes_of_the_splits_are_true():
    data = Digits()
    data.setup("fit")
    data.setup("test")
    sizes = " / ".join(f"{data.split_sizes[part]:,}" for part in ("train", "val", "test"))
    assert f"| {sizes} |" in README


def test_the_python_blocks_run(here):
    pruning, block = blocks("python")
    scope: dict = {}
    exec(compile(pruning, "README.md", "exec"), scope)
    counts = scope["count"](scope["net"])
    assert counts.parameters <= 100_000 and counts.macs <= 20_000_000
    stated = re.search(r"print\(count\(net\).parameters\)  # ([\d,]+)", block)
    exec(compile(block, "README.md", "exec"), scope)
    assert f"{scope['count'](scope['net']).parameters:,}" == stated[1]
    assert type(scope["same"]).__name__ == "ResNet"


def test_files_and_folders_that_are_named_exist():
    for path in re.findall(r"`(configs/[\w/.]+|docs/[\w/.]+)`", README) + re.findall(r"\]\((docs/[\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
