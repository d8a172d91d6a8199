"""`smallnets data`: what it prints, what it writes, and its exit codes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallnets.errors import RunError, UserError
from smallnets.verbs.data import run


def test_show_prints_the_split_and_the_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "Digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Digits: train 1348, val 150, test 299; split_seed 0"
    assert lines[1].startswith("mean 0.30")
    assert "std 0.37" in lines[1]
    assert lines[2].split() == ["class", "train", "val", "test"]
    table = np.array([[int(n) for n in line.split()] for line in lines[3:]])
    assert table[:, 0].tolist() == list(range(10))
    assert table[:, 1:].sum(0).tolist() == [1348, 150, 299]


def test_show_writes_a_grid_of_augmented_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def grid(*more: str) -> np.ndarray:
        path = tmp_path / "grid.png"
        assert run(["show", "Digits", "--image_size", "16", "--images", "4", "--out", str(path), *more]) == 0
        return np.asarray(Image.open(path))

    plain = grid()
    assert plain.shape == (2 * 18 + 2, 2 * 18 + 2, 3)  # two rows of two, with borders of two pixels
    augmented = grid("--augment", "crop,flip")
    assert not np.array_equal(plain, augmented)
    assert np.array_equal(augmented, grid("--augment", '["crop", {"flip": {"p": 0.5}}]'))
    assert not np.array_equal(plain, grid("--seed", "1"))
    assert "4 training images, augmented by ['crop', 'flip']" in capsys.readouterr().out


def test_verify_and_fetch_a_complete_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fetch", "Digits"]) == 0
    assert capsys.readouterr().out == "Digits: complete, nothing to fetch\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(np.full((9, 9, 3), i * 20, np.uint8)).save(tmp_path / name / f"{i}.png")
    assert run(["verify", "ImageFolder", "--root", str(tmp_path), "--image_size", "8"]) == 0
    assert capsys.readouterr().out == (
        "ImageFolder: 24 files in order; 20 training and 4 test images, 2 classes, 3 x 8 x 8\n"
    )
    (tmp_path / "a" / "3.png").write_bytes(b"rubbish")
    with pytest.raises(RunError, match=r"1 file is missing or damaged in .*, first .*3.png") as caught:
        run(["verify", "ImageFolder", "--root", str(tmp_path)])
    assert caught.value.exit_code == 1
    assert "damaged" in capsys.readouterr().out


def test_verify_lists_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"7 files are missing or damaged.*run `smallnets data fetch CIFAR10 --root"):
        run(["verify", "CIFAR10", "--root", str(tmp_path)])
    assert capsys.readouterr().out.count("missing  /") == 7


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "CIFAR11"], "there is no set 'CIFAR11'; did you mean CIFAR10"),
        (["look", "Digits"], "invalid choice: 'look'"),
        (["show"], "NAME"),
        (["show", "CIFAR10", "--image_size", "8"], "--image_size is for Digits and ImageFolder, not for CIFAR10"),
        (["show", "Digits", "--out", "grid.txt"], "--out is a .png or .jpg file, not grid.txt"),
        (["show", "Digits", "--out", "/nowhere/x.png"], "--out /nowhere/x.png cannot be written: No such file"),
        (["show", "Digits", "--augment", "crop,flop"], "there is no 'flop'"),
        (["show", "Digits", "--augment", "[crop"], "write crop,flip or a JSON list"),
        (["show", "Digits", "--images", "0", "--out", "x.png"], "--images is 1 or more"),
    ],
)
def test_mistakes_exit_with_2(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(argv)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2


def test_help_is_light(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "fetch" in capsys.readouterr().out
    code = "import sys, smallnets.verbs.data as d; d.run(['show', '-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
