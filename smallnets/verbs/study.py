"""`smallnets study run | work | status | commands FILE`: a grid of configurations and seeds that may be killed."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallnets.errors import UserError
from smallnets.studies.on_ray import RayWorkers
from smallnets.studies.plan import Plan, make_plan, old_runs, stored_plan
from smallnets.studies.progress import counts, duration, seconds_left, seconds_taken
from smallnets.studies.state import RunLock, State, read_record, state_of
from smallnets.studies.study import KEYS, QUICK_KEYS, Study
from smallnets.verbs.arguments import Parser, spec_arguments


def _parser() -> Parser:
    parser = Parser(
        prog="smallnets study",
        description="Runs a grid of configurations and seeds, each run a process of its own; killed and started again, "
        "it goes on where it was.",
        epilog=f"keys of FILE: {', '.join(KEYS)}; of its `quick`: {', '.join(QUICK_KEYS)} (docs/studies.md)",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{run,work,status,commands}")
    common = spec_arguments("study", "studies")
    working = Parser(add_help=False)
    working.add_argument("--slots", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    ledger = "the ledger's database, such as postgresql://USER@HOST/NAME (default: SQLite in the study's folder)"
    working.add_argument("--storage", metavar="URL", help=ledger)
    go = actions.add_parser("run", parents=[common, working], help="run what is left of it")
    go.add_argument("--retry", action="store_true", help="also the runs that failed")
    go.add_argument("--on", choices=("local", "ray"), default="local", help="where the workers are (default: local)")
    ray = go.add_argument_group("on a Ray cluster (extra `ray`), whose machines share this folder")
    ray.add_argument(
        "--address", metavar="HOST:PORT", help="of the cluster (default: RAY_ADDRESS, or a Ray of its own)"
    )
    ray.add_argument("--workers", type=int, metavar="N", help="so many, each at one run (default: 1)")
    ray.add_argument("--cpus-per-worker", type=float, metavar="X", help="CPUs that Ray counts for each (default: 1)")
    ray.add_argument("--gpus-per-worker", type=float, metavar="X", help="GPUs, as 0.25 for four on one (default: 0)")
    actions.add_parser("work", parents=[common, working], help="help with a study that `run` has begun")
    status = actions.add_parser("status", parents=[common], help="what is done, what is running, how long it takes")
    status.add_argument("--commands", action="store_true", help="print each run's command lines instead")
    status.add_argument("--json", action="store_true", help="print one object")
    actions.add_parser("commands", parents=[common], help="print each run's command lines, to be pasted")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs the verb and returns the exit code: 1 if a run has failed, 130 if it was stopped.

    Raises:
        UserError: a wrong command line, or a study that cannot be run as it is written.
    """
    options = _parser().parse(argv)
    if options is None:
        return 0
    study = Study.read(options.file, options.quick)
    if options.action in ("run", "work"):
        return _run(study, options)
    plan = stored_plan(study, options.folder)
    if plan is None:
        plan = _new_plan(study, options.folder)
    if options.action == "commands" or options.commands:
        plan.write()  # the lines name its copies of the configs
        print("\n".join(plan.commands()))
    else:
        _status(plan, options.json)
    return 0


def _run(study: Study, options: argparse.Namespace) -> int:
    if options.slots < 1:
        raise UserError(f"smallnets study: --slots is 1 or more, not {options.slots}")
    from smallnets.studies.run import run_study
    from smallnets.verbs.resolve import FitResolver

    join = options.action == "work"
    retry = not join and options.retry
    elsewhere = None if join else _elsewhere(options)
    return run_study(
        study, FitResolver(), root=options.folder, slots=options.slots, storage=options.storage, retry=retry, join=join,
        gpus=_gpus(), elsewhere=elsewhere,
    )  # fmt: skip


def _elsewhere(options: argparse.Namespace) -> RayWorkers | None:
    given = {name: getattr(options, name) for name in ("address", "workers", "cpus_per_worker", "gpus_per_worker")}
    if options.on == "local":
        for name, value in given.items():
            if value is not None:
                raise UserError(
                    f"smallnets study: --{name.replace('_', '-')} is for --on ray; here --slots says how many"
                )
        return None
    if options.slots != 1:
        raise UserError("smallnets study: --on ray takes --workers, each at one run, and no --slots")
    workers, cpus, gpus = (
        1 if options.workers is None else options.workers,
        given["cpus_per_worker"],
        given["gpus_per_worker"],
    )
    cpus, gpus = 1.0 if cpus is None else cpus, gpus or 0.0
    if workers < 1 or cpus < 0 or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise UserError(
            "smallnets study: --workers is 1 or more, --cpus-per-worker 0 or more, --gpus-per-worker a share of 1 or a"
            f" whole number; got {workers}, {cpus:g}, {gpus:g}"
        )
    command = [
        "-m",
        "smallnets",
        "study",
        "work",
        options.file,
        f"--folder={options.folder}",
        *(["--quick"] * options.quick),
    ]
    command += [f"--storage={options.storage}"] if options.storage else []
    return RayWorkers(command, workers, options.address, cpus, gpus, shared=options.storage is not None)


def _gpus() -> list[str]:
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(n) for n in range(torch.cuda.device_count())]


def _new_plan(study: Study, folder: Path) -> Plan:
    from smallnets.verbs.resolve import FitResolver  # imports torch and Lightning, which takes seconds

    return make_plan(study, folder, FitResolver())


def _status(plan: Plan, as_json: bool) -> None:
    runs = {run.name: run for run in plan.runs()}
    states = {name: state_of(plan, run) for name, run in runs.items()}
    records = {name: read_record(plan, run) for name, run in runs.items()}
    at_work = [
        name for name, state in states.items() if state is not State.DONE and RunLock(plan.folder.lock(name)).held()
    ]
    running = {name: max(0.0, time.time() - records[name].get("since", time.time())) for name in at_work}
    took = {n: s for n, r in runs.items() if states[n] is State.DONE and (s := seconds_taken(plan, r))}
    left = seconds_left(plan, runs, states, took, running, max(1, len(running)))
    shown: dict[str, Any] = {name: "running" if name in running else str(state) for name, state in states.items()}
    errors = {name: records[name].get("error") for name, state in shown.items() if state == State.FAILED}
    if as_json:
        lines = [
            {"run": n, "cell": r.cell.cell, "seed": r.seed, "state": shown[n], "error": errors.get(n)}
            for n, r in runs.items()
        ]
        about = {"name": plan.name, "asks": plan.asks, "folder": str(plan.folder.path), "excluded": plan.excluded}
        print(json.dumps({**about, "seconds_left": left, "runs": lines}, indent=1))
        return
    print(f"{plan.name}: {plan.asks}")
    others = [state for name, state in states.items() if name not in running]
    slots = f" in {len(running)} slots" if len(running) > 1 else ""
    todo = any(state not in (State.DONE, State.FAILED) for state in states.values())
    time_left = f"; about {duration(left)} left{slots}" if left is not None and todo else ""
    print(f"{len(runs)} runs in {plan.folder.path}: {counts(others, len(running))}{time_left}")
    width = max(len(cell.cell) for cell in plan.cells)
    for cell in plan.cells:
        of_cell = [f"seed {r.seed} {shown[n]}" for n, r in runs.items() if r.cell is cell]
        print(f"  {cell.cell:{width}}  {', '.join(of_cell)}")
    for name, reason in plan.excluded.items():
        print(f"  {name} is left out: {reason}")
    for name, error in errors.items():
        print(f"failed: {name}: {error}")
    for sentence in old_runs(plan):
        print(f"changed: {sentence}")
