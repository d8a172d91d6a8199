"""Parts of a report beside its table: all stated values, a lottery's verdict and rounds, curves, layers."""

from pathlib import Path

import pandas as pd

from smallnets.report.collect import Results
from smallnets.report.curves import BANDS, SHOWN, CurvesFigure
from smallnets.report.figures import save
from smallnets.report.overlap import ABOUT, mask_overlap, overlap_table
from smallnets.report.page import Page
from smallnets.report.pruned_nets import layer_figures, pruned_nets
from smallnets.report.rounds import RoundsTable
from smallnets.report.stated import StatedTable
from smallnets.report.tables import interval, latex, markdown, number
from smallnets.report.verdict import DENSE, Verdict
from smallnets.results.row import write_text


def stated_section(results: Results, metric: str, out: Path, page: Page) -> tuple[list[Path], str]:
    """Every value that documents state, where some is of another figure than the table's; its files, and its text."""
    table = StatedTable(results)
    if set(table.frame()["metric"]) <= {metric}:
        return [], ""
    text = markdown(table.shown())
    write_text(out / "stated.md", text)
    write_text(out / "stated.tex", latex(table.shown()))
    write_text(out / "stated.csv", table.frame().to_csv(index=False))
    page.heading("What the documents state")
    page.table(table.shown())
    return [out / f"stated.{kind}" for kind in ("md", "tex", "csv")], text


def curves_section(results: Results, metrics: tuple[str, ...], out: Path, page: Page) -> list[Path]:
    """A figure of every epoch for each metric that has more than one: the runs' folders may be gone."""
    files: list[Path] = []
    for metric in metrics or SHOWN:
        figure = CurvesFigure(results, metric)
        if figure.frame()["epoch"].nunique() < 2:
            continue
        if not files:
            page.heading("Training curves")
            page.text(BANDS)
        files += save(figure, out / curve_name(metric))
        page.chart(figure.plot())
    return files


def curve_name(metric: str) -> str:
    """The file's name of a curve: `curves-val-accuracy`."""
    return f"curves-{file_name(metric)}"


def layers_section(results: Results, metric: str, out: Path, page: Page) -> tuple[list[Path], list[str]]:
    """Bars over the layers of pruned networks; the files, and a line for each checkpoint that cannot be read."""
    nets, problems = pruned_nets(results, metric)
    files: list[Path] = []
    for name, figure in layer_figures(nets).items():
        if not files:
            page.heading("Layer by layer")
            page.text("Of the first run of each cell whose checkpoint is there, up to six; dense networks first.")
        files += save(figure, out / name)
        page.chart(figure.plot(), wide=True)
    return files, problems


def rounds_section(results: Results, out: Path, page: Page) -> tuple[list[Path], list[str]]:
    """A lottery's rounds, and the overlap of its masks between seeds; the files, and what could not be read."""
    table = RoundsTable(results)
    if len(table.frame()) == 0:
        return [], []
    text = markdown(table.shown())
    write_text(out / "rounds.csv", table.frame().to_csv(index=False))
    write_text(out / "rounds-layers.csv", table.layer_frame().to_csv(index=False))
    page.heading("Rounds")
    page.text("Means over runs: epochs and seconds of each round, and the layers that keep most and least.")
    page.table(table.shown())
    files = [out / name for name in ("rounds.csv", "rounds-layers.csv", "rounds.md")]
    shared, problems = mask_overlap(results)
    if len(shared):
        lines = overlap_table(shared)
        text += f"\n{ABOUT}\n\n{markdown(lines)}"
        write_text(out / "overlap.csv", shared.to_csv(index=False))
        files.append(out / "overlap.csv")
        page.heading("Masks of different seeds")
        page.text(ABOUT)
        page.table(lines)
    write_text(out / "rounds.md", text)
    return files, problems


def verdict_section(name: str, found: Verdict, out: Path, page: Page, several: bool) -> list[Path]:
    """A lottery's verdict: the sentence, the rule and the table; its files."""
    stem = out / (f"verdict-{file_name(name)}" if several else "verdict")
    lines = verdict_table(found)
    rule = (
        "Matching: the 95 % interval of the difference to dense, paired by seed, lies above"
        f" {-100 * found.margin:g} points."
    )
    smallest = (
        "No ticket was matching."
        if found.smallest_matching is None
        else f"The smallest matching ticket keeps {100 * found.smallest_matching:.3g} % of the weights."
    )
    text = f"# {name}\n\n{found.sentence}\n\n{smallest} {rule}\n\n{markdown(lines)}"
    write_text(stem.with_suffix(".md"), text)
    write_text(stem.with_suffix(".csv"), pd.DataFrame(found.records()).to_csv(index=False))
    page.heading(f"Verdict: {name}" if several else "Verdict")
    page.text(found.sentence, finding=True)
    page.text(f"{smallest} {rule}")
    page.table(lines)
    return [stem.with_suffix(".md"), stem.with_suffix(".csv")]


def verdict_table(found: Verdict) -> list[list[str]]:
    """A header and a line for each series and density, accuracies in percent."""
    header = ["density", "series", "n", "epochs", "mean (%)", "sd", "less dense", "its 95 % CI", "judgement"]
    lines = [[*header, "ticket less it", "its 95 % CI"]]
    for line in found.records():
        dense = line["series"] == DENSE
        lines.append(
            [
                f"{100 * line['density']:.3g} %",
                line["series"],
                str(line["n"]),
                number(line["epochs"], False, "-"),
                number(line["mean"], True, "-"),
                number(line["sd"], True, "-"),
                number(line["difference"], True, "-", signed=True),
                interval(line["difference_low"], line["difference_high"], True, "-", signed=True),
                "-" if dense else line["judgement"],
                number(line["ticket_less"], True, "-", signed=True),
                interval(line["ticket_less_low"], line["ticket_less_high"], True, "-", signed=True),
            ]
        )
    return lines


def file_name(text: str) -> str:
    """A name as a file's: other letters become dashes."""
    return "".join(letter if letter.isalnum() or letter in "-_=.," else "-" for letter in text)
