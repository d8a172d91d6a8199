"""The documentation builds without a warning, its examples run, and each page is reached from the index."""

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


def test_what_the_reference_names_is_in_the_package() -> None:
    """Each room that a notebook may import from has a page."""
    import smallnets

    documented = {name for page in PAGES for name in re.findall(r"automodule:: ([\w.]+)", (DOCS / page).read_text())}
    rooms = {f"smallnets.{room}" for room in smallnets._ROOMS} - {"smallnets.report"}
    assert rooms <= documented
    assert any(name.startswith("smallnets.report.") for name in documented)
