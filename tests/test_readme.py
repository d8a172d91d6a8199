"""Every command and example of README.md and of the pages in docs/ is executed; README's table is counted again."""

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
PAGES = sorted((ROOT / "docs").glob("*.md"))
CIFAR = os.environ.get("SMALLNETS_CIFAR10")


# Figures that a machine, or another version of a library, gives otherwise.
NUMBER = re.compile(r"\d[\d,.]*")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str = README) -> list[str]:
    """The `smallnets` commands of all bash blocks, in order, each once."""
    lines = [line.removeprefix("uv run ") for block in blocks("bash", page) for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("smallnets ")))


def shown() -> dict[str, list[str]]:
    """The lines of output that README shows under a bash block, by the block's last command."""
    pairs = re.findall(r"```bash\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)
    return {block.splitlines()[-1]: text.splitlines() for block, text in pairs}


def masked(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())


@pytest.fixture
def clone(here: Path) -> Path:
    """A working folder with the repository's configs."""
    (here / "configs").symlink_to(ROOT / "configs")
    return here


def run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints; only CIFAR-10 is shortened to two batches, and skipped where its files are not."""
    arguments = shlex.split(line)[1:]
    if arguments[0] in ("fit", "test") and re.search(r"cifar10(?!0)", line, re.IGNORECASE):
        if CIFAR is None:
            return ""
        arguments.append(f"--data.root={CIFAR}")
        if arguments[0] == "fit":
            short = ("limit_train_batches=2", "limit_val_batches=2", "max_epochs=1")
            arguments += [f"--trainer.{option}" for option in short]
    if arguments[0] == "export":
        pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    if arguments[0] in ("fit", "test", "predict"):
        arguments.append("--trainer.accelerator=cpu")
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr()
    assert code == 0, f"{line}\n{said.err}"
    return said.out + said.err


@pytest.mark.timeout(1800)
def test_every_command_runs_and_prints_what_is_shown(clone, capsys):
    """README's in their order, then those that the pages have besides, in one folder; and the pages' examples.

    What README shows was printed, but for its numbers.
    """
    assert len(commands()) >= 12
    every = ""
    for line in commands():
        every += run(line, capsys)
        there = [masked(each) for each in every.splitlines()]
        for each in shown().get(line, []):
            assert each == "..." or masked(each) in there, f"{line} does not print: {each}"
        if line == "smallnets test --config configs/quickstart.yaml":
            row = read_row(clone / "lightning_logs/quickstart/run-1")
            assert row["test_accuracy"] >= 0.97
            assert row["test_reads"] == 1
    seen = set(commands())
    for page in PAGES:
        for line in commands(page.read_text()):
            if line not in seen:
                seen.add(line)
                run(line, capsys)
        for block in blocks("python", page.read_text()):
            exec(compile(block, page.name, "exec"), {"__name__": "page"})


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
    assert f"| {sizes} |" in (ROOT / "docs/data.md").read_text()


def test_the_python_block_runs(clone):
    (block,) = blocks("python")
    scope: dict = {}
    exec(compile(block, "README.md", "exec"), scope)
    counts = scope["count"](scope["net"])
    assert counts.parameters <= 100_000 and counts.macs <= 20_000_000
    assert type(scope["same"]).__name__ == "ResNet" and scope["count"](scope["same"]) == counts


def test_files_and_folders_that_are_named_exist():
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text()
        for path in re.findall(r"`((?:configs|docs|results|smallnets|notebooks|tests)/[\w/.-]*)`", text):
            assert (ROOT / path).exists() or (ROOT / "smallnets" / path).exists(), f"{page.name}: {path}"
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
