"""`smallnets report`: tables, figures, a verdict and one page, from the rows of runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallnets.errors import UserError
from smallnets.verbs.arguments import Parser

if TYPE_CHECKING:
    from smallnets.report.collect import Results
    from smallnets.report.write import Asked

FIGURES = {
    "curves": "--curve by epoch, a line a cell with its band over seeds",
    "layers": "filters and parameters of each layer, of checkpoints instead of folders (PATH or NAME=PATH)",
    "pareto": "accuracy against --cost",
    "lottery": "accuracy against weights remaining",
    "remaining": "accuracy against the share of the real network's weights, of a network and its other forms",
}
LIMITED = ("parameters", "nonzero_parameters", "macs", "bytes")
COSTS = (*LIMITED, "latency_ms")


def _parser() -> Parser:
    parser = Parser(
        prog="smallnets report",
        description="Puts the rows of runs together by cell and writes table.md, table.csv, table.tex, rows.csv with a "
        "line a run, figures (PNG, SVG, HTML, with their numbers as CSV), for lotteries a verdict, for pruned networks "
        "a checklist, and index.html.",
        epilog="figures: " + "; ".join(f"{name}: {text}" for name, text in FIGURES.items()),
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folders of runs or studies (lightning_logs/NAME)")
    parser.add_argument("--figure", metavar="NAME", help=f"this figure alone: {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/<folder's name>)")
    parser.add_argument(
        "--metric", metavar="NAME", help="a figure of the row (default: the study's first metric, else val_accuracy)"
    )
    parser.add_argument("--baseline", metavar="CELL", help="compare with this cell (default: the first; none: no cell)")
    parser.add_argument(
        "--cost", default="parameters", metavar="NAME", help=f"of {', '.join(COSTS)} (which `bench --save` keeps)"
    )
    parser.add_argument(
        "--budget", action="append", default=[], metavar="NAME=N", help="flag cells above it, as in parameters=5M"
    )
    parser.add_argument(
        "--stated", type=Path, metavar="FILE", help="CSV with points of documents: name, accuracy and parameters, macs"
        " or bytes; or series, accuracy and remaining; accuracies as shares of 1",
    )  # fmt: skip
    parser.add_argument(
        "--curve", action="append", default=[], metavar="NAME", help="a column of metrics.csv to draw by epoch; may be "
        "given several times (default: val/accuracy and train/loss)",
    )  # fmt: skip
    parser.add_argument(
        "--halving", action="store_true", help="lottery: a reversed axis of halvings, as document 003's"
    )
    parser.add_argument(
        "--parquet", action="store_true", help="end unless rows.parquet can be written (it is where pyarrow is there)"
    )
    parser.add_argument(
        "--margin", type=float, default=0.5, metavar="POINTS", help="verdict: a loss that does not count (default: 0.5)"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Writes the report, prints its table, and what was left out on stderr.

    Raises:
        UserError: a wrong command line, no rows, a checkpoint that is not ours.
    """
    options = _parser().parse(argv)
    if options is None:
        return 0
    _check(options)
    try:
        import altair  # noqa: F401  that the extra is installed is asked once, for all of it
        import pandas  # noqa: F401
        import vl_convert  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"smallnets report needs {error.name}: pip install 'smallnets[report]'") from error
    from smallnets.report.rows import can_parquet

    if options.parquet and not can_parquet():
        raise UserError("smallnets report --parquet needs pyarrow: pip install 'smallnets[parquet]'")
    try:
        return _layers(options) if options.figure == "layers" else _rows(options)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"smallnets report: cannot write {error.filename}: {error.strerror}") from error


def _check(options: argparse.Namespace) -> None:
    from smallnets.report.collect import nearest

    for option, name, known in (("--figure", options.figure, FIGURES), ("--cost", options.cost, COSTS)):
        if name is not None and name not in known:
            raise UserError(f"smallnets report: {option}: there is no {name!r}; {nearest(name, known)}")
    if not 0 <= options.margin < 100:
        raise UserError(f"smallnets report: --margin is points of accuracy, from 0 to 100, got {options.margin}")


def _layers(options: argparse.Namespace) -> int:
    from smallnets.report.figures import save
    from smallnets.report.layers import LayersFigure, read_nets

    nets = read_nets(options.paths)
    out = options.out or Path("report/layers")
    for show in ("filters", "parameters"):
        for path in save(LayersFigure(nets, show), out / f"layers-{show}"):
            print(path)
    return 0


