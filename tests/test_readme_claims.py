"""What README states besides its commands: counts, measured figures, papers, options, files that are there."""

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from smallnets.cli import main
from smallnets.data import Digits

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINE = re.compile(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| [^|]* \| ([^|]*) \|$", re.MULTILINE)
MEASURED = re.compile(r"([\d.]+) ± ([\d.]+) \(n = (\d+), ([^)]+)\)")


def test_the_networks_are_those_of_the_table():
    from smallnets.models import NETWORKS
    from smallnets.verbs.models import rows

    written = LINE.findall(README)
    names = [name for name, *_ in written]
    counted = {r["name"]: (f"{r['parameters']:,}", f"{r['macs']:,}") for r in rows(names, [10])}
    assert sorted(names) == sorted(NETWORKS)
    assert {name: (p, m) for name, p, m, _ in written} == counted


# -- measured figures ------------------------------------------------------------------------------------------------


def kept_rows() -> list[dict[str, Any]]:
    """The rows in results/, each with the file that it stands in."""
    files = sorted((ROOT / "results").glob("*/rows.jsonl"))
    return [{**json.loads(line), "file": file} for file in files for line in file.read_text().splitlines()]


def lengths(net: str) -> set[int]:
    """The `max_epochs` of the recipes on CIFAR-10 that train a network from its start."""
    found = set()
    for folder in ("cifar10", "recipes"):
        for file in (ROOT / "configs" / folder).glob("*.yaml"):
            config = yaml.safe_load(file.read_text())
            if config["model"].get("net") == net and "finetune" not in file.stem:
                found.add(config["trainer"]["max_epochs"])
    return found


def shows(cell: str, parameters: int, macs: int, epochs: set[int], rows: list[dict[str, Any]]) -> bool:
    """Whether one cell of one study holds what the table says: mean and deviation in per cent, n, the device.

    Only whole recipes on CIFAR-10 count: of all `epochs` of one, of 45,000 training images or more, all 10,000 test
    images read once, the network as the table counts it. Rows of a single run have no cell: their name stands for it.
    """
    found = MEASURED.fullmatch(cell.strip())
    assert found, f"not of the form `91.27 ± 0.10 (n = 3, H200)`: {cell}"
    mean, sd, number, device = found.groups()
    groups = defaultdict(list)
    for row in rows:
        whole = row.get("train_size", 0) >= 45_000 and row.get("test_size") == 10_000 and row.get("test_reads") == 1
        same = (row.get("parameters"), row.get("macs")) == (parameters, macs)
        whole = whole and row.get("epochs") in epochs
        if whole and same and row["status"] == "finished" and device.lower() in str(row.get("device")).lower():
            groups[row["file"], row.get("cell", row.get("name")), row["epochs"]].append(100 * row["test_accuracy"])
    for values in groups.values():
        average = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - average) ** 2 for v in values) / max(1, len(values) - 1))
        digits = [len(text.partition(".")[2]) for text in (mean, sd)]
        if (f"{average:.{digits[0]}f}", f"{spread:.{digits[1]}f}", str(len(values))) == (mean, sd, number):
            return True
    return False


def test_a_measured_accuracy_is_the_mean_of_rows_in_results():
    rows = kept_rows()
    assert len(rows) > 50
    for name, parameters, macs, cell in LINE.findall(README):
        if cell.strip() != "not yet measured":
            counts = (int(parameters.replace(",", "")), int(macs.replace(",", "")))
            assert shows(cell, *counts, lengths(name), rows), f"{name}: {cell}"


def test_a_figure_that_no_rows_give_is_found():
    about = {"cell": "a", "status": "finished", "device": "NVIDIA H200", "parameters": 7, "macs": 9, "file": "x"}
    whole = {**about, "epochs": 160, "train_size": 45_000, "test_size": 10_000, "test_reads": 1}
    rows = [{**whole, "test_accuracy": share} for share in (0.91, 0.92, 0.93)]
    assert shows("92.00 ± 1.00 (n = 3, H200)", 7, 9, {160}, rows)
    for wrong in ("92.01 ± 1.00 (n = 3, H200)", "92.00 ± 0.82 (n = 3, H200)", "92.00 ± 1.00 (n = 2, H200)"):
        assert not shows(wrong, 7, 9, {160}, rows)
    assert not shows("92.00 ± 1.00 (n = 3, A100)", 7, 9, {160}, rows)
    assert not shows("92.00 ± 1.00 (n = 3, H200)", 8, 9, {160}, rows)
    assert not shows("92.00 ± 1.00 (n = 3, H200)", 7, 9, {160}, [{**row, "train_size": 1000} for row in rows])


