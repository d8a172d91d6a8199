"""`smallnets search FILE`, `search show FILE`, `search confirm FILE`: Optuna over configurations of `fit`."""

import argparse
import contextlib
import shlex
import signal
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from smallnets.errors import UserError
from smallnets.results.row import write_text
from smallnets.studies.execute import SMALLNETS, end, run_environment
from smallnets.studies.search import Trials
from smallnets.studies.search_space import KEYS, QUICK_KEYS, Dimension, Search
from smallnets.studies.trial import Report, line_of
from smallnets.verbs.arguments import Parser, spec_arguments
from smallnets.verbs.search_show import show

_ACTIONS = ("run", "show", "confirm")


def _parser() -> Parser:
    parser = Parser(
        prog="smallnets search",
        description="Searches a space of configurations; killed and started again, it goes on where it was. "
        "`smallnets search FILE` is `smallnets search run FILE`.",
        epilog=f"keys of FILE: {', '.join(KEYS)}; of its `quick`: {', '.join(QUICK_KEYS)} (docs/studies.md)",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{run,show,confirm}")
    common = spec_arguments("search", "search")
    storage = "a database such as postgresql://USER@HOST/NAME, or a journal's file (default: SQLite in the folder)"
    common.add_argument("--storage", metavar="URL", help=storage)
    go = actions.add_parser("run", parents=[common], help="make trials")
    go.add_argument("--trials", type=int, metavar="N", help="so many in all, those of earlier starts included")
    go.add_argument("--workers", type=int, default=1, metavar="K", help="processes, each at one trial (default: 1)")
    show = actions.add_parser("show", parents=[common], help="the best, what mattered, all trials")
    show.add_argument("--json", action="store_true", help="print one object")
    show.add_argument("--out", type=Path, metavar="DIR", help="write figures there (SVG, CSV) and a page of them")
    confirm = actions.add_parser("confirm", parents=[common], help="train the best anew, on fresh seeds, and test it")
    confirm.add_argument("--seeds", type=int, metavar="N", help="how many (default: what the file says, or 3)")
    confirm.add_argument("--slots", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs the verb and returns the exit code: 1 if no trial could be trained or a run of `confirm` failed.

    Raises:
        UserError: a wrong command line, or a search that cannot be run as it is written.
    """
    words = list(argv)
    if words and words[0] not in (*_ACTIONS, "-h", "--help"):
        words = ["run", *words]
    options = _parser().parse(words)
    if options is None:
        return 0
    search = Search.read(options.file, options.quick)
    if options.action == "run":
        return _run(search, options)
    trials = Trials(search, options.folder, options.storage, create=False)
    if options.action == "confirm":
        return _confirm(search, trials, options)
    return show(search, trials, options.json, options.out)


# -- making trials -----------------------------------------------------------------------------------------------------


def _run(search: Search, options: argparse.Namespace) -> int:
    wanted = search.trials if options.trials is None else options.trials
    for name, number in {"--trials": wanted, "--workers": options.workers}.items():
        if number < 1:
            raise UserError(f"smallnets search: {name} is 1 or more, not {number}")
    wanted = search.at_most(wanted)
    fit = _Fit(options.folder / "lightning_logs" / search.name / "search")
    _check(search, fit)
    trials = Trials(search, options.folder, options.storage)
    have = len(trials.ended())
    kinds = f"{search.sampler[0]}{''.join(f', {name} pruner' for name in search.pruner)}"
    _say(f"{search.name}: {have} of {wanted} trials; {kinds}; {trials.folder}")
    if options.workers == 1:
        trials.work(wanted, fit, _say)
    elif code := _work_together(search, options, wanted):
        return code
    best = trials.best()
    if not best:
        _say(f"no trial of {search.name} was trained to its end")
        return 1
    for each in best:
        _say(f"best: {line_of(each)}; {each.folder}")
    again = f"smallnets search confirm {search.file}{' --quick' * options.quick}"
    _say(f"`{again}` trains it anew on fresh seeds, for a figure to report")
    return 0


def _check(search: Search, fit: "_Fit") -> None:
    """A space with a wrong option is told of before the first trial."""

    def edge(dimension: Dimension, last: bool) -> Any:
        if dimension.choices:
            return list(dimension.choices)[-1 if last else 0]
        value = dimension.high if last else dimension.low
        return int(value) if dimension.whole else value

    for last in (False, True):
        try:
            fit.settings(search.arguments(search.draw(lambda dimension, last=last: edge(dimension, last))))  # type: ignore[misc]
        except UserError as error:
            raise UserError(f"search {search.file}: {error}") from error


class _Fit:
    """`smallnets.studies.search.Fit`, in this process: what is imported is paid for once."""

    def __init__(self, folder: Path) -> None:
        from smallnets.verbs.resolve import FitResolver

        resolver = FitResolver()
        self.settings, self.counts, self._folder = resolver.settings, resolver.counts, folder

    def train(self, arguments: list[str], report: Report) -> None:
        """`fit`, its output beside the trial's lock."""
        from lightning.pytorch import LightningModule, Trainer
        from lightning.pytorch.callbacks import LambdaCallback

        from smallnets.callbacks.record import RunRecord
        from smallnets.verbs import trainer as verb

        def validated(trainer: Trainer, module: LightningModule) -> None:
            value = trainer.callback_metrics.get("val/accuracy")
            if value is not None and not trainer.sanity_checking and report(trainer.current_epoch, float(value)):
                trainer.should_stop = True
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, RunRecord):
                        callback.prune()

        class Reporting(verb.TrainerCLI):
            def instantiate_trainer(self, **kwargs: Any) -> Trainer:
                trainer = super().instantiate_trainer(**kwargs)
                callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
                callbacks.append(LambdaCallback(on_validation_end=validated))
                return trainer

        name = next(a.partition("=")[2] for a in arguments if a.startswith("--run="))
        with (self._folder / f"{name}.log").open("a") as file:
            file.write(f"$ {shlex.join(['smallnets', 'fit', *arguments])}\n")
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                verb.run("fit", arguments, Reporting)


def _work_together(search: Search, options: argparse.Namespace, wanted: int) -> int:
    """So many processes on one storage; 130 if they were stopped."""
    from smallnets.verbs.study import _gpus

    command = [*SMALLNETS, "search", "run", str(search.file), f"--trials={wanted}", f"--folder={options.folder}"]
    command += ["--quick"] * options.quick + ([f"--storage={options.storage}"] if options.storage else [])
    gpus = _gpus()
    workers = [
        subprocess.Popen(command, env=run_environment(n, options.workers, gpus), start_new_session=True)
        for n in range(options.workers)
    ]

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        codes = [130]
    finally:
        signal.signal(signal.SIGTERM, before)
        for worker in workers:
            if worker.poll() is None:
                end(worker, signal.SIGTERM)
                worker.wait()
    return 130 if 130 in codes else next((code for code in codes if code < 0 or code > 1), 0)


# -- training the best anew --------------------------------------------------------------------------------------------


def _confirm(search: Search, trials: Trials, options: argparse.Namespace) -> int:
    from smallnets.results import rows
    from smallnets.studies.run import run_study
    from smallnets.studies.study import Study
    from smallnets.verbs.resolve import FitResolver

    count = options.seeds if options.seeds is not None else search.confirm.get("seeds", 3)
    if type(count) is not int or count < 1:
        raise UserError(f"smallnets search confirm: --seeds is 1 or more, not {count}")
    best = trials.best()
    if not best:
        raise UserError(f"there is no trial of {search.name} that was trained to its end")
    more = search.confirm.get("set") or {}
    spec = {
        "name": f"{search.name}-confirm",
        "asks": f"What does the best of {search.name} reach on seeds that it was not chosen by?",
        "base": [str(file.absolute()) for file in search.base],
        "cells": {f"trial-{each.number:04d}": {**each.options, **more} for each in best},
        "seeds": [search.seed + 1 + n for n in range(count)],
        "metrics": ["test_accuracy", "val_accuracy"],
    }
    file = trials.folder / "search" / "confirm.yaml"
    write_text(file, yaml.safe_dump(spec, sort_keys=False))
    code = run_study(Study.read(file), FitResolver(), root=options.folder, slots=options.slots)
    if code:
        return code
    found = rows(options.folder / "lightning_logs" / str(spec["name"]))
    for each in best:
        mine = [row["test_accuracy"] for row in found if row["cell"] == f"trial-{each.number:04d}"]
        spread = f" +- {statistics.stdev(mine):.4f} (s.d.)" if len(mine) > 1 else ""
        chosen = (each.values or {}).get("val_accuracy")
        by = f"; validation when it was chosen {chosen:.4f}" if chosen is not None else ""
        _say(f"trial {each.number}: test accuracy {statistics.mean(mine):.4f}{spread} over {len(mine)} seeds{by}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
