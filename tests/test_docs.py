"""The documentation builds without a warning, its examples run, and each page is reached from the index."""

import ast
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the docs extra is not installed")
from sphinx.cmd.build import main as sphinx_build

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.timeout(900)
def test_it_builds_and_its_examples_run(tmp_path: Path) -> None:
    """-W makes a warning an error: a page in no toctree, a link to nowhere, a docstring that is no reStructuredText."""
    assert sphinx_build(["-q", "-W", "-b", "html", str(DOCS), str(tmp_path / "html")]) == 0
    for page in PAGES:
        assert (tmp_path / "html" / page.replace(".md", ".html")).is_file()
    assert sphinx_build(["-q", "-W", "-b", "doctest", str(DOCS), str(tmp_path / "doctest")]) == 0
    ran = re.search(r"(\d+) tests?\n", (tmp_path / "doctest" / "output.txt").read_text())
    assert ran and int(ran[1]) >= 8


def test_each_room_and_what_notebooks_import_stands_in_the_reference() -> None:
    """`report` is a room without names of its own: its modules have sections."""
    import smallnets

    documented = {name for page in PAGES for name in re.findall(r"automodule:: ([\w.]+)", (DOCS / page).read_text())}
    rooms = {f"smallnets.{room}" for room in smallnets._ROOMS}
    assert not hasattr(smallnets.report, "__all__")
    imported = set()
    for path in (DOCS.parent / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                imported |= modules("".join(cell["source"]))
    assert {"smallnets.report.collect", "smallnets.results.pictures"} <= imported
    assert (rooms - {"smallnets.report"}) | imported <= documented


def modules(source: str) -> set[str]:
    """The modules of smallnets that a cell imports from."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.partition(".")[0] == "smallnets"}