def test_a_run_of_fewer_epochs_than_its_recipe_is_no_measured_figure():
    """The row of eight epochs of `resnet20` is whole but for its length."""
    assert lengths("resnet20") == {80, 160} and lengths("resnet32") == set()
    rows = [row for row in kept_rows() if row["file"].parent.name == "resnet20_short"]
    resnet20 = ("82.98 ± 0.00 (n = 1, cpu)", 272_474, 40_813_184)
    assert shows(*resnet20, {8}, rows)
    assert not shows(*resnet20, lengths("resnet20"), rows)


def test_the_picture_at_the_top_is_drawn_from_its_rows(tmp_path):
    """The figures beside the picture are those that `smallnets report` takes from the rows, and three seeds each."""
    pytest.importorskip("altair", reason="the extra report is not installed")
    folder = ROOT / "results" / "digits_widths"
    assert f"]({(folder / 'pareto-parameters.svg').relative_to(ROOT)})" in README
    assert main(["report", str(folder / "rows.jsonl"), "--figure=pareto", f"--out={tmp_path}"]) == 0
    drawn, kept = ((where / "pareto-parameters.csv").read_text() for where in (tmp_path, folder))
    assert drawn == kept
    cells = {row["cell"] for row in kept_rows() if row["file"].parent == folder}
    assert len(cells) >= 7 and {line.split(",")[2] for line in kept.splitlines()[1:]} == {"3"}
    # Names that would lie upon others are left out of the picture.
    assert sum(cell in (folder / "pareto-parameters.svg").read_text() for cell in cells) >= 5


# -- the papers ------------------------------------------------------------------------------------------------------

# Who else has a year: competitions, conferences.
NO_AUTHORS = {"Challenge", "MLSys", "NeurIPS", "MicroNet", "ILSVRC"}
AUTHOR = r"[A-Z][\w-]+"
YEAR = r",? \(?((?:19|20)\d\d)\b"
# "Han et al. 2015", "Zhu & Gupta 2017", "Holm 1979"; and "Hinton, Vinyals, Dean 2015".
ONE, SEVERAL = rf"({AUTHOR})(?: et al\.| (?:and|&) {AUTHOR})?{YEAR}", rf"({AUTHOR})(?:, {AUTHOR})+{YEAR}"
PAPER = re.compile(rf"\b(?:{ONE}|{SEVERAL})")


def test_the_papers_that_the_code_names_are_cited():
    """Each by its first author and its year."""
    cited = " ".join(README[README.index("## Citations") :].replace("ü", "ue").split())
    named = defaultdict(set)
    for file in (ROOT / "smallnets").rglob("*.py"):
        text = re.sub(r"\s+(?:# )?\s*", " ", file.read_text())
        for first, year, among, then in PAPER.findall(text):
            if (first or among) not in NO_AUTHORS:
                named[first or among, year or then].add(file.relative_to(ROOT).as_posix())
    assert len(named) > 40 and ("Frankle", "2019") in named and ("Hinton", "2015") in named
    found = {(a, y) for a, y in named if re.search(rf"\b{a}(?: et al\.| and {AUTHOR})? {y}\b", cited)}
    assert {paper: files for paper, files in named.items() if paper not in found} == {}


# -- options, sizes, files -------------------------------------------------------------------------------------------


def test_options_of_several_devices_and_machines_exist(capsys):
    assert main(["study", "run", "--help"]) == 0
    page = capsys.readouterr().out
    section = README[README.index("## More devices") : README.index("## Networks")]
    options = set(re.findall(r"`?smallnets study run \S+ (--[\w-]+)", section))
    assert options == {"--slots", "--storage", "--on"} and all(f"{option} " in page for option in options)
    assert "{local,ray}" in page


def test_the_sizes_of_the_splits_are_true():
    data = Digits()
    data.setup("fit")
    data.setup("test")
    sizes = " / ".join(f"{data.split_sizes[part]:,}" for part in ("train", "val", "test"))
    assert f"| {sizes} |" in (ROOT / "docs/data.md").read_text()


def test_files_and_folders_that_are_named_exist():
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text()
        for path in re.findall(r"`((?:configs|docs|results|smallnets|notebooks|tests)/[\w/.-]*)`", text):
            assert (ROOT / path).exists() or (ROOT / "smallnets" / path).exists(), f"{page.name}: {path}"
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
