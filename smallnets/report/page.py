"""`Page`: one HTML file with the tables and figures of a study, that opens from disk and loads nothing."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import vl_convert

from smallnets.report.figures import spec
from smallnets.report.tables import figure_columns

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 88rem;
  padding: 1rem; box-sizing: border-box; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ccc; }
p { overflow-wrap: anywhere; }
.asks { font-size: 1.1rem; }
.finding { background: #eef4fa; border-left: 4px solid #0072B2; padding: .6rem 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { background: #f4f4f4; max-width: 16rem; overflow-wrap: break-word; }
td.figure { text-align: right; white-space: nowrap; }
td:first-child { position: sticky; left: 0; background: #fff; min-width: 5rem; }
td.long { min-width: 16rem; }
.scroll { overflow-x: auto; }
.chart { width: 100%; overflow-x: auto; }
.chart > svg { max-width: 100%; height: auto; }
ul.skipped { font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: .6rem; font-size: 15px; }
  table { font-size: .8rem; }
  th, td { padding: .25rem .4rem; }
  td:first-child { max-width: 9rem; overflow-wrap: break-word; }
  th { max-width: 9rem; }
  .chart.wide { min-width: 48rem; }
}
"""

_DRAW = """
for (const chart of document.querySelectorAll('.chart[data-spec]')) {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
  // On a narrow screen names beside a chart, or long ones in it, would leave no room for it.
  if (window.innerWidth < 640) {
    const room = chart.clientWidth - 110;
    spec.config.legend = {...spec.config.legend, orient: 'bottom', columns: 1, labelLimit: room};
    spec.config.text = {limit: room / 2};
  }
  vegaEmbed(chart, spec, {actions: {export: true, source: false, compiled: false, editor: false}, renderer: 'svg'});
}
"""


@dataclass
class Page:
    """A page: parts are put in one after the other, and `html` gives the file's text.

    Args:
        title: the study's name.
        asks: what it asks, in one sentence.
    """

    title: str
    asks: str | None = None
    _parts: list[str] = field(default_factory=list)
    _charts: int = 0

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, finding: bool = False) -> None:
        kind = ' class="finding"' if finding else ""
        self._parts.append(f"<p{kind}>{html.escape(text)}</p>")

    def table(self, lines: Sequence[Sequence[str]]) -> None:
        """A header and lines of texts, as tables show them."""
        header, *rest = lines
        head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
        right = figure_columns(lines)
        body = "".join(f"<tr>{''.join(map(_td, line, right))}</tr>" for line in rest)
        self._parts.append(
            f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def listed(self, lines: Sequence[str]) -> None:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        self._parts.append(f'<ul class="skipped">{items}</ul>')

    def chart(self, chart: Any, wide: bool = False) -> None:
        """An Altair chart, interactive, as wide as the page; one of several panels as a picture.

        A `wide` one, with a name at each of many places, is scrolled on a narrow screen instead of being squeezed.
        """
        made, kind = spec(chart), "chart wide" if wide else "chart"
        if "vconcat" in made or "hconcat" in made:
            picture = vl_convert.vegalite_to_svg(made)
            self._parts.append(f'<div class="scroll"><div class="{kind}">{picture}</div></div>')
            return
        made["width"] = "container"
        made["autosize"] = {"type": "fit-x", "contains": "padding"}
        self._charts += 1
        name = f"chart-{self._charts}"
        # No name of a cell may end the script element.
        data = json.dumps(made).replace("<", "\\u003c")
        self._parts.append(
            f'<div class="scroll"><div class="{kind}" data-spec="{name}"></div></div>'
            f'<script type="application/json" id="{name}">{data}</script>'
        )

    def html(self) -> str:
        """The whole file."""
        title = html.escape(self.title)
        asks = f'<p class="asks">{html.escape(self.asks)}</p>' if self.asks else ""
        scripts = ""
        if self._charts:
            # The bundle is a module: only what is in it can name its libraries.
            script = vl_convert.javascript_bundle(_DRAW).replace("</script", "<\\/script")
            scripts = f'<script type="module">{script}</script>'
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
            f"<body><h1>{title}</h1>{asks}{''.join(self._parts)}{scripts}</body></html>\n"
        )


def _td(text: str, figure: bool) -> str:
    kind = ' class="figure"' if figure else ' class="long"' if len(text) > 40 else ""
    return f"<td{kind}>{html.escape(text)}</td>"
