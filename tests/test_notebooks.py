"""Every notebook runs from a clean kernel without a warning and gives what it says; what is kept of it is small."""

import ast
import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra dev, or notebooks, is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra dev, or notebooks, is not installed")
pytest.importorskip("ipykernel", reason="the extra dev, or notebooks, is not installed")
pytest.importorskip("altair", reason="the extra report is not installed")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = [
    "1_first_look", "2_budgets_and_pruning", "3_lottery_tickets", "4_quaternion_against_real",
    "5_studies_and_reports", "6_export_and_measure",
]  # fmt: skip
CIFAR = os.environ.get("SMALLNETS_CIFAR10")
# Digits are easy: a network that learned anything is far above this, one at chance far below.
LEARNED = 0.8
MOST_BYTES = 100_000


def first_look(found: dict[str, Any]) -> None:
    # Stem 216 + 16, then 1,184, 3,680 + 160 and 14,016 + 640 for the stages with their shortcuts, head 330.
    assert found["parameters"] == 19_954
    assert found["confusion_is_of"] == 150 and found["test_reads"] == 1 and found["health"] == []
    assert found["mistakes"] == round(150 * (1 - found["val_accuracy"]))
    assert found["row_val_accuracy"] == round(found["val_accuracy"], 6) >= LEARNED
    assert found["test_accuracy"] >= LEARNED


def budgets_and_pruning(found: dict[str, Any]) -> None:
    kept, total = found["kept_by_masks"]
    assert kept == (total + 1) // 2
    assert found["sparse"] == (found["dense"], found["dense_macs"])
    assert found["pruned"][0] <= found["limits"]["parameters"] < found["dense"]
    assert found["pruned"][1] <= found["limits"]["macs"]
    assert found["slim"] < 0.3 * found["dense"]
    assert min(found["accuracy"]) >= LEARNED and found["same_logits"] is True