def _rows(options: argparse.Namespace) -> int:
    from smallnets.report.collect import collect
    from smallnets.report.curves import curve_figure

    results = collect(options.paths)
    options.metric = options.metric or results.metric
    results.check_metric(options.metric)
    out = options.out or Path("report") / (results.name if len(options.paths) == 1 else "several")
    for each in options.curve:
        curve_figure(results, each)  # that there is such a curve
    problems: list[str] = []
    if options.figure is None:
        from smallnets.report.write import write_report

        report = write_report(results, out, _asked(options, results))
        print(report.table.markdown())
        if report.stated:
            print(report.stated)
        for name, found in report.verdicts.items():
            print(f"{name}: {found.sentence}\n")
        for sentence in report.beside:
            print(f"{sentence}\n")
        print(f"{len(report.files)} files in {out}; open {report.page}")
        problems = report.problems
    else:
        from smallnets.report.figures import save

        figures, problems = _figures(options, results)
        for name, figure in figures.items():
            for path in save(figure, out / name):
                print(path)
        problems = [*results.problems, *problems]
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0


def _figures(options: argparse.Namespace, results: "Results") -> tuple[dict[str, Any], list[str]]:
    """Name of the file -> figure, of those that were asked for; and what was left out."""
    if options.figure == "curves":
        from smallnets.report.curves import SHOWN, curve_figure
        from smallnets.report.sections import curve_name

        return {curve_name(each): curve_figure(results, each) for each in options.curve or SHOWN}, []
    figure, problems = _figure(options, results)
    return {f"pareto-{options.cost}" if options.figure == "pareto" else options.figure: figure}, problems


def _figure(options: argparse.Namespace, results: "Results") -> tuple[Any, list[str]]:
    from smallnets.report.lottery import lotteries
    from smallnets.report.pareto import ParetoFigure
    from smallnets.report.remaining import RemainingFigure, families
    from smallnets.report.tables import is_share
    from smallnets.report.write import lottery_figure

    if not is_share(options.metric):
        raise UserError(f"--figure {options.figure}: --metric must be an accuracy, got {options.metric}")
    asked = _asked(options, results)
    if options.figure == "pareto":
        figure = ParetoFigure(results, asked.metric, options.cost, asked.points(options.cost))
        if len(figure.frame()) == 0:
            hint = "; smallnets bench --ckpt CKPT --save measures it" if options.cost == "latency_ms" else ""
            raise UserError(f"--figure pareto: no run here has {asked.metric} and {options.cost}{hint}")
        return figure, []
    found, problems = lotteries(results, asked.metric)
    if not any(each.points for each in found):
        where = ", ".join(options.paths)
        raise UserError(f"--figure {options.figure}: no run of LotteryTicket with {asked.metric} in {where}")
    if options.figure == "remaining":
        beside = families(found)
        if not beside:
            raise UserError("--figure remaining: no real network with another form of it, quaternion or narrow, here")
        return RemainingFigure(beside, asked.metric, asked.points("remaining")), problems
    if asked.points("remaining") and families(found):
        problems = [*problems, "stated points: they are shares of a real network's weights, as --figure remaining is"]
    return lottery_figure(found, asked), problems


def _asked(options: argparse.Namespace, results: "Results") -> "Asked":
    from smallnets.report.stated import read_points
    from smallnets.report.write import Asked

    baseline = None if options.baseline == "none" else options.baseline or _first(results)
    if baseline is not None:
        results.cell(baseline)
    return Asked(
        options.metric, baseline, _limits(options.budget), read_points(options.stated), options.halving,
        options.margin / 100, tuple(options.curve),
    )  # fmt: skip


def _first(results: "Results") -> str | None:
    names = [cell.name for cell in results.cells if cell.rows]
    return names[0] if len(names) > 1 else None


def _limits(given: Sequence[str]) -> dict[str, int]:
    from smallnets.measure.budget import Budget
    from smallnets.report.collect import nearest

    limits: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in LIMITED:
            raise UserError(f"smallnets report: --budget: NAME=N is expected, got {text!r}; {nearest(name, LIMITED)}")
        limits[name] = value
    return Budget(**limits).limits() if limits else {}
