"""`write_report`: everything that is made of a folder of runs, into one folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallnets.report.checklist import Checklist
from smallnets.report.collect import Results
from smallnets.report.figures import save
from smallnets.report.flags import resolution
from smallnets.report.lottery import Lottery, lotteries
from smallnets.report.lottery_figure import LotteryFigure
from smallnets.report.page import Page
from smallnets.report.pareto import COSTS, ParetoFigure, machines
from smallnets.report.remaining import Family, RemainingFigure, families, remaining_table, sentences
from smallnets.report.rows import write_rows
from smallnets.report.sections import (
    curves_section,
    layers_section,
    rounds_section,
    stated_section,
    verdict_section,
)
from smallnets.report.tables import ResultTable, is_share, markdown
from smallnets.report.verdict import DENSE, MARGIN, TICKET, Verdict, verdict
from smallnets.results.row import write_text


@dataclass(frozen=True)
class Asked:
    """What a report is to show.

    Args:
        metric: a figure of the row.
        baseline: the cell that others are compared with; None for none.
        limits: count -> the most that is allowed.
        stated: points of documents, as their CSV file says.
        halving: document 003's axis for lotteries.
        margin: of the verdict.
        curves: columns of `metrics.csv` to draw by epoch; none for the usual ones.
    """

    metric: str = "val_accuracy"
    baseline: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    stated: Sequence[Mapping[str, Any]] = field(default_factory=list)
    halving: bool = False
    margin: float = MARGIN
    curves: tuple[str, ...] = ()

    def points(self, column: str) -> list[Mapping[str, Any]]:
        """The stated points that have a value in a column."""
        return [point for point in self.stated if point.get(column) is not None]


@dataclass(frozen=True)
class Report:
    """What was made: the table, a verdict for each lottery, all files, and what was left out.

    `beside` says of each real network where its curve and those of its other forms cross; `stated` is the table of all
    stated values where some are of other figures than the table's.
    """

    table: ResultTable
    verdicts: dict[str, Verdict]
    files: list[Path]
    problems: list[str]
    beside: list[str] = field(default_factory=list)
    stated: str = ""

    @property
    def page(self) -> Path:
        return self.files[-1]


def write_report(results: Results, out: Path, asked: Asked) -> Report:
    """Writes table, checklist, verdicts, figures and the page into `out`; each file by rename, the page last."""
    out.mkdir(parents=True, exist_ok=True)
    table = ResultTable(results, asked.metric, asked.baseline, asked.limits)
    found, unplaced = lotteries(results, asked.metric)
    # A verdict and the figures are of accuracies; a lottery may have been measured by another figure only.
    found = [each for each in found if each.points and is_share(asked.metric)]
    verdicts = {each.name: verdict(each.points, asked.margin) for each in found if can_judge(each)}
    page = Page(results.name, results.asks)
    files = [*_table(table, out, page), *write_rows(results, out)]
    of_all, stated = stated_section(results, asked.metric, out, page)
    files += of_all
    for name, each in verdicts.items():
        files += verdict_section(name, each, out, page, len(verdicts) > 1)
    if found:
        figure = lottery_figure(found, asked)
        files += save(figure, out / "lottery")
        page.heading("Accuracy against weights remaining")
        page.text("Lines are means over seeds, bands one standard deviation; dashed: the dense network.")
        page.chart(figure.plot())
    rounds, unread = rounds_section(results, out, page)
    files += rounds
    said: list[str] = []
    if beside := families(found):
        said = sentences(beside)
        files += _forms(beside, said, asked, out, page)
    if is_share(asked.metric):
        files += _costs(results, asked, out, page)
    files += _checklist(Checklist(results, asked.metric), out, page)
    bars, no_layers = layers_section(results, asked.metric, out, page)
    files += [*bars, *curves_section(results, asked.curves, out, page)]
    problems = [*results.problems, *unplaced, *unread, *no_layers]
    if problems:
        page.heading("Left out")
        page.listed(problems)
    write_text(out / "index.html", page.html())
    return Report(table, verdicts, [*files, out / "index.html"], problems, said, stated)


def can_judge(lottery: Lottery) -> bool:
    """Whether a lottery has both a dense network and a ticket that were measured."""
    return {DENSE, TICKET} <= {point.series for point in lottery.points}


def lottery_figure(found: Sequence[Lottery], asked: Asked) -> LotteryFigure:
    """The lotteries' figure; where a network and its other forms are among them, without stated points and crossings.

    Its axis is the share of the largest lottery's weights, and a document's points are shares of their own real
    network's: those, and crossings, are drawn by `RemainingFigure`.
    """
    alone = not families(found)
    points = asked.points("remaining") if alone else []
    return LotteryFigure(found, asked.metric, asked.halving, points, cross=alone)


def _table(table: ResultTable, out: Path, page: Page) -> list[Path]:
    stem = out / "table"
    images = resolution(table.results.rows, table.metric)
    write_text(stem.with_suffix(".md"), table.markdown() + (f"\n{images}\n" if images else ""))
    write_text(stem.with_suffix(".tex"), table.latex())
    write_text(stem.with_suffix(".csv"), table.frame().to_csv(index=False))
    page.heading("Results")
    compared = (
        f" Differences to {table.baseline} are paired by seed; p: paired t test, adjusted for the number of"
        " comparisons (Holm). Seeds needed: for power 0.8 at a difference of this size."
        if table.baseline is not None
        else ""
    )
    page.text(
        f"{table.metric}: mean over seeds, standard deviation (n - 1), t interval of the mean.{compared} {images or ''}"
    )
    page.table(table.shown())
    return [stem.with_suffix(kind) for kind in (".md", ".tex", ".csv")]


def _forms(found: Sequence[Family], said: Sequence[str], asked: Asked, out: Path, page: Page) -> list[Path]:
    """Real networks beside their other forms: where the curves cross, in words, a table and two figures."""
    page.heading("Against the real network's weights")
    for sentence in said:
        page.text(sentence, finding=True)
    page.text(
        "Lines are means over seeds, bands one standard deviation; faint: what documents state; crosses: crossings."
    )
    files, stem = [], out / "remaining"
    points = asked.points("remaining")
    figures = {
        "remaining": RemainingFigure(found, asked.metric, points, "remaining"),
        "remaining-parameters": RemainingFigure(found, asked.metric, points, "parameters"),
    }
    for name, figure in figures.items():
        files += save(figure, out / name)
        page.chart(figure.plot())
    text = "\n\n".join(said) + "\n\n" + markdown(remaining_table(found))
    write_text(stem.with_suffix(".md"), text)
    return [*files, stem.with_suffix(".md")]


def _costs(results: Results, asked: Asked, out: Path, page: Page) -> list[Path]:
    files = []
    costs = ["parameters", "macs", "bytes"]
    if any(row["nonzero_parameters"] != row["parameters"] for row in results.rows):
        costs.insert(1, "nonzero_parameters")
    figures = [
        (cost, f"pareto-{cost}", ParetoFigure(results, asked.metric, cost, asked.points(cost))) for cost in costs
    ]
    found = machines(results)
    for index, machine in enumerate(found, 1):
        latency = ParetoFigure(results, asked.metric, "latency_ms", asked.points("latency_ms"), machine)
        figures.append(("latency_ms", f"pareto-latency_ms{f'-{index}' if len(found) > 1 else ''}", latency))
    for cost, name, figure in figures:
        if len(figure.frame()) == 0:
            continue
        files += save(figure, out / name)
        page.heading(f"{asked.metric} against {COSTS[cost]}")
        if figure.machine is not None:
            page.text(f"Measured on {figure.machine}.")
        if cost == "parameters":
            page.text(
                "The dashed line is the Pareto front of the measured means; hollow marks are what documents state."
            )
        page.chart(figure.plot())
    return files


def _checklist(found: Checklist, out: Path, page: Page) -> list[Path]:
    text = found.markdown()
    if not text:
        return []
    write_text(out / "checklist.md", text)
    write_text(out / "checklist.csv", found.frame().to_csv(index=False))
    page.heading("Pruning checklist (Blalock et al. 2020)")
    page.table(found.shown())
    page.text(text.splitlines()[-1])
    return [out / "checklist.md", out / "checklist.csv"]
