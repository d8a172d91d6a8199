"""`RayWorkers`: a study's workers as tasks of a Ray cluster, each with its share of CPUs and GPUs.

Ray is imported here alone. It only places the workers, `smallnets study work`, and starts them again where they die;
which run is whose stands in the ledger, and what was done in the run folders, as everywhere.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallnets.errors import RunError, UserError
from smallnets.studies.execute import end, last_error, start

_STOP_SECONDS = 45  # that a worker has to give back its run; the run itself has less
_POLL_SECONDS = 0.2
_STARTS = 3  # of a Ray of one's own, which gives up where its parts need more than 15 s on a busy machine


@dataclass(frozen=True)
class RayWorkers:
    """So many workers on a Ray cluster, whose machines share this working folder.

    Args:
        command: a worker's arguments of Python; its working folder is this one.
        workers: how many.
        address: of the cluster, as `ray.init` takes it; None for the environment's `RAY_ADDRESS`, or else a Ray that is
            started on this machine and ends with the study.
        cpus, gpus: of each worker; a share of a GPU is counted by Ray and enforced by nobody.
        shared: whether the ledger is one that several machines may use.
    """

    command: Sequence[str]
    workers: int = 1
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    shared: bool = False

    def work(self, logs: Path, say: Callable[[str], None], news: Callable[[], None]) -> bool:
        """Returns True when all workers have ended by themselves, False when it was stopped (Ctrl-C, SIGTERM).

        Args:
            logs: a folder for what the workers print, `worker-1.log` and so on.
            say: takes a line of text for the user.
            news: called again and again, to tell the user how far the study is.

        Raises:
            UserError: Ray is not installed, or the cluster has no room for a worker.
            RunError: the cluster does not answer, or every worker has failed.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError("--on ray needs ray: pip install 'smallnets[ray]'") from error
        with self._cluster(ray, say):
            options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 3}
            task = ray.remote(**options)(_work)
            outputs = [logs / f"worker-{number}.log" for number in range(1, self.workers + 1)]
            tasks = {task.remote(list(self.command), str(Path.cwd()), str(output)): output for output in outputs}
            try:
                return self._wait(ray, tasks, say, news)
            except KeyboardInterrupt:
                say("stopping the workers; `smallnets study run` goes on from their last checkpoints")
                for each in tasks:
                    ray.cancel(each)
                ray.wait(list(tasks), num_returns=len(tasks), timeout=_STOP_SECONDS)
                return False

    def _wait(self, ray: Any, tasks: dict[Any, Path], say: Callable[[str], None], news: Callable[[], None]) -> bool:
        left, errors = list(tasks), []
        while left:
            ended, left = ray.wait(left, timeout=1)
            for each in ended:
                try:
                    code = ray.get(each)
                    # 1: a run has failed, which its row says.
                    error = last_error(tasks[each]) if code not in (0, 1) else None
                except ray.exceptions.RayError as raised:
                    error = str(raised).strip().splitlines()[0]
                if error:
                    errors.append(error)
                    say(f"{tasks[each].stem} has ended: {error}  ({tasks[each]})")
            news()
        if len(errors) == len(tasks):
            raise RunError(f"every worker has ended with an error; the last: {errors[-1]}")
        return True

    @contextmanager
    def _cluster(self, ray: Any, say: Callable[[str], None]) -> Iterator[None]:
        # Nothing is reported to anybody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        own: dict[str, Any] = {"num_cpus": max(1, round(self.cpus * self.workers))} if address == "local" else {}
        if own:
            own |= {"include_dashboard": False, "object_store_memory": 80 * 2**20}
        for attempt in range(_STARTS if own else 1):
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
                break
            except Exception as error:  # Ray (2.60) raises it bare where its processes were slow to start
                if attempt + 1 == (_STARTS if own else 1):
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise RunError(f"no Ray answers at {address}: {reason}") from error
                ray.shutdown()
        # Ray's own would end this process before the workers have given back their runs.
        before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._check(ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes()), say)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            ray.shutdown()

    def _check(self, resources: dict[str, float], nodes: int, say: Callable[[str], None]) -> None:
        """UserError for what would wait for ever."""
        if nodes > 1 and not self.shared:
            raise UserError(f"the Ray cluster has {nodes} machines: --storage names a database that all of them reach")
        room = float(self.workers)
        for option, name, wanted in (("--cpus-per-worker", "CPU", self.cpus), ("--gpus-per-worker", "GPU", self.gpus)):
            there = resources.get(name, 0.0)
            if wanted > there:
                raise UserError(f"{option}={wanted:g}: the Ray cluster has {there:g} {name}s in all")
            room = min(room, there // wanted) if wanted else room
        if room < self.workers:
            say(f"{self.workers} workers; the Ray cluster has room for {room:g} at a time")


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _work(command: list[str], folder: str, output: str) -> int:
    """In a process of Ray's: a worker as a child that ends with it; returns its exit code."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no {folder} on {os.uname().nodename}: a cluster's machines share the folder")
    os.chdir(folder)
    process = start([sys.executable, *command], Path(output), None, dict(os.environ))
    try:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)  # Ray's interrupt does not end a system call
    finally:
        if process.poll() is None:
            end(process, signal.SIGTERM)
        code = process.wait()
    return code
