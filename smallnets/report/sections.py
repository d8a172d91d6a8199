"""Parts of a report beside its tables and verdict: training curves, layers of pruned networks, all stated values."""

from pathlib import Path

from smallnets.report.collect import Results
from smallnets.report.curves import BANDS, SHOWN, CurvesFigure
from smallnets.report.figures import save
from smallnets.report.page import Page
from smallnets.report.pruned_nets import layer_figures, pruned_nets
from smallnets.report.stated import StatedTable
from smallnets.report.tables import markdown
from smallnets.results.row import write_text


def stated_section(results: Results, metric: str, out: Path, page: Page) -> tuple[list[Path], str]:
    """Every value that documents state, where some is of another figure than the table's; its files, and its text."""
    table = StatedTable(results)
    if set(table.frame()["metric"]) <= {metric}:
        return [], ""
    text = markdown(table.shown())
    write_text(out / "stated.md", text)
    write_text(out / "stated.csv", table.frame().to_csv(index=False))
    page.heading("What the documents state")
    page.table(table.shown())
    return [out / "stated.md", out / "stated.csv"], text


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
    return "curves-" + "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in metric)


def layers_section(results: Results, metric: str, out: Path, page: Page) -> tuple[list[Path], list[str]]:
    """Bars over the layers of pruned networks; the files, and a line for each checkpoint that cannot be read."""
    nets, problems = pruned_nets(results, metric)
    files: list[Path] = []
    for name, figure in layer_figures(nets).items():
        if not files:
            page.heading("Layer by layer")
            page.text("Of the first run of each cell whose checkpoint is there, up to six; dense networks first.")
        files += save(figure, out / name)
        page.chart(figure.plot())
    return files, problems
