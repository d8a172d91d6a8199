"""The documentation's settings: `sphinx-build -W docs docs/_build/html`."""

import smallnets

project = "smallnets"
author = "the smallnets developers"
project_copyright = "the smallnets developers, Apache-2.0"
release = version = smallnets.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "smallnets"
exclude_patterns = ["_build"]

# Headings are link targets, as GitHub makes them; `name` in a docstring is code.
myst_heading_anchors = 3
default_role = "code"

autodoc_inherit_docstrings = False  # of Lightning and torch
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Headings of this project's own docstrings.
napoleon_custom_sections = ["Law", "Laws"]
# Examples in docstrings are written >>> and run by the builder `doctest`.
doctest_test_doctest_blocks = "default"
# Written as they are by the standard library, which this documentation does not link to.
nitpicky = False
