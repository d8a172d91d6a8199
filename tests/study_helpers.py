"""A study whose runs cost nothing: a stand-in for `fit` and `test` that keeps the run folder's contract, no torch."""

import contextlib
import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from smallnets.studies import ledger
from smallnets.studies.run import run_study
from smallnets.studies.study import Study

STAND_IN = '''
"""`fit` and `test` of ten steps: checkpoints by rename, a row at the end, a note of every step and of two at once."""
import hashlib, json, os, sys, time
from pathlib import Path

verb, options = sys.argv[1], {}
for word, following in zip(sys.argv[2:], sys.argv[3:] + [""]):
    name, equals, value = word.removeprefix("--").partition("=")
    if word.startswith("--"):
        options[name] = value if equals else following
if verb == "test":
    folder = Path(options["config"]).parent
else:
    root = Path(options.get("trainer.default_root_dir", "."))
    folder = root / "lightning_logs" / options["name"] / options["run"]
notes = Path(os.environ["NOTES"])


def write(path, value):
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(value))
    part.replace(path)


def alone():
    mark = notes / f"{folder.name}.pid"
    try:
        # A process that is dead and whose end nobody has asked for yet is in the list still.
        state = Path(f"/proc/{int(mark.read_text())}/stat").read_text().rpartition(")")[2].split()[0]
        if state != "Z":
            (notes / f"{folder.name}.twice").touch()
    except (OSError, ValueError):
        pass
    mark.write_text(str(os.getpid()))
    return mark


mark = alone()
last, row = folder / "checkpoints/last.ckpt", folder / "row.json"
pause = float(os.environ.get("PAUSE", "0.02"))
if verb == "fit":
    lr, seed = float(options["model.optimizer.lr"]), int(options["seed_everything"])
    step, parent = 0, None
    if "model.init_from" in options:
        try:
            parent = json.loads(Path(options["model.init_from"]).read_text())
            assert parent["status"] == "finished" and parent["test_accuracy"] is not None
        except (OSError, AssertionError):
            (notes / f"{folder.name}.early").touch()
            sys.exit("smallnets: error: what it needs is not there")
    if options.get("ckpt_path") == "last":
        step = json.loads(last.read_text())["step"]
    elif folder.is_dir() and any(folder.iterdir()):
        sys.exit("smallnets: error: the folder is in use")
    last.parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("x: 1")
    while step < 10:
        if lr >= 100:
            print("Traceback\\nsmallnets: error: training loss is NaN", flush=True)
            sys.exit(1)
        if lr == 13 and step == 5 and not (notes / f"{folder.name}.died").exists():
            (notes / f"{folder.name}.died").touch()
            os.kill(os.getpid(), 9)
        if lr == 66:
            os.kill(os.getpid(), 9)
        time.sleep(pause)
        until = time.monotonic() + 120
        while step == 2 and (notes / "hold").exists() and time.monotonic() < until:
            time.sleep(0.02)
        step += 1
        write(last, {"step": step, "sum": 3})
    best = last.with_name("best.ckpt")
    best.write_text(f"{lr} {seed}")
    epoch = {"schema": 1, "status": "finished", "error": None, "name": options["name"], "run": folder.name,
             "seed": seed, "val_accuracy": round(0.5 + lr / 1000 + seed / 100, 6), "steps": step,
             "test_accuracy": None, "test_reads": 0, "test_checkpoint": None}
    if parent is not None:
        epoch.update(parent=parent["run"], parent_accuracy=parent["val_accuracy"])
    write(row, epoch)
else:
    if json.loads(row.read_text()).get("test_reads") and options.get("reread_test") != "true":
        sys.exit("smallnets: error: the test set was read before")
    digest = hashlib.sha256(last.with_name("best.ckpt").read_bytes()).hexdigest()[:16]
    was = json.loads(row.read_text())
    write(row, {**was, "test_reads": was["test_reads"] + 1, "test_checkpoint": digest, "test_accuracy": None})
    time.sleep(pause)
    was = json.loads(row.read_text())
    write(row, {**was, "test_accuracy": was["val_accuracy"] - 0.01})
    with (notes / f"{folder.name}.tested").open("a") as file:
        file.write("tested\\n")
mark.unlink()
'''

RUNNER = """
import sys
sys.path.insert(0, {tests!r})
from study_helpers import Options
from smallnets.studies import ledger, study
from smallnets.studies.run import run_study
ledger.BEAT_SECONDS, ledger.GRACE_SECONDS = 1, 2
command = [sys.executable, {stand_in!r}]
sys.exit(run_study(study.Study.read(sys.argv[1]), Options(), command=command, **eval(sys.argv[2])))
"""


class Options:
    """A resolver that knows no defaults: the settings of a command line are its options and its configs' text."""

    def __init__(self) -> None:
        self.prepared: list[list[str]] = []

    def settings(self, arguments: list[str]) -> dict[str, Any]:
        words = [w for w in arguments if w != "--config"]
        return {w.partition("=")[0] if "=" in w else "base": w.partition("=")[2] or Path(w).read_text() for w in words}

    def over_budget(self, arguments: list[str], budget: dict[str, Any]) -> list[str]:
        lr = next(float(a.partition("=")[2]) for a in arguments if a.startswith("--model.optimizer.lr="))
        return [f"parameters {lr:g} > limit {budget['parameters']}"] if lr > budget["parameters"] else []

    def prepare(self, arguments: list[str]) -> None:
        for word, following in pairwise(arguments):
            assert word != "--config" or Path(following).is_file(), "asked for before its configs are there"
        self.prepared.append(arguments)


class Bench:
    """A folder with a study of stand-ins, to be run by processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes"
        self.notes.mkdir(parents=True)
        (folder / "stand_in.py").write_text(STAND_IN)
        runner = RUNNER.format(tests=str(Path(__file__).parent), stand_in=str(folder / "stand_in.py"))
        (folder / "runner.py").write_text(runner)
        self.file = folder / "rates.yaml"

    def write(self, **study: Any) -> Path:
        spec = {"asks": "Which rate?", "axes": {"model.optimizer.lr": [1, 2]}, "seeds": 2, **study}
        self.file.write_text(json.dumps(spec))
        return self.file

    def environment(self, pause: float) -> dict[str, str]:
        return {"NOTES": str(self.notes), "PAUSE": str(pause), "OMP_NUM_THREADS": "1"}

    def start(self, pause: float = 0.02, program: str = "runner.py", **more: Any) -> "subprocess.Popen[str]":
        """A runner of its own, to be killed."""
        return subprocess.Popen(
            [sys.executable, "-u", str(self.folder / program), str(self.file), repr(more)], cwd=self.folder,
            env={**os.environ, **self.environment(pause)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, pause: float = 0.0, code: int = 0, **more: Any) -> str:
        """Runs the study in this process, whose imports are paid for; returns what it prints."""
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.chdir(self.folder)
            for name, value in self.environment(pause).items():
                patch.setenv(name, value)
            patch.setattr(ledger, "BEAT_SECONDS", 1)
            patch.setattr(ledger, "GRACE_SECONDS", 2)
            command = [sys.executable, str(self.folder / "stand_in.py")]
            self.resolver = Options()
            got = run_study(Study.read(self.file.name), self.resolver, command=command, **more)
        assert got == code, out.getvalue()
        return out.getvalue()

    @property
    def logs(self) -> Path:
        return self.folder / "lightning_logs/rates"

    def twice(self) -> list[str]:
        """Runs that two processes worked on at the same time."""
        return [p.stem for p in self.notes.glob("*.twice")]
