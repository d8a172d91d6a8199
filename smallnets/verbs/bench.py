"""`smallnets bench`: how fast the parts are here and now, each beside what it is compared with."""

import argparse
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallnets.bench import PARTS
from smallnets.bench.rows import Row
from smallnets.errors import UserError
from smallnets.verbs.arguments import Parser, add_device, chosen_device

if TYPE_CHECKING:
    from smallnets.bench.timing import Settings


def _parser() -> Parser:
    parser = Parser(
        prog="smallnets bench",
        description="Times each part and what it is compared with by turns, in one process, and prints medians and "
        "ratios, with the bars that this project set itself. About five minutes on one CPU core.",
        epilog="parts: " + "; ".join(f"{name}: {text}" for name, text in PARTS.items()),
    )
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--ckpt", action="append", default=[], metavar="FILE", help="instead of the parts: time the inference of these"
        " checkpoints and exported files by turns, each against the first (give it once for each file)",
    )  # fmt: skip
    parser.add_argument(
        "--save", action="store_true", help="keep the latency of one image that --ckpt measures in the runs' folders,"
        " for `smallnets report --figure pareto --cost latency_ms`",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds of each comparison (default: each part's own)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch on the CPU (default: 1)")
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds: to see that it runs")
    parser.add_argument("--json", action="store_true", help="print one object: the machine, the settings, the rows")
    return parser


def run(argv: Sequence[str]) -> int:
    """Measures and prints; 0 whether or not the bars are met, since a busy machine misses them too.

    Raises:
        UserError: a wrong command line.
        RunError: a command that is measured failed.
    """
    options = _parser().parse(argv)
    if options is None:
        return 0
    if options.ckpt and options.only:
        raise UserError("smallnets bench: --ckpt and --only exclude each other")
    if options.save:
        _check_save(options)
    parts = [] if options.ckpt else _parts(options.only)
    for name in ("repeats", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"smallnets bench: --{name} is 1 or more, not {value}")
    settings = _settings(options)
    from smallnets.bench.machine import describe_machine
    from smallnets.measure.latency import torch_threads

    found: list[tuple[str, Row]] = []
    with torch_threads(settings.threads):
        machine = describe_machine(settings.device)
        if not options.json:
            print(_machine_line(machine), flush=True)
        if options.ckpt:
            rows = import_module("smallnets.bench.files").measure(settings, options.ckpt)
            found += [("files", row) for row in rows]
            if not options.json:
                print("\n".join(map(_line, rows)), flush=True)
            if options.save:
                _save(rows, machine)
        for part in parts:
            print(f"bench: {part}: {PARTS[part]}", file=sys.stderr, flush=True)
            rows = import_module(f"smallnets.bench.{part}").measure(settings)
            found += [(part, row) for row in rows]
            if not options.json:
                print("\n".join([f"\n{part}: {PARTS[part]}", *map(_line, rows)]), flush=True)
    if options.json:
        stated = {"device": settings.device.type, "threads": settings.threads}
        stated |= {"repeats": settings.repeats, "quick": settings.quick}
        rows_of_all = [{"part": part, **row.plain()} for part, row in found]
        print(json.dumps({"machine": machine, "settings": stated, "rows": rows_of_all}, indent=2))
    elif parts:
        bars = [row.bar for _, row in found if row.bar]
        quick = "; --quick: the figures mean little" if settings.quick else ""
        print(f"\n{sum(bar.met for bar in bars)} of {len(bars)} bars met in this run{quick}")
    return 0


def _check_save(options: argparse.Namespace) -> None:
    """UserError for figures that a run's row cannot have."""
    from smallnets.results.load import read_checkpoint, require_float
    from smallnets.results.run import RunFolder

    if not options.ckpt or options.quick:
        raise UserError("smallnets bench: --save goes with --ckpt and without --quick")
    for path in map(Path, options.ckpt):
        if path.suffix != ".ckpt" or RunFolder.owning(path) is None:
            raise UserError(
                f"smallnets bench: --save: {path} is no checkpoint in a run's folder, whose row it would be"
            )
        # torch emulates the integers in floats: its time is that of neither network.
        require_float(read_checkpoint(path), path, "smallnets bench --save")


def _save(rows: "Sequence[Row]", machine: dict[str, Any]) -> None:
    from smallnets.results.latency import write_latency
    from smallnets.results.run import RunFolder

    name = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    for row in rows:
        if row.name != "batch 1":
            continue
        for path, seconds in ((row.a, row.median_a_seconds), (row.b, row.median_b_seconds)):
            run = RunFolder.owning(Path(path))
            assert run is not None and seconds is not None, "_check_save saw to it"
            about = {"checkpoint": Path(path).name, "rounds": row.rounds, "measured_on": machine}
            print(f"bench: {write_latency(run.path, seconds, name, about)}", file=sys.stderr)


def _parts(only: str | None) -> list[str]:
    """The parts asked for, in the order of `PARTS`. UserError with the nearest name for an unknown one."""
    if only is None:
        return list(PARTS)
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if name not in PARTS:
            near = get_close_matches(name, PARTS, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"smallnets bench: --only: there is no part {name!r}{meant}\nallowed: {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def _settings(options: argparse.Namespace) -> "Settings":
    from smallnets.bench.timing import Settings

    return Settings(chosen_device("smallnets bench", options.device), options.threads, options.repeats, options.quick)


def _machine_line(machine: dict[str, Any]) -> str:
    versions = machine["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "torchvision", "lightning"))
    gpu = f"{machine['gpu']}; " if machine["gpu"] else ""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores, {threads}, load {machine['load']}; {used}"


def _line(row: Row) -> str:
    """A row in print: `name: A 1.20 ms, B 0.40 ms, ratio 3.00 (2.90 .. 3.10); bar`."""
    if row.median_a_seconds is None or row.median_b_seconds is None:
        text = row.note
    else:
        times = f"{row.a} {_duration(row.median_a_seconds)}, {row.b} {_duration(row.median_b_seconds)}"
        text = f"{times}: {row.ratio:.3g}x ({row.ratio_low:.3g} .. {row.ratio_high:.3g}); {row.note}"
    if row.bar is None:
        return f"  {row.name}: {text}"
    bar = row.bar
    verdict = "met" if bar.met else "MISSED"
    return f"  {row.name}: {text}\n    {bar.figure} {bar.value:.4g}, to be {bar.relation} {bar.limit:g}: {verdict}"


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
