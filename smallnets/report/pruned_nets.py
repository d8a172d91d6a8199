"""`pruned_nets`: the layers of a study's pruned networks beside their dense parents', where checkpoints are left."""

from pathlib import Path

from smallnets.errors import RunError, UserError
from smallnets.report.checklist import records_of
from smallnets.report.collect import Cell, Results
from smallnets.report.layers import Layer, LayersFigure, read_nets
from smallnets.report.parents import dense_parent
from smallnets.results.run import RunFolder

# Bars of more networks beside each other are too thin to be told apart.
MOST = 6


def pruned_nets(results: Results, metric: str) -> tuple[dict[str, list[Layer]], list[str]]:
    """Cell -> layers of its first run's network, of cells that were pruned and of their dense parents.

    Dense ones come first. Up to six networks; a line for each checkpoint that cannot be read. Cells without a
    checkpoint are left out.
    """
    cells = {cell.name: cell for cell in results.cells if cell.rows}
    chosen: dict[str, Cell] = {}
    for cell in cells.values():
        for record in records_of(cell.rows[0])[:1]:
            parent = dense_parent(cell, record, results, metric)
            if parent is not None and parent.name in cells:
                chosen[parent.name] = cells[parent.name]
            chosen[cell.name] = cell
    found: dict[str, list[Layer]] = {}
    problems = []
    for name, cell in sorted(chosen.items(), key=lambda item: bool(records_of(item[1].rows[0]))):
        run = RunFolder(Path(str(cell.rows[0].get("folder"))))
        path = next((each for each in (run.best, run.last) if each.is_file()), None)
        if path is None or len(found) == MOST:
            continue
        try:
            found[name] = next(iter(read_nets([str(path)]).values()))
        except (UserError, RunError) as error:
            problems.append(f"layers of {name}: {error}")
    return found, problems


def layer_figures(nets: dict[str, list[Layer]]) -> dict[str, LayersFigure]:
    """Name -> figure: nonzero parameters where weights are masked, filters and parameters where channels are gone."""
    layers = [layer for each in nets.values() for layer in each]
    widths = {tuple((layer.layer, layer.filters) for layer in each) for each in nets.values()}
    masked = any(layer.nonzero_parameters != layer.parameters for layer in layers)
    shown = ["filters", "parameters"] if len(widths) > 1 or (nets and not masked) else []
    return {f"layers-{show}": LayersFigure(nets, show) for show in [*shown, *["nonzero_parameters"] * masked]}
