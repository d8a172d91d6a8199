"""A lottery's rounds: densities by layer, epochs and seconds; and how alike the masks of different seeds are."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from report_helpers import control_record, in_study, lottery_record, study

from smallnets.pruning.masks import Masks
from smallnets.report.collect import collect
from smallnets.report.overlap import mask_overlap, overlap_table
from smallnets.report.page import Page
from smallnets.report.rounds import RoundsTable
from smallnets.report.sections import rounds_section

LAYERS = {"stem": 0.9, "a": 0.8, "b": 0.7, "c": 0.6, "d": 0.5, "e": 0.4, "head": 0.3}


@pytest.fixture
def lottery(tmp_path: Path) -> Path:
    """Two seeds of two rounds with layers, seconds and the masks of round 1; a control of round 2."""
    folder = study(tmp_path / "lot", {"ticket": {}, "reinit": {}}, [0, 1, 2])
    for seed in (0, 1):
        record = lottery_record([0.9, 0.9, 0.8])
        for each in record["rounds"]:
            each["layers"] = LAYERS if each["round"] == 2 else dict.fromkeys(LAYERS, each["density"])
            each["seconds"] = 10.0 * each["round"] + 2 * seed
            each["checkpoint"] = f"checkpoints/round-{each['round']}.ckpt"
        made = in_study(folder, "ticket", seed, 0.8, pruning=[record])
        (folder / made["run"] / "checkpoints").mkdir()
        control = control_record("random_reinit", 0.25, f"logs/lot/{made['run']}/checkpoints/round-2.ckpt", 2)
        in_study(folder, "reinit", seed, 0.7, pruning=[control], epochs=7, seconds=3.0)
    return folder


def test_rounds_have_layers_epochs_and_seconds(lottery: Path) -> None:
    table = RoundsTable(collect([lottery]))
    frame = table.frame().set_index(["series", "round"])
    assert frame["density"].tolist() == [1.0, 0.5, 0.25, 0.25] and frame["n"].tolist() == [2, 2, 2, 2]
    assert frame["seconds"].tolist() == [1.0, 11.0, 21.0, 3.0] and frame["epochs"].tolist() == [10, 10, 10, 7]
    header, dense, _, last, control = table.shown()
    assert last[header.index("densest layers")] == "stem 90 %, a 80 %, b 70 %"
    assert last[header.index("sparsest layers")] == "d 50 %, e 40 %, head 30 %"
    assert dense[-2:] == control[-2:] == ["-", "-"] and control[:3] == ["reinit", "random_reinit", "2"]
    layers = table.layer_frame().set_index(["round", "layer"])
    assert len(layers) == 21 and layers.loc[(2, "c"), "density"] == pytest.approx(0.6)


def test_overlap_of_masks_between_seeds_stands_beside_chance(lottery: Path, tmp_path: Path) -> None:
    """Kept: {0, 1}, {1, 2} and {0, 1} of 4: one of three common, all, one of three. By chance 1 of 4 - 1."""
    results = collect([lottery])
    assert mask_overlap(results)[0].empty  # no checkpoint is left
    third = in_study(lottery, "ticket", 2, 0.8, pruning=results.cell("ticket").rows[0]["pruning"])
    (lottery / third["run"] / "checkpoints").mkdir()
    results = collect([lottery])
    kept = {0: [1, 1, 0, 0], 1: [0, 1, 1, 0], 2: [1, 1, 0, 0]}
    for row in results.cell("ticket").rows:
        masks = Masks({"fc.weight": torch.tensor([kept[row["seed"]]], dtype=torch.bool)})
        stored = {"smallnets": {"masks": masks.state_dict()}, "state_dict": {"net.fc.weight": torch.zeros(1, 4)}}
        torch.save(stored, Path(row["folder"]) / "checkpoints" / "round-1.ckpt")
        (Path(row["folder"]) / "checkpoints" / "round-2.ckpt").write_bytes(b"cut")
    frame, problems = mask_overlap(results)
    (line,) = frame.to_dict("records")
    assert (line["round"], line["density"], line["seeds"], line["pairs"]) == (1, 0.5, 3, 3)
    assert line["jaccard"] == pytest.approx(5 / 9) and line["chance"] == pytest.approx(1 / 3)
    assert (line["lowest"], line["highest"]) == (pytest.approx(1 / 3), 1)
    assert overlap_table(frame)[1] == ["ticket", "1", "50 %", "3", "0.556 (0.333 to 1.000)", "0.333"]
    assert len(problems) == 3 and all("round-2.ckpt is damaged" in problem for problem in problems)
    page = Page("a")
    files, told = rounds_section(results, tmp_path, page)
    assert told == problems and all(path.is_file() for path in files) and len(files) == 4
    assert "Masks of different seeds" in page.html() and "0.556" in (tmp_path / "rounds.md").read_text()
    assert pd.read_csv(tmp_path / "rounds-layers.csv")["density"].min() == 0.3
