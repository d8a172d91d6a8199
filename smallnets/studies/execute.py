"""A command of a run in a process of its own: what it gets, how it ends with its starter, what it died of."""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# `smallnets` of this very installation.
SMALLNETS = (sys.executable, "-m", "smallnets")
# What a process of Lightning says to its own children, and must not say to a run.
_NOT_INHERITED = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "SMALLNETS_RUN_FOLDER", "LOCAL_RANK", "NODE_RANK")
_PR_SET_PDEATHSIG = 1


def run_environment(slot: int, slots: int, gpus: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a run in slot 0, 1, ...: its share of the cores, and one GPU of several by turns.

    `OMP_NUM_THREADS` stays as it is where it is set. A single slot may use all GPUs.
    """
    env = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // slots)))
    if slots > 1 and len(gpus) > 1:
        env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return env


def start(command: Sequence[str], output: Path, lock: int | None, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a command in a process group of its own, its output at the end of a file, holding the run's lock.

    The process is told to end when the thread that starts it dies, so that a killed runner leaves nothing behind; only
    Linux can do that.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True, preexec_fn=_ending_with(os.getpid()) if sys.platform == "linux" else None,
        )  # fmt: skip


def _ending_with(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be asked for
            os._exit(1)

    return prepare


def end(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Sends a signal to a process and those that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def was_killed(code: int) -> bool:
    """Whether an exit code says that a process was ended from outside, and not by an error of its own."""
    return code < 0 or code in (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGKILL)


def killed_by(code: int) -> str:
    """`SIGKILL`, for the exit code of a process that was killed."""
    return signal.Signals(-code if code < 0 else code - 128).name


def last_error(output: Path) -> str:
    """The error that a command ended with, in one line: smallnets' own, or the last line of all."""
    try:
        lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no output"
    starts = [i for i, line in enumerate(lines) if line.startswith("smallnets: error:")]
    # Of this attempt: what stands behind the line that names its command.
    begin = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    if starts and starts[-1] > begin:
        return re.sub(r"\s+", " ", " ".join(lines[starts[-1] :])).removeprefix("smallnets: error: ")
    return lines[-1] if lines and len(lines) - 1 > begin else "no output"
