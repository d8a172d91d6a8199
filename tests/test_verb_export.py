"""`smallnets export`: a file that agrees, a card whose lines run, and nothing left behind when it does not agree."""

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smallnets.cli import main
from smallnets.compress import open_exported
from smallnets.compress.on_test import compare_on_test
from smallnets.compress.subject import read_subject
from smallnets.layers import AppendGray
from smallnets.models import ResNet
from smallnets.results.row import read_row, update_row
from smallnets.results.save import save
from smallnets.surgery import to_quaternion
from smallnets.verbs import export

Command = Callable[..., list[str]]


@pytest.fixture
def best(here: Path, tiny: Command, capsys: pytest.CaptureFixture[str]) -> Path:
    """The checkpoint of a run of an epoch on 200 digits of 8 x 8."""
    assert main(tiny("fit", "--trainer.max_epochs=1")) == 0
    (path,) = here.glob("lightning_logs/*/*/checkpoints/best.ckpt")
    capsys.readouterr()
    return path


def refused(capsys: pytest.CaptureFixture[str], code: int, *command: str) -> str:
    """The one error of a command that must exit with `code`."""
    assert main(["export", *command]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("smallnets: error: ") and "Traceback" not in "".join(lines)
    return lines[-1].removeprefix("smallnets: error: ")


def written(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.name not in ("lightning_logs", "image.png"))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_the_cards_lines_run(best: Path, here: Path, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    out = here / f"net.{format}"
    assert main(["export", str(best), f"--format={format}", f"--output={out}", "--calls=2", "--licence=CC0"]) == 0
    assert written(here) == [out.name, out.name + ".md"]
    card = (here / (out.name + ".md")).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(here / "image.png")
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    about = torch.load(best, weights_only=True)["smallnets"]
    images = (torch.tensor(pixels).view(1, 1, 8, 8) / 255 - about["mean"][0]) / about["std"][0]
    assert done.stdout.strip() == about["classes"][int(open_exported(out)(images).argmax())]
    # Counted by hand: 64 -> 12 -> 10.
    assert "| parameters | 910 |" in card and "| MACs of one image (FLOPs = 2 MACs) | 888 |" in card
    assert f"| size on disk | {out.stat().st_size:,} bytes |" in card
    assert f"trained on Digits, exported as {format}, fp32" in card
    assert "licence of the weights: CC0" in card
    row = json.loads((best.parents[1] / "row.json").read_text())
    assert f"| validation accuracy, the run's row | {row['val_accuracy']:.4f} |" in card
    assert "| validation accuracy, this file | not measured |" in card
    assert "| test accuracy, the run's row (of the network in fp32) | not measured |" in card
    assert len(re.findall(r"^\| (?:1|32) \| \d+ \| [\d.]+ ms \| [\d.]+ ms \| 2 \|$", card, re.MULTILINE)) in (2, 4)


def test_int8_with_full_verification(best: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    command = ["export", str(best), "--output=net.onnx", "--dtype=int8", "--verify=full", "--calls=0"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    found = dict(re.findall(r"validation accuracy of the (network|file): ([\d.]+)", shown.out))
    row = json.loads((best.parents[1] / "row.json").read_text())
    # The network's is the figure of the run, over the same 150 images; the test set was not read.
    assert float(found["network"]) == round(row["val_accuracy"], 4)
    assert abs(float(found["file"]) - row["val_accuracy"]) < 0.1
    assert row["test_reads"] == 0
    card = Path("net.onnx.md").read_text()
    assert "on 150 validation images" in card and "## Latency\n\nnot measured\n" in card
    assert main([*command, "--overwrite"]) == 0


def test_without_an_output_the_file_has_the_runs_name(best: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --output the file is named by the run, or by a checkpoint that lies in none; a home folder is found."""
    name = f"{best.parents[2].name}-{best.parents[1].name}.pt2"
    assert main(["export", str(best), "--format", "pt2", "--calls=0"]) == 0
    assert written(here) == [name, name + ".md"]
    (here / "alone.ckpt").write_bytes(best.read_bytes())
    assert main(["export", "alone.ckpt", "--format=pt2", "--calls=0"]) == 0
    assert (here / "alone.pt2").is_file()
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    assert main(["export", "alone.ckpt", "--format=pt2", "--calls=0", "--output=~/x.pt2"]) == 0
    assert sorted(each.name for each in (here / "home").iterdir()) == ["x.pt2", "x.pt2.md"]


def test_the_ledger_counts_what_is_read_of_the_test_set(
    best: Path, here: Path, tiny: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = best.parents[1]
    command = ["export", str(best), "--format=pt2", "--output=net.pt2", "--calls=0", "--overwrite"]
    # Nobody has read it: `full` does not.
    assert main([*command, "--verify=full"]) == 0
    shown = capsys.readouterr().out
    assert "test images not compared: the run's test figure has not been read; --verify=test reads them" in shown
    assert "test accuracy of" not in shown and read_row(folder)["test_reads"] == 0
    # Asked for, one reading feeds both, and is the run's.
    assert main([*command, "--verify=test"]) == 0
    found = dict(re.findall(r"test accuracy of the (network|file): ([\d.]+)", capsys.readouterr().out))
    row = read_row(folder)
    assert (row["test_reads"], row["test_size"], row.get("file_test_reads")) == (1, 299, None)
    assert float(found["network"]) == round(row["test_accuracy"], 4) and set(found) == {"network", "file"}
    assert f"| test accuracy, this file | {found['file']} |" in (here / "net.pt2.md").read_text()
    assert (
        f"| test accuracy, the run's row (of the network in fp32) | {found['network']} |"
        in (here / "net.pt2.md").read_text()
    )
    # `test` has nothing left to read, and gives the same.
    assert main(["test", "--ckpt_path", str(best), "--config", str(folder / "config.yaml")]) == 0
    said = capsys.readouterr().out
    assert "read before and not again" in said and f"accuracy {row['test_accuracy']:.6g}" in said
    # From now on they may be compared, which is counted beside the readings of the run.
    for number, verify in enumerate(("full", "test"), 1):
        assert main([*command, f"--verify={verify}"]) == 0
        assert re.findall(r"test accuracy of the (?:network|file): ([\d.]+)", capsys.readouterr().out) == [
            found["network"], found["file"],
        ]  # fmt: skip
        row = read_row(folder)
        assert (row["test_reads"], row["file_test_reads"]) == (1, number)
    # Another checkpoint of the run is not chosen by it.
    update_row(folder, test_checkpoint="0" * 16)
    assert refused(capsys, 1, *command[1:], "--verify=test").startswith(
        "--verify=test: the run's test figure is that of another checkpoint"
    )
    assert main([*command, "--verify=full"]) == 0
    assert "test images not compared: the run's test figure is that of another" in capsys.readouterr().out
    assert read_row(folder)["file_test_reads"] == 2
    (here / "alone.ckpt").write_bytes(best.read_bytes())
    assert refused(capsys, 2, "alone.ckpt", "--format=pt2", "--verify=test").startswith(
        "--verify=test: alone.ckpt lies in no run that has ended"
    )


def test_a_reading_that_is_broken_off_is_counted(best: Path) -> None:
    def broken() -> Any:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        compare_on_test(read_subject(best), lambda images: images, broken, asked=True)
    row = read_row(best.parents[1])
    assert (row["test_reads"], row["test_accuracy"]) == (1, None)


def test_the_lines_of_a_card_for_four_channels(here: Path) -> None:
    """A quaternion network without known data: the fourth channel is the gray that it was made for."""
    torch.manual_seed(0)
    net = to_quaternion(ResNet(blocks=[1], channels=[8], in_channels=4)).eval()
    save(net, here / "q.ckpt", about={"classes": list("abcdefghij")})
    assert main(["export", "q.ckpt", "--format=pt2", "--calls=0"]) == 0
    card = (here / "q.pt2.md").read_text()
    assert "channels red, green, blue, and gray, 0.299 R + 0.587 G + 0.114 B of these after normalisation" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(here / "image.png")
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    images = AppendGray()(torch.tensor(pixels).permute(2, 0, 1)[None] / 255)
    assert done.stdout.strip() == "abcdefghij"[int(net(images).argmax())]
    # Of 4 channels of one's own data, or 2, no line knows what they are.
    save(ResNet(blocks=[1], channels=[8], in_channels=2), here / "two.ckpt")
    assert main(["export", "two.ckpt", "--format=pt2", "--calls=0"]) == 0
    card = (here / "two.pt2.md").read_text()
    assert "Not shown: what the 2 channels of an image are, the checkpoint does not tell." in card
    assert "```python" not in card


def test_a_full_disk_says_nothing_of_resuming(
    best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "to_file", full)
    assert refused(capsys, 1, str(best), "--format=pt2") == "No space left on device"


def test_an_exported_file_is_no_checkpoint(best: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(best), "--format=pt2", "--output=net.pt2", "--calls=0"]) == 0
    assert refused(capsys, 2, "net.pt2", "--format=pt2", "--output=a.pt2") == (
        "net.pt2 is not a checkpoint of smallnets: an archive of something else"
    )


def test_a_file_that_disagrees_is_not_left(
    best: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = export.to_file

    def wrong(net: torch.nn.Module, *arguments: Any) -> Path:
        with torch.no_grad():
            net.head[0].weight[0] += 1
        written = right(net, *arguments)
        with torch.no_grad():
            net.head[0].weight[0] -= 1
        return written

    monkeypatch.setattr(export, "to_file", wrong)
    error = refused(capsys, 1, str(best), "--format=pt2", "--output=net.pt2")
    assert error.startswith("net.pt2 does not compute what the network computes: relative error of the logits ")
    assert written(here) == []


def test_mistakes_are_told_before_the_work(best: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(*command: str) -> str:
        return refused(capsys, 2, *command)

    ckpt = str(best)
    assert tell("none.ckpt", "--format=pt2", "--output=a.pt2") == "no checkpoint at none.ckpt: no such file"
    assert tell(ckpt, "--format=tflite", "--output=a.onnx") == "--format is one of onnx, pt2, executorch, got 'tflite'"
    assert tell(ckpt, "--format=pt2", "--output=a.onnx") == "--output: a file of pt2 ends in .pt2, got a.onnx"
    assert tell(ckpt, "--format=pt2", "--output=b/a.pt2") == "--output b/a.pt2: there is no folder b"
    assert tell(ckpt, "--format=pt2", "--output=a.pt2", "--dtype=int8") == (
        "--dtype of pt2 is one of fp32, fp16, bf16, got 'int8'"
    )
    assert tell(ckpt, "--output=a.onnx", "--dtype=int8", "--calibration=0") == (
        "--calibration: int8 needs at least one training image, got 0"
    )
    assert tell(ckpt, "--format=pt2", "--output=a.pt2", "--verify=some") == (
        "--verify is logits, full or test, got 'some'"
    )
    (here / "a.pt2").write_text("of value")
    assert tell(ckpt, "--format=pt2", "--output=a.pt2") == "a.pt2 is there already; --overwrite replaces it"
    assert (here / "a.pt2").read_text() == "of value"
    torch.save({"state_dict": {}}, here / "other.ckpt")
    assert "is not a checkpoint of smallnets" in tell("other.ckpt", "--format=pt2", "--output=b.pt2")
    assert tell(ckpt, "--format=pt2", "--output=b.pt2", "--verify=full", "--data.split_seed=1").startswith(
        f"--data.split_seed=1: {ckpt} was trained with 0"
    )
    (here / "alone.ckpt").write_bytes(best.read_bytes())
    assert "give --data=NAME or --config FILE" in tell("alone.ckpt", "--format=pt2", "--output=b.pt2", "--verify=full")
    assert written(here) == ["a.pt2", "alone.ckpt", "other.ckpt"]


def test_a_checkpoint_alone_needs_no_data_for_its_logits(
    best: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "alone.ckpt").write_bytes(best.read_bytes())
    assert main(["export", "alone.ckpt", "--format=pt2", "--output=b.pt2", "--calls=0"]) == 0
    card = (here / "b.pt2.md").read_text()
    assert "- training: not known (the checkpoint lies in no run that has ended)" in card
    assert "- licence of the weights: not stated" in card
    assert "on 64 images of random pixels" in card
