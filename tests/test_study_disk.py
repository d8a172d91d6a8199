"""A full disk: what does not fit fails in a line, no half-written file is taken for whole, a restart finishes all."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from study_helpers import Bench
from test_study_run import found, steps, wait_for

from smallnets.results import read_row, rows, write_row
from smallnets.results.save import write_checkpoint
from smallnets.studies.ledger import Ledger


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Fills the disk, but for so many bytes."""
    filler, room = folder / "filler", os.statvfs(folder)
    with filler.open("wb", buffering=0) as file:
        file.write(b"0" * (room.f_bavail * room.f_frsize - leave))
    return filler


def test_what_does_not_fit_leaves_the_old_file_whole(small):
    """Of a row and of a checkpoint: the error names the file, and no part of the new one takes up room."""
    state = {"weight": torch.arange(50_000)}
    write_checkpoint(state, small / "last.ckpt")
    write_row(small, {"status": "running"})
    filler = fill(small)
    for write in (
        lambda: write_checkpoint({"weight": torch.zeros(50_000)}, small / "last.ckpt"),
        lambda: write_row(small, {"status": "finished", "why": "x" * 10_000}),
    ):
        with pytest.raises(OSError, match="No space left on device") as error:
            write()
        assert Path(error.value.filename).parent == small
    assert sorted(p.name for p in small.iterdir()) == ["filler", "last.ckpt", "row.json"]
    assert read_row(small)["status"] == "running"
    assert torch.equal(torch.load(small / "last.ckpt", weights_only=True)["weight"], state["weight"])
    filler.unlink()
    write_row(small, {"status": "finished"})
    assert read_row(small)["status"] == "finished"


@pytest.fixture
def bench(small: Path, tmp_path: Path) -> Bench:
    """On the small disk, where a checkpoint of rate 2 takes 0.7 MB and leaves no part; the notes lie elsewhere."""
    bench = Bench(small / "bench")
    text = (bench.folder / "stand_in.py").read_text()
    for old, new in {
        '{"step": step, "sum": 3}': '{"step": step, "sum": 3, "large": "x" * (700_000 if lr == 2 else 1)}',
        "    part.write_text(json.dumps(value))": "    try:\n        part.write_text(json.dumps(value))\n"
        "    except OSError:\n        part.unlink()\n        raise",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (bench.folder / "stand_in.py").write_text(text)
    bench.notes = tmp_path / "notes"
    bench.notes.mkdir()
    return bench


@pytest.fixture
def expected(tmp_path: Path) -> list[dict[str, object]]:
    undisturbed = Bench(tmp_path / "undisturbed")
    undisturbed.write()
    undisturbed.run()
    return found(undisturbed.logs)


def test_runs_that_do_not_fit_fail_and_are_finished_when_there_is_room(bench, small, expected):
    bench.write()
    filler = fill(small, leave=700_000)
    out = bench.run(code=1)
    assert out.count("FAILED: OSError: [Errno 28] No space left on device") == 2 and "2 done, 2 failed" in out
    states = {row["cell"]: row["status"] for row in rows(bench.logs)}
    assert states == {"lr=1": "finished", "lr=2": "failed"}
    ledger = Ledger("rates", f"sqlite:///{bench.logs}/study/ledger.sqlite", create=False)
    assert sorted(trial.state.name for trial in ledger._trials()) == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    ledger.close()
    filler.unlink()
    bench.run(retry=True)
    assert found(bench.logs) == expected and not bench.twice()


def test_a_disk_without_a_byte_ends_the_runner_in_a_line_and_a_restart_finishes_all(bench, small, expected):
    bench.write()
    (bench.notes / "hold").touch()
    runner = bench.start(pause=0.01)
    wait_for(lambda: steps(bench) == 2)
    filler = fill(small)
    (bench.notes / "hold").unlink()
    out = runner.communicate(timeout=120)[0]
    assert runner.returncode == 1, out
    last = out.splitlines()[-1]
    assert last.startswith("smallnets.errors.RunError: ") and "No space left on device; `smallnets study run`" in last
    assert not [row for row in rows(bench.logs) if row["status"] == "finished"]
    filler.unlink()
    bench.run(retry=True)
    assert found(bench.logs) == expected and not bench.twice()