def lottery_tickets(found: dict[str, Any]) -> None:
    kept = [found["total"]]
    for _ in range(3):
        kept.append(kept[-1] - -(-kept[-1] // 2))  # kept -= ceil(kept / 2)
    assert found["total"] == 50_200 and found["kept"] == kept
    # Three seeds: the dense network, three tickets, and two controls from each of these.
    assert found["points"] == 3 * (1 + 3 + 2 * 3) and found["left_out"] == []
    assert found["finding"] in ("supported", "refuted", "undecided") and found["dense_accuracy"] >= LEARNED


def quaternion_against_real(found: dict[str, Any]) -> None:
    real, quaternion = found["parameters"]["real"], found["parameters"]["quaternion"]
    assert found["product"] is True and found["macs"]["real"] == found["macs"]["quaternion"]
    # The head, BatchNorm and nothing else stay real.
    assert 0.25 < quaternion / real < 0.3
    assert min(found["accuracy"].values()) >= LEARNED and found["gap"] < 1e-4


def studies_and_reports(found: dict[str, Any]) -> None:
    assert found["runs"] == 9
    assert found["parameters"] == [75 * width + 10 for width in (8, 16, 64)]  # 64 + 1 to it, 10 from it; 10 biases
    report = (ROOT / "results" / "lottery_digits" / "report.md").read_text()
    with (ROOT / "results" / "lottery_digits" / "verdict.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert found["points"] == sum(int(line["n"]) for line in kept)
    matching = [
        float(line["density"]) for line in kept if (line["series"], line["judgement"]) == ("ticket", "matching")
    ]
    assert found["smallest_matching"] == min(matching, default=None)
    assert f"is {found['finding']} by these runs" in report
    assert found["pairs"] == [int(line["n"]) for line in kept if line["series"] == "random_reinit"]


def export_and_measure(found: dict[str, Any]) -> None:
    assert found["exit_code"] == 0 and found["card"] is True
    assert found["relative_error"]["fp32"] < 1e-4 and found["relative_error"]["int8"] < 0.25
    assert found["same_class"]["fp32"] == 1.0 and found["same_class"]["int8"] >= 0.9
    assert found["bytes"]["int8"] < found["bytes"]["fp32"]
    assert found["accuracy"]["fp32"] == found["accuracy"]["network"] >= LEARNED


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {name: globals()[name.partition("_")[2]] for name in NAMES}


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(notebook: Any, tag: str) -> Any:
    found = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    assert len(found) == 1, f"one cell has the tag {tag}"
    return found[0]


def result(notebook: Any) -> dict[str, Any]:
    """The value of the last cell, which is plain data."""
    cell = tagged(notebook, "results")
    assert cell is code_cells(notebook)[-1]
    return ast.literal_eval(cell.outputs[-1].data["text/plain"])


def problems(notebook: Any) -> list[str]:
    outputs = [(cell.source, output) for cell in code_cells(notebook) for output in cell.outputs]
    said = [f"{source[:60]!r}: {o.text}" for source, o in outputs if o.output_type == "stream" and o.name == "stderr"]
    return said + [f"{source[:60]!r}: {o.ename}: {o.evalue}" for source, o in outputs if o.output_type == "error"]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Executes a notebook in a folder of its own, beside nothing but `results/`, in a kernel of its own."""
    for name in ("PL_GLOBAL_SEED", "SMALLNETS_RUN_FOLDER", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "notebooks").mkdir()

    def run(notebook: Any) -> Any:
        where = {"metadata": {"path": str(tmp_path / "notebooks")}}
        client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where)
        return client.execute()

    return run


def test_the_notebooks_are_those_that_are_checked() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    assert re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", (ROOT / "README.md").read_text()) == NAMES


@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_gives_what_it_says(name: str, execute: Callable[[Any], Any]) -> None:
    if name.startswith("6"):
        pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    before = sorted(path.name for path in FOLDER.iterdir())
    kept = read(name)
    for cell in code_cells(kept):
        cell.outputs, cell.execution_count = [], None
    done = execute(kept)
    assert problems(done) == []
    assert all(cell.execution_count for cell in code_cells(done))
    CHECKS[name](result(done))
    assert sorted(path.name for path in FOLDER.iterdir()) == before


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_small_and_of_one_whole_execution(name: str) -> None:
    path, notebook = FOLDER / f"{name}.ipynb", read(name)
    assert path.stat().st_size <= MOST_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert problems(notebook) == []
    assert notebook.metadata.kernelspec.name == "python3"
    # As measured on one core when the outputs were made; a reader has three minutes.
    seconds = re.search(r"Some (\d+) s of one CPU core", notebook.cells[0].source)
    assert notebook.cells[0].cell_type == "markdown" and seconds and int(seconds[1]) <= 180
    # No folder of a machine and no name of an account.
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert re.findall(r"(?:/(?:home|root|tmp|Users|work|opt|mnt|var|venv)/|[A-Z]:\\\\)\S*", text) == []
    CHECKS[name](result(notebook))


@pytest.mark.slow
@pytest.mark.skipif(CIFAR is None, reason="SMALLNETS_CIFAR10 does not name a folder with CIFAR-10")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_cells_run_on_cifar10(name: str, execute: Callable[[Any], Any]) -> None:
    """One variable is another; that there are fewer images and epochs only shortens the test."""
    notebook = read(name)
    cell = tagged(notebook, "parameters")
    assert re.search(r'^DATA = "Digits"', cell.source)
    cell.source = re.sub(r'"Digits"', '"CIFAR10"', cell.source, count=1) + f"\nROOT, EPOCHS = {CIFAR!r}, 1\n" + FEWER
    done = execute(notebook)
    # One epoch on few images may well leave a network at chance, which health says.
    assert [line for line in problems(done) if "HealthWarning" not in line] == []
    assert set(result(done)) == set(result(read(name)))


FEWER = """
import functools

import smallnets.data.sets

smallnets.data.CIFAR10 = functools.partial(smallnets.data.sets.CIFAR10, train_size=640)
"""
